"""Figures that set families, laws and runs side by side: exponents, differences, Pareto fronts, isoFLOP profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.style import (
    GREY,
    INK,
    PALETTE,
    Margins,
    axes_at,
    colours,
    log_axis,
    markers,
    panels,
    sheet,
    short,
)
from slm.runtime.words import TARGET_UNITS, axis_name, interval, is_number, listed, p_value, sig
from slm.scaling.describe import Entry, has_complete_lists, is_identified, laws_of, variable_of
from slm.scaling.forms import VARIABLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_PAIRS = 12
"""Panels of the figure of ratios."""


class Panel(NamedTuple):
    """One quantity whose exponents may be compared: same target, same variable, same N."""

    title: str
    rows: list[tuple[Entry, str]]
    references: list[tuple[str, float]]


def exponents(analysis: Directory) -> Figure | None:
    """Forest plot: one panel for each target and variable."""
    found = _forest_panels(analysis)
    if not found:
        return None
    lost = sum(not is_identified(entry, name) for panel in found for entry, name in panel.rows)
    total = sum(len(panel.rows) for panel in found)
    title = "Exponents by law and variable" + (f": {lost} of {total} are not identified" if lost else "")
    columns, wide, around = (
        min(2, len(found)),
        6.0,
        Margins(left=0.95 if len(analysis.families) > 1 else 1.45, right=1.4, bottom=0.4, top=0.35),
    )
    stacks = [0.0] * columns
    places = []
    for panel in found:
        column = stacks.index(min(stacks))
        places.append((column, stacks[column]))
        stacks[column] += around.top + around.bottom + _height(panel)
    figure, head = sheet(
        f"{title}. Compare within a law and a panel only", wide * columns, max(stacks), analysis.families
    )
    for panel, (column, down) in zip(found, places, strict=True):
        across = wide - around.left - around.right
        _forest(
            axes_at(figure, column * wide + around.left, head + down + around.top, across, _height(panel)),
            analysis,
            panel,
        )
    return figure


def _forest_panels(analysis: Directory) -> list[Panel]:
    main = analysis.primary
    wanted: list[tuple[str, str, str]] = []
    sizes = [main["size"], *dict.fromkeys(e["size"] for e in analysis.fits if e["size"] and e["size"] != main["size"])]
    wanted += [(main["target"], "N", size) for size in sizes]
    others = dict.fromkeys([*VARIABLES, *(of_ for entry in analysis.fits for of_ in entry["variable_of"].values())])
    wanted += [(main["target"], variable, main["size"]) for variable in others if variable != "N"]
    wanted += [("perplexity", "N", main["size"])] if main["target"] != "perplexity" else []
    found = []
    for target, variable, size in wanted:
        rows = [
            (entry, name)
            for entry in analysis.entries(target=target, size=size)
            for name in entry["exponents"]
            if entry["fitted"] and variable_of(entry, name) == variable
        ]
        if rows:
            references = _reference_exponents(analysis, target, size) if variable == "N" else []
            label = "PERPLEXITY, not loss" if target == "perplexity" else target.replace("_", " ")
            title = f"exponent of {label}, in {axis_name(variable, size)}"
            found.append(Panel(title, rows, references))
    return found


def _reference_exponents(analysis: Directory, target: str, size: str) -> list[tuple[str, float]]:
    """Published laws over this table's sizes, as `power` would see them; the mean over families if these differ."""
    found: dict[str, list[float]] = {}
    for row in analysis.comparison.get("references") or []:
        same = row["target"] == target and row["size"] == size and row.get("same_size_definition")
        if same and is_number(row["reference_exponent"]):
            outside = " (outside its range)" if row.get("outside_range") else ""
            found.setdefault(row["reference"] + outside, []).append(row["reference_exponent"])
    return [(name, float(np.mean(values))) for name, values in found.items()]


def _height(panel: Panel) -> float:
    """Inches of its rows."""
    return 0.17 * (len(panel.rows) + 0.8 * len({e["law"] for e, _ in panel.rows}) + len(panel.references))


def _forest(axis: Axes, analysis: Directory, panel: Panel) -> None:
    low, high = _forest_range(panel)
    y, ticks = 0.0, []
    for law in laws_of([entry for entry, _ in panel.rows]):
        group = [(entry, name) for entry, name in panel.rows if entry["law"] == law]
        ticks.append((y + (len(group) - 1) / 2, f"{law}{chr(10) if len(group) > 1 else ' '}({group[0][1]})"))
        for entry, name in group:
            _forest_row(axis, analysis, entry, name, y, (low, high))
            y += 1
        if law == "power":
            for reference, value in panel.references:
                axis.plot(value, y, ls="", marker="d", color=GREY, ms=4.5)
                axis.text(1.01, y, f"{reference}: {sig(value, 3)}", va="center", fontsize=7, color="#666666",
                          transform=axis.get_yaxis_transform())  # fmt: skip
                y += 1
        y += 0.8
    axis.set_ylim(y - 0.3, -0.8)
    axis.set_xlim(low, high)
    axis.set_yticks([at for at, _ in ticks], labels=[law for _, law in ticks])
    axis.tick_params(axis="y", length=0)
    axis.grid(True, axis="x")
    axis.set_title(panel.title)


