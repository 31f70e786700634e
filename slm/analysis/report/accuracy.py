"""The section and the figure of an accuracy as the target: its law between chance and one, and the two-step law."""

from collections.abc import Sequence

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import Section, bullets, folded, table
from slm.report.style import GREY, Axes, Figure, draw_law, log_axis, panels, plot_runs, short_name
from slm.runtime.words import (
    NO_VALUE,
    amount,
    count,
    escape_markdown,
    format_number,
    interval,
    is_number,
    join_names,
    p_text,
    plural,
    with_interval,
)
from slm.scaling.describe import Entry, exponent_text, family_name, floor_text, has_complete_lists, moved_points

DIGITS = 3  # of accuracies: the error of an accuracy over 1,000 items is 0.016
ABOUT_INTERVALS = (
    "Accuracies are predicted for a new run, with the {level:.0%} interval of the law. `largest size held out` "
    "predicts the runs of the largest N from the smaller sizes: the mean error in points (hundredths of the "
    "accuracy), and how many of these runs lie inside the interval."
)
ABOUT_TWO_STEPS = (
    "**Two steps** (Bhagia et al. 2024): a law of the task loss, here {T}, in {variables}, and a sigmoid from the task "
    "loss to the accuracy. An interval contains the errors of both steps."
)


def accuracy_section(analysis: Directory) -> Section | None:
    """The law of the accuracy, the two-step law, and how both predict the largest size."""
    if analysis.verdict_basis.get("kind") != "accuracy":
        return None
    basis = analysis.verdict_basis
    entries = [entry for entry in analysis.verdict_fits if entry["fitted"]]
    column = escape_markdown(basis["column"])
    header = ("family", "law", "predicted at", "accuracy", "largest size held out")
    rows = _rows(analysis, entries)
    return Section(f"Accuracy of {column}").add(
        f"Laws were fitted to the error, 1 - {column}, itself and not its log. They keep the accuracy between chance, "
        f"{format_number(basis['chance'])}, and one: `{basis['law']}` is {analysis.equation(basis['law'])}, where L is "
        "the error. `logistic` laws are sigmoids of log M, `exponential` laws are exponential in M.",
        bullets(_sentences(analysis, entries)),
        analysis.figure("accuracy", _caption(analysis)),
        table(header, rows),
        ABOUT_INTERVALS.format(level=analysis.level) if rows else "",
        *_two_step_blocks(analysis),
    )


def accuracy_lines(analysis: Directory) -> list[str]:
    """Lines for the terminal: the sentences of the section."""
    if analysis.verdict_basis.get("kind") != "accuracy":
        return []
    entries = [entry for entry in analysis.verdict_fits if entry["fitted"]]
    rows = _rows(analysis, entries)
    predicted = [f"{family} at {point}: {accuracy} under {law}" for family, law, point, accuracy, _ in rows]
    lines = [f"- {line}" for line in (*_sentences(analysis, entries), *predicted)]
    return [f"Accuracy of {analysis.verdict_basis['column']}:", *lines]


def _rows(analysis: Directory, entries: Sequence[Entry]) -> list[list[str]]:
    rows = [row for entry in entries for row in _direct_rows(entry)]
    return rows + [row for family in _families(analysis) for row in _chain_rows(family)]


def _families(analysis: Directory) -> list[Entry]:
    return (analysis.comparison.get("two_step") or {}).get("families") or []


def _sentences(analysis: Directory, entries: Sequence[Entry]) -> list[str]:
    """What the laws say about the largest size, and whether the two steps were possible, in plain sentences."""
    sentences = []
    for entry in entries:
        if held_out := _direct_held_out(entry):
            sentences.append(_held_out_sentence(family_name(entry), f"`{entry['law']}`", *held_out))
    two_step = analysis.comparison.get("two_step")
    for family in _families(analysis):
        if family["reason"]:
            sentences.append(f"{family_name(family)}: no two-step law ({escape_markdown(family['reason'])}).")
        elif held_out := family["held_out"]:
            errors = [row["error"] for row in held_out["rows"]]
            insides = [row["inside"] for row in held_out["rows"]]
            sentences.append(
                _held_out_sentence(family_name(family), "the two-step law", held_out["N"], errors, insides)
            )
    if two_step and (shared := two_step["shared"]) is not None:
        answer = "differ" if shared["p"] < 1 - analysis.level else "do not differ significantly"
        sentences.append(f"At the same task loss, the families {answer} in accuracy ({p_text(shared['p'])}).")
    return sentences


