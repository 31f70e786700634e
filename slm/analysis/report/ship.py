"""The section "Which to ship": choices by use case, the largest sizes within limits, and optima with serving."""

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, bullets, folded, table_by_column
from slm.report.ship import choice_blocks, choice_sentences, uses_by_name
from slm.report.style import INK, Figure, Margins, draw_interval, log_axis, panels, short_name
from slm.runtime.words import (
    NO_VALUE,
    count,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    shape_text,
    target_label,
    target_name,
    with_interval,
)
from slm.scaling.allocation import pareto_front
from slm.scaling.describe import Entry, family_name

CAPTION = (
    "Marks: measured shapes; large: the choices. Bars: intervals of the mean over seeds, and of the speed from the "
    "spread of repetitions. Steps: the Pareto front of the estimates."
)
MAX_LABELS = 12  # with more candidates, only those of the choices have labels in the figure
REACHED = 0.995  # least share of refits that reach the loss for which none is said not to
TERM_WORDS = {
    "block_uses": "block",
    "params_read": "parameter",
    "params_total": "parameter",
    "constant": "in any case",
    "head": "entry of the head",
    "cache": "byte of the cache of a token",
}


def ship_section(analysis: Directory) -> Section | None:
    """Which size and shape to ship; None without measurements on a device or tokens to be served."""
    section, entry = Section("Which to ship"), analysis.decisions
    if entry:
        section.add(
            f"Measurements: `{escape_markdown(entry['device'])}`. Measured shapes are compared by the results of their "
            "own runs, as means over seeds; no law is needed. Speeds hold for the machine and the program that were "
            "measured.",
            *choice_blocks(entry),
            analysis.figure("ship", CAPTION),
            *_largest_blocks(entry),
            folded("Models of the costs", _models(entry)),
        )
    section.add(*_lifetime_blocks(analysis.comparison.get("lifetime") or []))
    return section if section.blocks else None


def ship_figure(analysis: Directory) -> Figure | None:
    """The target against the latency of each measured shape, with intervals and the front; None without two speeds."""
    entry, key = analysis.decisions, analysis.decisions.get("latency")
    rows = [row for row in entry.get("candidates", []) if key and is_number(row["measures"].get(key))]
    if len(rows) < 2:
        return None
    seconds = [1 / row["measures"][key] for row in rows]
    title = f"{target_name(entry['target']).capitalize()} against seconds per token ({entry['words'][key]})"
    margins = Margins(left=0.8, top=0.15, right=0.25)
    figure, (axis,) = panels(1, title, ncols=1, width=7.6, height=4.2, margins=margins, families=analysis.families)
    chosen = uses_by_name(entry)
    losses = [row["loss"] for row in rows]
    limits = min(losses) / 1.05, max(losses) * 1.05
    for row, x in zip(rows, seconds, strict=True):
        colour, marker = analysis.colour(row["family"]), analysis.marker(row["family"])
        draw_interval(axis, [row["low"], row["high"]], x, limits, vertical=True, color=colour, lw=1.1)
        axis.plot(row["spread"][key], [row["loss"]] * 2, color=colour, lw=1.1)
        axis.plot(x, row["loss"], marker=marker, ms=8 if row["name"] in chosen else 5, color=colour, mec="white")
        use = chosen.get(row["name"])
        if use or len(rows) <= MAX_LABELS:
            text = short_name(row["name"]) + (f": {use}" if use else "")
            axis.annotate(text, (x, row["loss"]), (5, 5), textcoords="offset points", fontsize=7.5)
    points = np.array(sorted(zip(seconds, losses, strict=True)))
    axis.plot(*points[pareto_front(points)].T, drawstyle="steps-post", color=INK, lw=1, zorder=1)
    log_axis(axis.xaxis, min(seconds) / 1.2, max(seconds) * 1.4, as_counts=False)
    log_axis(axis.yaxis, *limits, as_counts=False)
    axis.set_xlabel("seconds per token: less is better")
    axis.set_ylabel(f"{target_label(entry['target'])}: less is better")
    return figure


