"""Sections on exponents and on published laws over the same sizes, and the forest plot of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slm.analysis.report.directory import Directory
from slm.analysis.report.selection import fit_table
from slm.report.markdown import VISIBLE_ROWS, Section, bullets, folded_if_long, table_by_column
from slm.report.style import GREY, INK, Axes, Figure, Margins, axes_at, blank_figure, text_beside
from slm.runtime.words import (
    SIZE_IN_LABELS,
    TARGET_NAMES,
    amount,
    axis_name,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    size_words,
    with_interval,
    yes_or_no,
)
from slm.scaling.describe import Entry, family_name, fitted_laws, is_identified, notes
from slm.scaling.forms import VARIABLES


def exponents_section(analysis: Directory) -> Section:
    """The fits of the verdict first, then other laws, other N, and other targets."""
    main, target = analysis.primary, analysis.target_name
    other_laws = [entry for entry in analysis.entries() if entry["law"] != main["law"]]
    section = Section("Exponents").add(
        f"Fits of {target}, where N counts {size_words(main['size'])}, with {analysis.level:.0%} intervals. A steeper "
        "law has a larger exponent. An exponent above a floor and one without a floor are different quantities, and so "
        "are exponents in N, D and C: compare only within one law.",
        fit_table(analysis.verdict_fits),
        bullets(notes(analysis.verdict_fits)),
        _without_smallest(analysis.verdict_fits),
        _other_fits("Exponents by other laws", other_laws, visible=VISIBLE_ROWS),
    )
    for size in dict.fromkeys(e["size"] for e in analysis.fits if e["size"] and e["size"] != main["size"]):
        rows = [entry for entry in analysis.entries(size=size) if entry["size"] == size]
        section.add(_other_fits(f"Exponents where N counts {size_words(size)}", rows))
    for other in dict.fromkeys(e["target"] for e in analysis.fits if e["target"] != main["target"]):
        if other == "perplexity":
            section.add(*_perplexity(analysis))
        else:
            section.add(_other_fits(f"Exponents of {TARGET_NAMES[other]}", analysis.entries(target=other)))
    caption = (
        "Exponents with their intervals. Grey and hollow: the data do not identify it. Diamonds: published laws, "
        "read as a straight line over this table's sizes."
    )
    return section.add(analysis.figure("exponents", caption))


def _other_fits(heading: str, entries: Sequence[Entry], visible: int = VISIBLE_ROWS // 2) -> str:
    content = "\n\n".join(filter(None, (fit_table(entries), bullets(notes(entries)))))
    return folded_if_long(heading, content, sum(entry["fitted"] for entry in entries), visible)


def _perplexity(analysis: Directory) -> list[str]:
    law = analysis.primary["law"]
    others = [entry for entry in analysis.entries(target="perplexity") if entry["law"] != law]
    warning = (
        "**Perplexity**: these are exponents of perplexity, the exponential of loss. They are not comparable with the "
        f"exponents of {analysis.target_name} above, nor with published exponents of loss; the "
        "references below are converted over the same N range."
    )
    verdict_fits = analysis.entries(law=law, target="perplexity")
    return [warning, fit_table(verdict_fits), _other_fits("Exponents of perplexity by other laws", others)]


def _without_smallest(entries: Sequence[Entry]) -> str:
    name = entries[0]["exponents"][0]
    changes = []
    for entry in entries:
        refit = (entry.get("without_smallest") or {}).get(name)
        if is_number(refit) and is_identified(entry, name) and entry["floor"] is None:
            changes.append(
                f"{family_name(entry)} {format_number(refit)} (instead of {format_number(entry['params'][name])})"
            )
    return f"Without the smallest size {name} would be: {', '.join(changes)}." if changes else ""


def references_section(analysis: Directory) -> Section | None:
    """Published laws over this table's own sizes."""
    rows = analysis.comparison["references"]
    if not rows:
        return None
    section = Section("Published laws over the same sizes").add(
        "A published law is evaluated at this table's sizes (and tokens), in the N it was fitted with, and read as a "
        "straight line through them: that is the exponent that `power` would find if these models followed it. "
        "Compare only slopes; the level depends on the text and the tokenizer."
    )
    used, left_out = ([row for row in rows if row["left_out"] == is_left_out] for is_left_out in (False, True))
    columns = {
        "reference": lambda row: escape_markdown(row["reference"]) + (" ‡" if row["outside_range"] else ""),
        "family": family_name,
        "N": lambda row: SIZE_IN_LABELS.get(row["size"], "") + ("" if row["same_size_definition"] else " †"),
        "`power` here": lambda row: with_interval(row["exponent"], [row["ci_low"], row["ci_high"]]),
        "reference's exponent": lambda row: format_number(row["reference_exponent"]),
        "ratio": lambda row: format_number(row["ratio"], 3),
        "inside the interval": lambda row: yes_or_no(row["inside"]),
    }
    for target in dict.fromkeys(row["target"] for row in used):
        of_target = [row for row in used if row["target"] == target]
        label = TARGET_NAMES[target] + (" (not comparable with loss)" if target == "perplexity" else "")
        visible = VISIBLE_ROWS if target == analysis.primary["target"] else VISIBLE_ROWS // 2
        content = table_by_column(of_target, columns)
        section.add(folded_if_long(f"Exponents of {label}", content, len(of_target), visible))
    is_marked = any(not row["same_size_definition"] for row in used)
    outside = [row for row in used if row["outside_range"]]
    sources = dict.fromkeys(f"{row['reference']}: {row['source']}" for row in rows)
    return section.add(
        "† The reference is not known to count N in this way." if is_marked else "",
        _outside(outside, "‡ Read outside the range it was fitted to"),
        _outside(left_out, "Left out, because the runs are far outside the fitted range"),
        f"Sources: {escape_markdown('; '.join(sources))}.",
    )