def _forest_range(panel: Panel) -> tuple[float, float]:
    """What shows the identified exponents; intervals that reach further end in an arrow."""
    shown = [(e["params"][n], *e["ci95"][n]) for e, n in panel.rows if is_identified(e, n)]
    if not shown:
        return 0.0, 1.0
    centre = [value for value, _, _ in shown] + [value for _, value in panel.references]
    tallest = 2 * max(centre)
    high = max(centre + [min(end, tallest) for _, _, end in shown if is_number(end)])
    low = min([0.0, *(max(end, -0.5 * high) for _, end, _ in shown if is_number(end))])
    return low - 0.03 * high, 1.06 * high


def _forest_row(axis: Axes, analysis: Directory, entry: Entry, name: str, y: float, ends: tuple[float, float]) -> None:
    family = entry["family"]
    identified = is_identified(entry, name)
    colour = colours(analysis.families)[family] if identified else GREY
    low, high = (end if is_number(end) else edge for end, edge in zip(entry["ci95"][name], ends, strict=True))
    axis.plot(np.clip([low, high], *ends), [y, y], color=colour, lw=1.5, ls="-" if identified else ":", clip_on=False)
    for end, edge, arrow in ((low, ends[0], "<"), (high, ends[1], ">")):
        if (end <= edge) if arrow == "<" else (end >= edge):
            axis.plot(edge, y, marker=arrow, color=colour, ms=4, clip_on=False)
    value = entry["params"].get(name)
    if identified:
        axis.plot(value, y, marker=markers(analysis.families)[family], color=colour, ms=5, zorder=3)
    elif is_number(value) and ends[0] < value < ends[1]:
        axis.plot(value, y, marker=markers(analysis.families)[family], mec=colour, mfc="white", ms=4.5, zorder=3)
    text = f"{sig(value, 3)} {interval(entry['ci95'][name], 3)}" if identified else "not identified"
    axis.text(1.01, y, text, va="center", fontsize=7, color=INK if identified else "#777777",
              transform=axis.get_yaxis_transform(), style="normal" if identified else "italic")  # fmt: skip


def differences(analysis: Directory) -> Figure | None:
    """Pairwise differences of the primary law's exponents."""
    found = analysis.compared
    rows = [row for row in (found or {}).get("pairs", []) if row.get("identified") and is_number(row.get("delta"))]
    if not found or not rows:
        return None
    names = list(dict.fromkeys(row["exponent"] for row in rows))
    apart = sum(is_number(row["p_adjusted"]) and row["p_adjusted"] < 1 - analysis.level for row in rows)
    title = f"Differences of exponents: {apart or 'none'} of {len(rows)} stand out from zero after Holm's adjustment"
    most = max(sum(row["exponent"] == name for row in rows) for name in names)
    left = max(1.8, 0.2 + 0.075 * max(len(_pair(row)) for row in rows))
    figure, axes = panels(
        len(names),
        title,
        columns=1,
        width=4.8 + left,
        height=0.8 + 0.3 * most,
        margins=Margins(left=left, right=1.2),
    )
    for axis, name in zip(axes, names, strict=True):
        _differences_of(axis, [row for row in rows if row["exponent"] == name], name, 1 - analysis.level)
    return figure