def ship_lines(analysis: Directory) -> list[str]:
    """Lines for the terminal: the choices, the best family within the limits, and the optima with serving."""
    entry, lines = analysis.decisions, []
    if entry:
        lines = ["Which to ship:", *(f"- {text}" for text in [*choice_sentences(entry), *best_family(entry)])]
        lines += [f"- {note}" for note in entry["notes"]]
    lines += [f"- {lifetime_sentence(row)}" for row in analysis.comparison.get("lifetime") or []]
    return [line.replace("**", "").replace("`", "") for line in lines]


def best_family(entry: Entry) -> list[str]:
    """A sentence on the family with the lowest result at its largest size within the limits; none without a size."""
    rows = [row for row in entry["largest"] if row["refused"] is None and row["N"] is not None]
    if not entry["largest"]:
        return []
    where = _limits(entry)
    if rows and all(row["every_size"] for row in rows):
        beyond = max(row["beyond"] for row in rows)
        return [
            f"**Within {where}**, every size that was searched is allowed, up to {format_number(beyond, 3)} times "
            "beyond what was trained or measured, so the limits do not say which size is best."
        ]
    if all(row["refused"] is None and row["N"] is None and row["high"] is None for row in entry["largest"]):
        return [f"**Within {where}**, there is no size: none that was searched meets the limits."]
    if not rows:
        reasons = {
            f"{row['family']}: {row['refused'] or 'no size that was searched meets the limits'}"
            for row in entry["largest"]
        }
        return [
            f"**Within {where}**, the data cannot say which size is best. "
            f"{'; '.join(map(escape_markdown, sorted(reasons)))}."
        ]
    best = max(rows, key=lambda row: row["probability"])
    others = [family_name(row) for row in entry["largest"] if row["refused"]]
    where += f" (not compared, for lack of a model or law: {join_names(others)})" if others else ""
    size = f"{family_name(best)} of {_size(best)} parameters{_shape(best)}"
    result = with_interval(best["loss"], [best["loss_low"], best["loss_high"]])
    facts = f"{target_name(entry['target'])} of a new run {result}"
    beyond = (
        f" It lies {format_number(best['beyond'], 3)} times beyond what was trained or measured, so it is a guess."
        if best["beyond"] > 1
        else ""
    )
    if len(rows) == 1:
        return [f"**Within {where}**, the largest size is {size}: {facts}.{beyond}"]
    if best["every_size"]:
        return [
            f"**Within {where}**, the data cannot say which family is best: every size of {family_name(best)} that "
            f"was searched is allowed, up to {count(best['N'])} parameters.{beyond}"
        ]
    if best["probability"] >= entry["sure"]:
        return [f"**Within {where}**, the best is {size}, with probability {best['probability']:.2f}: {facts}.{beyond}"]
    names = [
        f"{family_name(row)} ({row['probability']:.2f})" for row in sorted(rows, key=lambda row: -row["probability"])
    ]
    return [f"**Within {where}**, the data cannot say which family is best: {join_names(names)}."]


def _limits(entry: Entry) -> str:
    if entry["example"]:
        seconds = next(iter(entry["cost_limits"].values()))
        rate = f"{format_number(1 / seconds, 3)} {entry['words'][entry['example']]}"
        return f"{rate} or more (an example, the middle of what was measured)"
    return join_names([f"ship.{key}={entry['limits'][key]:g}" for key in entry["cost_limits"]])


def _size(row: Entry) -> str:
    if row["every_size"]:
        return f"at least {count(row['N'])}"
    ends = [count(end) if is_number(end) else "open" for end in (row["low"], row["high"])]
    return f"{count(row['N'])} [{', '.join(ends)}]"


def _shape(row: Entry) -> str:
    text = shape_text(row.get("width"), row.get("depth"))
    return "" if text == NO_VALUE else f" (about {text})"