def _outside(rows: Sequence[Entry], heading: str) -> str:
    """For each reference the ranges of its fit and of the families that leave them."""
    families: dict[str, list[str]] = {}
    for row in rows:
        for variable, spans in row["outside_range"].items():
            reference = f"{row['reference']} ({variable} from {_span(variable, spans['fitted'])})"
            families.setdefault(reference, []).append(f"{family_name(row)} has {_span(variable, spans['table'])}")
    parts = [f"{reference}: {join_names(list(dict.fromkeys(names)))}" for reference, names in families.items()]
    return f"{heading}: {'; '.join(parts)}." if parts else ""


def _span(variable: str, ends: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(amount(variable, end) for end in ends))


class Panel(NamedTuple):
    """Exponents that may be compared: same target, same variable, same N."""

    title: str
    rows: list[tuple[Entry, str]]
    references: list[tuple[str, float]]

    @property
    def height(self) -> float:
        """Inches of its rows."""
        return 0.17 * (len(self.rows) + 0.8 * len({e["law"] for e, _ in self.rows}) + len(self.references))


def exponents_figure(analysis: Directory) -> Figure | None:
    """Forest plot: one panel for each target and variable, stacked in two columns."""
    panels = _panels(analysis)
    if not panels:
        return None
    rows = [row for panel in panels for row in panel.rows]
    num_unidentified = sum(not is_identified(entry, name) for entry, name in rows)
    unidentified = f": {num_unidentified} of {len(rows)} are not identified" if num_unidentified else ""
    title = f"Exponents by law and variable{unidentified}. Compare within a law and a panel only"
    margins = Margins(left=0.95 if len(analysis.families) > 1 else 1.45, right=1.4, bottom=0.4, top=0.35)
    width, heights = 6.0, [0.0] * min(2, len(panels))
    corners = []
    for panel in panels:
        column = heights.index(min(heights))
        corners.append((column * width + margins.left, heights[column] + margins.top))
        heights[column] += margins.top + margins.bottom + panel.height
    figure, head = blank_figure(title, width * len(heights), max(heights), analysis.families)
    inner_width = width - margins.left - margins.right
    for panel, (left, top) in zip(panels, corners, strict=True):
        _forest(axes_at(figure, left, head + top, inner_width, panel.height), analysis, panel)
    return figure