def _differences_of(axis: Axes, rows: list[Entry], name: str, level: float) -> None:
    reach = max(abs(end) for row in rows for end in (row["delta"], row["ci_low"], row["ci_high"]) if is_number(end))
    axis.axvline(0, color=INK, lw=0.8)
    edge = 1.08 * reach
    for y, row in enumerate(rows):
        low, high = (row["ci_low"], row["ci_high"])
        stands_out = is_number(row["p_adjusted"]) and row["p_adjusted"] < level
        colour = PALETTE[1] if stands_out else PALETTE[0]
        axis.plot([low if is_number(low) else -edge, high if is_number(high) else edge], [y, y], color=colour, lw=1.6)
        axis.plot(row["delta"], y, "o", color=colour, ms=5)
        axis.text(1.02, y, f"Holm p {_equals(p_value(row['p_adjusted']))}", va="center", fontsize=8,
                  transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set_yticks(range(len(rows)), labels=[_pair(row) for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(-edge, edge)
    axis.set_xlabel(f"difference in {name}")


def ratios(analysis: Directory) -> Figure | None:
    """Log ratio of the losses of every matched pair against N, with its line and band."""
    pairs = (analysis.comparison.get("paired") or {}).get("pairs") or []
    pairs = [pair for pair in pairs if has_complete_lists(pair["band"], "centre", "low", "high")]
    if not pairs:
        return None
    apart = sum(pair["p_adjusted"] < 1 - analysis.level for pair in pairs)
    title = f"Ratio of {analysis.primary['target'].replace('_', ' ')} at the same sizes: the slope of "
    title += f"{apart or 'none'} of {len(pairs)} stands out from zero after Holm's adjustment"
    if len(pairs) > MOST_PAIRS:
        title += f"; the {MOST_PAIRS} of the least p"
        pairs = sorted(pairs, key=lambda pair: pair["p"])[:MOST_PAIRS]
    figure, axes = panels(len(pairs), title, columns=3, width=3.15 if len(pairs) > 1 else 6.0, height=2.3)
    for axis, pair in zip(axes, pairs, strict=True):
        colour = PALETTE[1] if pair["p_adjusted"] < 1 - analysis.level else PALETTE[0]
        band, sizes = pair["band"], pair["sizes"]
        low, high, centre = (100 * np.expm1(np.array(band[name])) for name in ("low", "high", "centre"))
        axis.fill_between(band["N"], low, high, color=colour, alpha=0.2, lw=0)
        axis.plot(band["N"], centre, color=colour, lw=1.5)
        axis.plot(sizes, 100 * np.expm1(np.array(pair["log_ratio"])), "o", color=colour, ms=4, mec="white", mew=0.4)
        axis.axhline(0, color=INK, lw=0.8)
        log_axis(axis.xaxis, min(sizes) / 1.15, max(sizes) * 1.15)
        axis.grid(True)
        axis.set_title(
            f"{short(pair['a'])} / {short(pair['b'])}, p {_equals(p_value(pair['p_adjusted']))}", fontsize=8.5
        )
        axis.set_xlabel(axis_name("N", analysis.primary["size"]))
    axes[0].set_ylabel(f"{analysis.primary['target'].replace('_', ' ')} above the other's (%)")
    return figure


def _pair(row: Entry) -> str:
    return f"{short(row['a'])} - {short(row['b'])}"


def _equals(p: str) -> str:
    return p if p[0] in "<≤–" else f"= {p}"


def pareto(analysis: Directory) -> Figure | None:
    """Target against N, FLOPs and speed; the front is what no other run beats in both."""
    fronts = [
        front
        for front in analysis.comparison.get("pareto") or []
        if front["against"] in analysis.results and all(is_number(row[front["against"]]) for row in front["front"])
    ]
    if not fronts:
        return None
    target = analysis.primary["target"]
    on = list(dict.fromkeys(short(row["family"]) for front in fronts for row in front["front"]))
    who = (
        "every family has runs"
        if len(on) == len(analysis.families)
        else f"only {listed(on)} {'has' if len(on) == 1 else 'have'} runs"
    )
    title = "Pareto fronts" + (
        f": {who} on them" if len(analysis.families) > 1 else ": what no other run beats in both"
    )
    figure, axes = panels(len(fronts), title, columns=3, width=3.15, height=2.7, families=analysis.families)
    for axis, front in zip(axes, fronts, strict=True):
        _front(axis, analysis, front, target)
    axes[0].set_ylabel(TARGET_UNITS[target])
    return figure


def _front(axis: Axes, analysis: Directory, front: Entry, target: str) -> None:
    column = front["against"]
    frame = analysis.results
    for family in analysis.families:
        rows = frame[frame["family"] == family]
        axis.plot(rows[column], rows[target], ls="", marker=markers(analysis.families)[family], ms=3.5, alpha=0.45,
                  color=colours(analysis.families)[family], mew=0)  # fmt: skip
    best = sorted(((row[column], row[target], row["family"]) for row in front["front"]), key=lambda row: row[0])
    axis.plot([x for x, _, _ in best], [y for _, y, _ in best], color=INK, lw=1, alpha=0.7)
    for x, y, family in best:
        axis.plot(
            x, y, marker=markers(analysis.families)[family], color=colours(analysis.families)[family], ms=5.5, mec=INK
        )
    x, y = frame[column].to_numpy(float), frame[target].to_numpy(float)
    log_axis(axis.xaxis, x.min() / 1.2, x.max() * 1.2, counts=column != "flops")
    log_axis(axis.yaxis, y.min() / 1.03, y.max() * 1.03)
    axis.grid(True)
    name = {"flops": "C (training FLOPs)", "tokens_per_second": "tokens per second (more is better)"}
    axis.set_xlabel(name.get(column) or axis_name("N", column))


def isoflop(analysis: Directory) -> Figure | None:
    """Runs of each compute budget with the parabola and its lowest point, as comparison.json groups and fits them."""
    found = [row for row in analysis.comparison.get("isoflop") or [] if is_number(row["exponent"])]
    if not found:
        return None
    said = "; ".join(
        f"{short(row['family'])} {sig(row['exponent'], 3)} {interval([row['low'], row['high']], 3)}" for row in found
    )
    given = found[0]["given_optima"]
    title = "Given optima" if given else "IsoFLOP profiles"
    figure, axes = panels(len(found), f"{title}: best N grows as C^a, a = {said}", columns=2, width=4.7, height=3.2)
    for axis, row in zip(axes, found, strict=True):
        (_optima_panel if given else _isoflop_panel)(axis, analysis, row)
        axis.grid(True)
    return figure


def _isoflop_panel(axis: Axes, analysis: Directory, row: Entry) -> None:
    budgets = row["budgets"]
    colour: Any = colours(analysis.families)[row["family"]]
    for budget, shade in zip(budgets, np.linspace(0.45, 1.0, len(budgets)), strict=True):
        axis.plot(budget["points"]["params"], budget["points"]["value"], ls="", marker="o", ms=3.2, color=colour,
                  alpha=shade, mew=0)  # fmt: skip
        first, last = budget["window"]
        line = np.geomspace(first, last, 80)
        curve = np.exp(_parabola(budget, line))
        axis.plot(line, curve, color=colour, lw=1, alpha=shade)
        if budget["reason"] is None:
            low = np.exp(_parabola(budget, np.array([budget["params"]])))
            axis.plot(budget["params"], low, marker="*", ms=10, color=colour, mec=INK, mew=0.7)
        else:
            axis.plot(line[curve.argmin()], curve.min(), marker="x", ms=6, color=INK, mew=1.2)
        axis.annotate(f"{sig(budget['flops'], 2)} FLOPs", (line[-1], curve[-1]), (-2, 6), textcoords="offset points",
                      ha="right", fontsize=7.5, color=INK)  # fmt: skip
    x, y = (np.concatenate([budget["points"][name] for budget in budgets]) for name in ("params", "value"))
    log_axis(axis.xaxis, x.min() / 1.1, x.max() * 1.15)
    log_axis(axis.yaxis, y.min() / 1.02, y.max() * 1.02)
    axis.set_xlabel(axis_name("N", analysis.primary["size"]))
    axis.set_ylabel(TARGET_UNITS[analysis.primary["target"]])
    bias = f"; approach 2's own bias here {row['bias']:+.3f}" if is_number(row.get("bias")) else "; its bias is unknown"
    axis.set_title(f"{short(row['family'])}: a = {sig(row['exponent'], 3)}{bias}", fontsize=8.5)


def _parabola(budget: Entry, params: np.ndarray) -> np.ndarray:
    """Log target of the budget's parabola."""
    value, slope, curvature = budget["parabola"]
    z = np.log(params) - budget["centre"]
    return np.asarray(value + slope * z + curvature * z**2)


def _optima_panel(axis: Axes, analysis: Directory, row: Entry) -> None:
    """N and D of each row against its FLOPs."""
    flops = np.array([budget["flops"] for budget in row["budgets"]])
    log_c = np.log(flops) - np.log(flops).mean()
    every = []
    for name, slope, mark in (("params", "exponent", "o"), ("tokens", "tokens_exponent", "s")):
        values = np.array([budget[name] for budget in row["budgets"]])
        label = f"{'N' if name == 'params' else 'D'} ~ C^{sig(row[slope], 3)}"
        axis.plot(flops, values, ls="", marker=mark, ms=4, color=colours(analysis.families)[row["family"]], label=label)
        axis.plot(flops, np.exp(np.log(values).mean() + row[slope] * log_c), color=INK, lw=1)
        every.append(values)
    log_axis(axis.xaxis, flops.min() / 1.3, flops.max() * 1.3, counts=False)
    log_axis(axis.yaxis, np.min(every) / 1.3, np.max(every) * 1.3)
    axis.set_xlabel("C (training FLOPs)")
    axis.set_ylabel("optimal parameters and tokens")
    axis.legend(fontsize=8)
    axis.set_title(short(row["family"]), fontsize=8.5)