def _largest_blocks(entry: Entry) -> list[str]:
    rows = [row for row in entry["largest"] if row["refused"] is None]
    columns: Columns = {
        "family": family_name,
        "largest N": lambda row: _size(row) if row["N"] is not None else "no size that was searched",
        "shape": lambda row: shape_text(row.get("width"), row.get("depth")),
        "limited by": lambda row: entry["words"].get(row.get("limited_by"), NO_VALUE),
        f"{target_name(entry['target'])} of a new run": lambda row: with_interval(
            row["loss"], [row["loss_low"], row["loss_high"]]
        ),
        "beyond the data": lambda row: f"{format_number(row['beyond'], 3)} times" if (row["beyond"] or 1) > 1 else "no",
        "probability of the lowest": lambda row: f"{row['probability']:.2f}",
    }
    note = (
        "The largest size of each family within the limits, by the law of the loss and the models of the costs. N's "
        "interval inverts the intervals of the costs; shapes follow the measured shapes of the family."
    )
    refused = [f"{family_name(row)}: {escape_markdown(row['refused'])}." for row in entry["largest"] if row["refused"]]
    blocks = [*best_family(entry), note, table_by_column(rows, columns)] if rows else best_family(entry)
    return [*blocks, bullets(refused) if rows else ""]


def _models(entry: Entry) -> str:
    rows = [row for row in entry["models"] if row["refused"] is None]
    columns: Columns = {
        "family": lambda row: family_name(row) + (" (pooled)" if row["pooled"] else ""),
        "cost of": lambda row: entry["words"][row["measure"]],
        "terms": lambda row: "; ".join(
            f"{format_number(value, 3)} per {TERM_WORDS[term]}".replace("per in any", "in any")
            for term, value in row["terms"].items()
            if value > 0
        ),
        "shapes": lambda row: str(row["shapes"]),
        "scatter": lambda row: f"{100 * row['sigma_log']:.2g}%",
        "error of a shape left out": lambda row: (
            f"{100 * row['held_out']:.2g}%" if is_number(row["held_out"]) else NO_VALUE
        ),
    }
    refused = dict.fromkeys(
        f"{family_name(row)}, {entry['words'][row['measure']]}: {escape_markdown(row['refused'])}."
        for row in entry["models"]
        if row["refused"]
    )
    intro = "Seconds of speeds, bytes of memory: sums of terms that cannot be negative, fitted to relative errors."
    return "\n\n".join(filter(None, [intro, table_by_column(rows, columns), bullets(refused)]))


def _lifetime_blocks(rows: list[Entry]) -> list[str]:
    if not rows:
        return []
    note = (
        "**With serving** (Sardana et al. 2023, arXiv:2401.00448): the N and D that reach a loss with the fewest FLOPs "
        "of training and serving together. A served token costs a third of a trained one. Intervals are of bootstrap "
        "refits of `chinchilla`."
    )
    return [note, bullets(map(lifetime_sentence, rows))]


def lifetime_sentence(row: Entry) -> str:
    """The N and D that reach a loss with the fewest FLOPs of training and serving, or why there are none."""
    name = family_name(row)
    if row["refused"]:
        return f"{name}: {escape_markdown(row['refused'])}."
    best, alone = row["best"], row["alone"]
    sizes = [_with_ends(best[name], row[f"{name}_interval"]) for name in ("params", "tokens")]
    beyond = [
        f"{variable} {format_number(row[f'{name}_beyond'], 3)} times"
        for variable, name in (("N", "params"), ("D", "tokens"))
        if row[f"{name}_beyond"] > 1
    ]
    guess = f" This lies beyond the runs ({join_names(beyond)}), so it is a guess." if beyond else ""
    saved = 1 - best["flops"] / row["alone_flops"]
    if 0 < row["reached_in"] < REACHED:  # 0 without a bootstrap
        guess += (
            f" The floor of {1 - row['reached_in']:.0%} of the refits is above this loss; intervals leave them out."
        )
    return (
        f"{name}: loss {format_number(row['loss'])} and {count(row['served_tokens'])} served tokens cost least with "
        f"N = {sizes[0]} and D = {sizes[1]}: {format_number(best['flops'], 3)} FLOPs, {100 * saved:.2g}% fewer "
        f"than with the N = {count(alone['params'])} and D = {count(alone['tokens'])} that are best for training "
        f"alone.{guess}"
    )


def _with_ends(value: float, ends: list[float | None]) -> str:
    if not all(map(is_number, ends)):  # the analysis had no bootstrap
        return count(value)
    return f"{count(value)} [{', '.join(map(count, ends))}]"