def _panels(analysis: Directory) -> list[Panel]:
    main = analysis.primary
    sizes = dict.fromkeys([main["size"], *(entry["size"] for entry in analysis.fits if entry["size"])])
    variables = dict.fromkeys([*VARIABLES, *(v for entry in analysis.fits for v in entry["variable_of"].values())])
    quantities = [(main["target"], "N", size) for size in sizes]
    quantities += [(main["target"], variable, main["size"]) for variable in variables if variable != "N"]
    quantities += [("perplexity", "N", main["size"])] if main["target"] != "perplexity" else []
    panels = []
    for target, variable, size in quantities:
        rows = [
            (entry, name)
            for entry in analysis.entries(target=target, size=size)
            for name in entry["exponents"]
            if entry["fitted"] and entry["variable_of"][name] == variable
        ]
        if rows:
            label = "PERPLEXITY, not loss" if target == "perplexity" else target.replace("_", " ")
            references = _reference_exponents(analysis, target, size) if variable == "N" else []
            panels.append(Panel(f"exponent of {label}, in {axis_name(variable, size)}", rows, references))
    return panels


def _reference_exponents(analysis: Directory, target: str, size: str) -> list[tuple[str, float]]:
    """Exponents that `power` finds for published laws at this table's sizes; means over families that differ."""
    values: dict[str, list[float]] = {}
    for row in analysis.comparison["references"]:
        is_same = row["target"] == target and row["size"] == size and row["same_size_definition"]
        if is_same and is_number(row["reference_exponent"]):
            outside = " (outside its range)" if row["outside_range"] else ""
            values.setdefault(row["reference"] + outside, []).append(row["reference_exponent"])
    return [(name, float(np.mean(exponents))) for name, exponents in values.items()]


def _forest(axis: Axes, analysis: Directory, panel: Panel) -> None:
    low, high = _limits(panel)
    y, ticks = 0.0, []
    for law in fitted_laws([entry for entry, _ in panel.rows]):
        group = [(entry, name) for entry, name in panel.rows if entry["law"] == law]
        ticks.append((y + (len(group) - 1) / 2, f"{law}{chr(10) if len(group) > 1 else ' '}({group[0][1]})"))
        for entry, name in group:
            _forest_row(axis, analysis, entry, name, y, (low, high))
            y += 1
        for reference, value in panel.references if law == "power" else ():
            axis.plot(value, y, ls="", marker="d", color=GREY, ms=4.5)
            text_beside(axis, y, f"{reference}: {format_number(value, 3)}", color="#666666")
            y += 1
        y += 0.8
    axis.set_ylim(y - 0.3, -0.8)
    axis.set_xlim(low, high)
    axis.set_yticks([at for at, _ in ticks], labels=[law for _, law in ticks])
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.set_title(panel.title)


def _limits(panel: Panel) -> tuple[float, float]:
    """Limits that show the identified exponents; intervals that reach further end in an arrow."""
    shown = [(e["params"][n], *e["ci95"][n]) for e, n in panel.rows if is_identified(e, n)]
    if not shown:
        return 0.0, 1.0
    centres = [value for value, _, _ in shown] + [value for _, value in panel.references]
    high = max(centres + [min(end, 2 * max(centres)) for _, _, end in shown if is_number(end)])
    low = min([0.0, *(max(end, -0.5 * high) for _, end, _ in shown if is_number(end))])
    return low - 0.03 * high, 1.06 * high


def _forest_row(axis: Axes, analysis: Directory, entry: Entry, name: str, y: float, limits: Sequence[float]) -> None:
    family, identified = entry["family"], is_identified(entry, name)
    colour, marker = analysis.colour(family) if identified else GREY, analysis.marker(family)
    low, high = (end if is_number(end) else limit for end, limit in zip(entry["ci95"][name], limits, strict=True))
    axis.plot(
        np.clip([low, high], limits[0], limits[1]),
        [y, y],
        color=colour,
        lw=1.5,
        ls="-" if identified else ":",
        clip_on=False,
    )
    for is_beyond, limit, arrow in ((low <= limits[0], limits[0], "<"), (high >= limits[1], limits[1], ">")):
        if is_beyond:
            axis.plot(limit, y, marker=arrow, color=colour, ms=4, clip_on=False)
    value = entry["params"].get(name)
    if identified:
        axis.plot(value, y, marker=marker, color=colour, ms=5, zorder=3)
        text_beside(axis, y, with_interval(value, entry["ci95"][name], 3), color=INK)
        return
    if is_number(value) and limits[0] < value < limits[1]:
        axis.plot(value, y, marker=marker, mec=colour, mfc="white", ms=4.5, zorder=3)
    text_beside(axis, y, "not identified", color="#777777", style="italic")