def _held_out_sentence(family: str, law: str, N: float, errors: Sequence[float], insides: Sequence[bool]) -> str:
    mean = float(np.mean(errors))
    side = "high" if mean > 0 else "low"
    where = f"Fitted to the sizes of {family} below N = {count(N)}, {law} predicts an accuracy there"
    covered = f"{sum(insides)} of {plural(len(insides), 'run')} inside the interval"
    return f"{where} that is {format_number(100 * abs(mean), 2)} points too {side} on average, with {covered}."


def _direct_held_out(entry: Entry) -> tuple[float, list[float], list[bool]] | None:
    """N held out, errors in accuracy, and whether each run is inside the interval; None if no size was held out."""
    extrapolation = entry.get("extrapolation")
    if not extrapolation or "N" not in entry["points"]:
        return None
    step = extrapolation["steps"][0]
    errors = (-np.array(step["errors_log"])).tolist()  # an error that is too high is an accuracy too low
    is_inside = [not (is_number(low) and low > 0) and not (is_number(high) and high < 0)
                 for low, high in zip(step["low_log"], step["high_log"], strict=True)]  # fmt: skip
    return float(step["held_out"]), errors, is_inside


def _direct_rows(entry: Entry) -> list[list[str]]:
    held_out = _direct_held_out(entry)
    name = f"{entry['law']}" if entry["identified"] else f"{entry['law']} (not identified)"
    rows = []
    for row in entry.get("predictions") or []:
        ends = [1 - end if is_number(end) else None for end in (row["high"], row["low"])]
        point = {variable: row[variable] for variable in entry["range"]}
        rows.append([family_name(entry), name, _point(point), with_interval(1 - row["value"], ends, DIGITS)])
    return _with_held_out(rows, held_out)


def _chain_rows(family: Entry) -> list[list[str]]:
    if family["reason"]:
        return []
    first, second = family["steps"]
    held_out = family["held_out"]
    tried = None
    if held_out:
        tried = (held_out["N"], [row["error"] for row in held_out["rows"]], [row["inside"] for row in held_out["rows"]])
    is_identified = first["identified"] and second["identified"]
    name = "two steps" if is_identified else "two steps (not identified)"
    rows = []
    for row in family["predictions"]:
        accuracy = row["accuracy"]
        point = _point({variable: row[variable] for variable in first["range"]})
        text = with_interval(accuracy["centre"], [accuracy["low"], accuracy["high"]], DIGITS)
        rows.append([family_name(family), name, point, text])
    return _with_held_out(rows, tried)


def _with_held_out(
    rows: list[list[str]], held_out: tuple[float, Sequence[float], Sequence[bool]] | None
) -> list[list[str]]:
    """The rows of one law, with the result of holding out the largest size in the first."""
    text = NO_VALUE
    if held_out:
        _, errors, insides = held_out
        text = f"{100 * float(np.mean(errors)):+.1f} points, {sum(insides)} of {len(insides)} inside"
    return [[*row, text if index == 0 else ""] for index, row in enumerate(rows)]


def _point(values: dict[str, float]) -> str:
    return ", ".join(f"{variable} = {amount(variable, value)}" for variable, value in values.items())


def _two_step_blocks(analysis: Directory) -> list[str]:
    two_step = analysis.comparison.get("two_step")
    if not two_step:
        return []
    fitted = [family for family in two_step["families"] if not family["reason"]]
    T = escape_markdown(two_step["task_loss"])
    if not fitted:
        return [f"No family has a two-step law of {T}."]
    first, second = two_step["laws"]
    rows = []
    for family in fitted:
        entry, sigmoid = family["steps"]
        exponents = ", ".join(f"{name} {exponent_text(entry, name)}" for name in entry["exponents"])
        ceiling = _ceiling(sigmoid)
        rows.append([family_name(family), exponents, floor_text(entry), exponent_text(sigmoid, "k"), ceiling])
    header = ("family", f"exponents of {T}", f"floor of {T}", "slope k of the sigmoid", "ceiling of the accuracy")
    equations = [f"{entry['equation']}" for entry in fitted[0]["steps"]]
    reasons = f"Step 1 is `{first['law']}`: {first['why']}. Step 2 is `{second['law']}`: {second['why']}."
    notes = [note for family in fitted for entry in family["steps"] for note in entry["notes"]]
    beyond = [family_name(family) for family in fitted if any(row["beyond"] > 1.01 for row in family["predictions"])]
    return [
        ABOUT_TWO_STEPS.format(T=T, variables=join_names(list(fitted[0]["steps"][0]["variables"]))),
        f"{reasons} T is {T}: T = {equations[0].removeprefix('L = ')}, and the error is "
        f"{equations[1].removeprefix('L = ')}.",
        table(header, rows),
        f"Predictions of {join_names(beyond)} reach task losses that no run had, where the sigmoid is an extrapolation."
        if beyond
        else "",
        folded("Notes on the two steps", bullets(dict.fromkeys(map(escape_markdown, notes)))) if notes else "",
    ]


def _ceiling(sigmoid: Entry) -> str:
    """The accuracy that no task loss exceeds: one minus the floor of the error."""
    if sigmoid["floor"] is None:
        return "one"
    ends = [None if end is None else 1 - end for end in reversed(sigmoid["floor_ci95"])]
    if sigmoid["floor"] in sigmoid["not_identified"]:
        return f"not identified {interval(ends, DIGITS)}"
    return with_interval(1 - sigmoid["floor_value"], ends, DIGITS)


def _caption(analysis: Directory) -> str:
    text = (
        f"Accuracy against N: runs, the law of the verdict with its {analysis.level:.0%} interval for a new run, and "
        "chance (dotted). A law of several variables is drawn at the medians of the others; its runs are moved there."
    )
    if any(not family["reason"] for family in _families(analysis)):
        text += " Dashed: the two-step law. Last panel: its second step, with the interval of the law."
    return text


def accuracy_figure(analysis: Directory) -> Figure | None:
    """A panel per family with its runs, laws and chance, and one with the sigmoids of all families."""
    if analysis.verdict_basis.get("kind") != "accuracy":
        return None
    entries = [entry for entry in analysis.verdict_fits if has_complete_lists(entry.get("curve"), "x", "centre")]
    if not entries:
        return None
    chains = {family["family"]: family for family in _families(analysis) if not family["reason"]}
    chance, column = analysis.verdict_basis["chance"], analysis.verdict_basis["column"]
    title = f"Accuracy of {column} under {analysis.verdict_basis['law']}"
    num_panels = len(entries) + bool(chains)
    figure, axes = panels(num_panels, title, ncols=3, width=3.4, height=2.9, families=analysis.families)
    for axis, entry in zip(axes, entries, strict=False):
        _draw_family(axis, analysis, entry, chains.get(entry["family"]))
        axis.axhline(chance, color=GREY, lw=1, ls=":")
        axis.set_title(short_name(entry["family"]))
        axis.set_ylabel("accuracy")
    if chains:
        _draw_sigmoids(axes[-1], analysis, list(chains.values()))
        axes[-1].axhline(chance, color=GREY, lw=1, ls=":")
        axes[-1].set_title("step 2")
        axes[-1].set_xlabel(f"{analysis.comparison['two_step']['task_loss']} (falls to the right)")
    _set_limits(axes, entries, chance)
    return figure


def _draw_family(axis: Axes, analysis: Directory, entry: Entry, chain: Entry | None) -> None:
    curve, points, colour = entry["curve"], entry["points"], analysis.colour(entry["family"])
    x, y = np.array(curve["x"]), 1 - np.array(curve["centre"], float)
    low, high = (1 - np.array(curve[end], float) for end in ("run_high", "run_low"))
    axis.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    sizes = np.array(points[curve["variable"]], float)
    draw_law(axis, x, y, x <= sizes.max() * 1.001, colour)
    values = moved_points(entry, np.interp(np.log(sizes), np.log(x), curve["centre"]))
    plot_runs(axis, sizes, 1 - values, colour, analysis.marker(entry["family"]))
    if chain is not None and curve["variable"] == "N":
        axis.plot(chain["curve"]["x"], chain["curve"]["centre"], color="black", lw=1.1, ls="--")
    log_axis(axis.xaxis, x.min(), x.max(), as_counts=curve["variable"] != "C")
    axis.set_xlabel(analysis.axis_name(curve["variable"]))


def _draw_sigmoids(axis: Axes, analysis: Directory, chains: Sequence[Entry]) -> None:
    for chain in chains:
        sigmoid, colour = chain["sigmoid"], analysis.colour(chain["family"])
        low, high = (np.array(sigmoid[end], float) for end in ("low", "high"))
        axis.fill_between(sigmoid["x"], low, high, color=colour, alpha=0.25, lw=0)
        axis.plot(sigmoid["x"], sigmoid["centre"], color=colour, lw=1.7)
        plot_runs(axis, sigmoid["points"]["x"], sigmoid["points"]["value"], colour, analysis.marker(chain["family"]))
    axis.invert_xaxis()


def _set_limits(axes: Sequence[Axes], entries: Sequence[Entry], chance: float) -> None:
    """All panels show the same accuracies: those of runs and laws, and chance."""
    values = [1 - np.array(entry["curve"]["centre"], float) for entry in entries]
    values += [1 - np.array(entry["points"]["value"], float) for entry in entries]
    everything = np.concatenate([*values, [chance]])
    margin = 0.06 * float(np.nanmax(everything) - np.nanmin(everything))
    for axis in axes:
        axis.set_ylim(max(0.0, float(np.nanmin(everything)) - margin), min(1.0, float(np.nanmax(everything)) + margin))
