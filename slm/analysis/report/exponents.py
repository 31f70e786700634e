"""Two sections, on exponents and on published laws over the same sizes, and a forest plot of both."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slm.analysis.report.directory import Directory
from slm.analysis.report.selection import fit_table
from slm.report.markdown import VISIBLE_ROWS, Section, bullets, folded_if_long, table_by_column
from slm.report.style import (
    GREY,
    INK,
    Axes,
    Figure,
    Margins,
    axes_at,
    blank_figure,
    draw_interval,
    short_name,
    text_beside,
)
from slm.runtime.words import (
    SIZE_IN_LABELS,
    amount,
    axis_name,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    size_words,
    target_name,
    with_interval,
    yes_or_no,
)
from slm.scaling.describe import Entry, family_name, fitted_laws, is_identified, notes
from slm.scaling.forms import VARIABLES


def exponents_section(analysis: Directory) -> Section:
    """The fits under the law of the verdict, followed by fits with another law, another N or another target."""
    basis = analysis.verdict_basis
    other_laws = [entry for entry in analysis.entries() if entry["law"] != basis["law"]]
    section = Section("Exponents").add(
        f"Fits of {analysis.target_name}, where N counts {size_words(basis['size'])}, with {analysis.level:.0%} "
        "intervals. A steeper law has a larger exponent. Compare exponents only within one law: an exponent of a law "
        "with a floor and one of a law without a floor are different quantities, and so are exponents in N, D and C.",
        fit_table(analysis.verdict_fits),
        bullets(notes(analysis.verdict_fits)),
        _without_smallest(analysis.verdict_fits),
        _other_fits("Exponents of other laws", other_laws, visible=VISIBLE_ROWS),
    )
    for size in dict.fromkeys(fit["size"] for fit in analysis.fits if fit["size"] not in (None, "", basis["size"])):
        entries = [entry for entry in analysis.entries(size=size) if entry["size"] == size]
        section.add(_other_fits(f"Exponents where N counts {size_words(size)}", entries))
    for target in dict.fromkeys(fit["target"] for fit in analysis.fits if fit["target"] != basis["target"]):
        if target == "perplexity":
            section.add(*_perplexity(analysis))
        else:
            section.add(_other_fits(f"Exponents of {target_name(target)}", analysis.entries(target=target)))
    caption = (
        "The same for other laws, targets and counts of N. Compare only within a panel. A law without any identified "
        "exponent is left out."
    )
    return section.add(analysis.figure("other_exponents", caption))


def _other_fits(heading: str, entries: Sequence[Entry], visible: int = VISIBLE_ROWS // 2) -> str:
    content = "\n\n".join(filter(None, (fit_table(entries), bullets(notes(entries)))))
    return folded_if_long(heading, content, sum(entry["fitted"] for entry in entries), visible)


def _perplexity(analysis: Directory) -> list[str]:
    law = analysis.verdict_basis["law"]
    warning = (
        f"**Perplexity** is the exponential of loss. Its exponents do not compare with those of {analysis.target_name} "
        "above, nor with published exponents of loss. The published laws below are converted to perplexity."
    )
    same_law = analysis.entries(law=law, target="perplexity")
    others = [entry for entry in analysis.entries(target="perplexity") if entry["law"] != law]
    return [warning, fit_table(same_law), _other_fits("Exponents of perplexity in other laws", others)]


def _without_smallest(entries: Sequence[Entry]) -> str:
    name = entries[0]["exponents"][0]
    changes = []
    for entry in entries:
        refit = (entry.get("without_smallest") or {}).get(name)
        if is_number(refit) and is_identified(entry, name) and entry["floor"] is None:
            value = format_number(entry["params"][name])
            changes.append(f"{family_name(entry)} {format_number(refit)} (instead of {value})")
    return f"Without the smallest size, {name} would be: {', '.join(changes)}." if changes else ""


def references_section(analysis: Directory) -> Section | None:
    """The exponents that published laws imply at the sizes of the runs."""
    rows = analysis.comparison["references"]
    if not rows:
        return None
    section = Section("Published laws over the same sizes").add(
        "Each published law is evaluated at the sizes (and tokens) of these runs, in the N it was fitted with. The "
        "slope of a straight line in logs through these values is the exponent that `power` would find if these models "
        "followed the published law. Compare only slopes: the level depends on the text and the tokenizer."
    )
    used = [row for row in rows if not row["left_out"]]
    left_out = [row for row in rows if row["left_out"]]
    columns = {
        "reference": lambda row: escape_markdown(row["reference"]) + (" ‡" if row["outside_range"] else ""),
        "family": family_name,
        "N": lambda row: SIZE_IN_LABELS.get(row["size"], "") + ("" if row["same_size_definition"] else " †"),
        "exponent of `power`": lambda row: with_interval(row["exponent"], [row["ci_low"], row["ci_high"]]),
        "exponent of the published law": lambda row: format_number(row["reference_exponent"]),
        "ratio": lambda row: format_number(row["ratio"], 3),
        "inside the interval": lambda row: yes_or_no(row["inside"]),
    }
    for target in dict.fromkeys(row["target"] for row in used):
        same_target = [row for row in used if row["target"] == target]
        label = target_name(target) + (" (not comparable with loss)" if target == "perplexity" else "")
        visible = VISIBLE_ROWS if target == analysis.verdict_basis["target"] else VISIBLE_ROWS // 2
        content = table_by_column(same_target, columns)
        section.add(folded_if_long(f"Exponents of {label}", content, len(same_target), visible))
    has_other_size = any(not row["same_size_definition"] for row in used)
    sources = dict.fromkeys(f"{row['reference']}: {row['source']}" for row in rows)
    return section.add(
        "† The reference may count N differently." if has_other_size else "",
        _ranges(used, "‡ Evaluated outside the range that the law was fitted to"),
        _ranges(left_out, "Left out, because the runs are far outside the fitted range"),
        f"Sources: {escape_markdown('; '.join(sources))}.",
    )


def _ranges(rows: Sequence[Entry], heading: str) -> str:
    """For each published law evaluated outside its fitted range: this range, and the ranges of the families."""
    families: dict[str, list[str]] = {}
    for row in rows:
        for variable, ranges in row["outside_range"].items():
            reference = f"{row['reference']} ({variable} from {_range_text(variable, ranges['fitted'])})"
            family = f"{family_name(row)} has {_range_text(variable, ranges['table'])}"
            families.setdefault(reference, []).append(family)
    parts = [f"{reference}: {join_names(list(dict.fromkeys(texts)))}" for reference, texts in families.items()]
    return f"{heading}: {'; '.join(parts)}." if parts else ""


def _range_text(variable: str, ends: Sequence[float]) -> str:
    low, high = (amount(variable, end) for end in ends)
    return low if low == high else f"{low} to {high}"


class Panel(NamedTuple):
    """Exponents that may be compared: of one law and variable, with the same target and N."""

    title: str
    is_main: bool  # whether the verdict is about these exponents
    rows: list[tuple[Entry, str]]  # a fit, and the name of one of its exponents
    references: list[tuple[str, float, bool]]
    """The name of a published law, the exponent of `power` that it implies, whether its range has all runs."""

    @property
    def labels(self) -> list[str]:
        """The labels of the rows, from top to bottom."""
        return [*(short_name(entry["family"]) for entry, _ in self.rows), *(name for name, *_ in self.references)]


COLUMN_INCHES = 5.2
ROW_INCHES = 0.22


def exponents_figure(analysis: Directory) -> Figure | None:
    """A forest plot of the exponents on which the verdict is based: one panel for each variable of its law."""
    panels = [panel for panel in _panels(analysis) if panel.is_main]
    rows = [row for panel in panels for row in panel.rows]
    num_unidentified = sum(not is_identified(entry, name) for entry, name in rows)
    unidentified = f": {num_unidentified} of {len(rows)} are not identified" if num_unidentified else ""
    title = f"Exponents under {analysis.verdict_basis['law']}, with {analysis.level:.0%} intervals{unidentified}"
    return _forests(analysis, panels, title, 1)


def other_exponents_figure(analysis: Directory) -> Figure | None:
    """Forest plots of all other exponents: one panel for each law, variable and target with an identified exponent."""
    panels = [panel for panel in _panels(analysis) if not panel.is_main]
    panels = [panel for panel in panels if any(is_identified(entry, name) for entry, name in panel.rows)]
    title = f"Exponents under other laws, or in another variable or target, with {analysis.level:.0%} intervals"
    return _forests(analysis, panels, title, 2)


def _forests(analysis: Directory, panels: list[Panel], title: str, max_columns: int) -> Figure | None:
    """One panel below the other; with several columns, each panel is added to the shortest one."""
    if not panels:
        return None
    left = 0.3 + 0.075 * max(len(label) for panel in panels for label in panel.labels)
    margins = Margins(left=left, right=1.75, bottom=0.36, top=0.36)
    column_heights = [0.0] * min(max_columns, len(panels))  # inches
    places = []  # left and upper edge, and height of the axes
    for panel in panels:
        column = column_heights.index(min(column_heights))
        height = ROW_INCHES * (len(panel.labels) + 0.3)
        places.append((column * COLUMN_INCHES + margins.left, column_heights[column] + margins.top, height))
        column_heights[column] += margins.top + height + margins.bottom
    figure, head = blank_figure(title, COLUMN_INCHES * len(column_heights), max(column_heights))
    width = COLUMN_INCHES - margins.left - margins.right
    for panel, (x, y, height) in zip(panels, places, strict=True):
        axis = axes_at(figure, x, head + y, width, height)
        axis.set_title(panel.title, fontsize=8.5, x=(0.12 - margins.left) / width)  # from the edge of the column
        _draw_panel(axis, analysis, panel)
    return figure


def _panels(analysis: Directory) -> list[Panel]:
    """A panel for each law and variable, with the target and N of the verdict, another N, or perplexity."""
    main_law, main_target, main_size = (analysis.verdict_basis[key] for key in ("law", "target", "size"))
    sizes = dict.fromkeys([main_size, *(entry["size"] for entry in analysis.fits if entry["size"])])
    variables = [*VARIABLES, *(variable for entry in analysis.fits for variable in entry["variable_of"].values())]
    quantities = [(main_target, "N", size) for size in sizes]
    quantities += [(main_target, variable, main_size) for variable in dict.fromkeys(variables) if variable != "N"]
    if main_target != "perplexity":
        quantities.append(("perplexity", "N", main_size))
    panels = []
    for target, variable, size in quantities:
        fits = [entry for entry in analysis.entries(target=target, size=size) if entry["fitted"]]
        for law in fitted_laws(fits):
            same_law = [entry for entry in fits if entry["law"] == law]
            rows = [
                (fit, name) for fit in same_law for name in fit["exponents"] if fit["variable_of"][name] == variable
            ]
            if rows:
                is_main = (law, target, size) == (main_law, main_target, main_size)
                label = "PERPLEXITY (not loss)" if target == "perplexity" else target.replace("_", " ")
                title = f"{law}: exponent of {label} in {axis_name(variable, size)}"
                references = _reference_exponents(analysis, target, size) if (law, variable) == ("power", "N") else []
                panels.append(Panel(title, is_main, rows, references))
    return panels


def _reference_exponents(analysis: Directory, target: str, size: str) -> list[tuple[str, float, bool]]:
    """The exponents that published laws imply at the sizes of the runs, as means over families (sizes may differ)."""
    keys = {"target": target, "size": size, "same_size_definition": True}
    rows = [row for row in analysis.comparison["references"] if keys.items() <= row.items()]
    rows = [row for row in rows if is_number(row["reference_exponent"])]
    exponents = []
    for name in dict.fromkeys(row["reference"] for row in rows):
        same = [row for row in rows if row["reference"] == name]
        mean = float(np.mean([row["reference_exponent"] for row in same]))
        exponents.append((name, mean, not any(row["outside_range"] for row in same)))
    return exponents


def _draw_panel(axis: Axes, analysis: Directory, panel: Panel) -> None:
    limits = _limits(panel)
    for y, (entry, name) in enumerate(panel.rows):
        _draw_exponent(axis, analysis, entry, name, y, limits)
    for y, (_, value, is_inside) in enumerate(panel.references, len(panel.rows)):
        x, marker = (value, "d") if value < limits[1] else (limits[1], ">")
        axis.plot(x, y, marker=marker, color=GREY, ms=4.5, clip_on=False)
        text = format_number(value, 3) + ("" if is_inside else ", outside its range")
        text_beside(axis, y, text, x=1.03, size=7.5, color="#666666")
    axis.set_yticks(range(len(panel.labels)), labels=panel.labels)
    axis.set_ylim(len(panel.labels) - 0.4, -0.7)
    axis.set_xlim(limits)
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")


def _limits(panel: Panel) -> tuple[float, float]:
    """Limits that show the identified exponents. Intervals that reach further end in an arrow."""
    identified = [(entry, name) for entry, name in panel.rows if is_identified(entry, name)]
    if not identified:
        return 0.0, 1.0
    centres = [entry["params"][name] for entry, name in identified]
    lows, highs = ([entry["ci95"][name][side] for entry, name in identified] for side in (0, 1))
    # Intervals extend the upper limit to at most twice the largest exponent, the lower limit to no less than -upper/2.
    high = max(centres + [min(end, 2 * max(centres)) for end in highs if is_number(end)])
    # Published laws extend it by at most half, because they would squeeze the intervals.
    high = max([high, *(value for _, value, _ in panel.references if value < 1.5 * high)])
    low = min([0.0, *(max(end, -0.5 * high) for end in lows if is_number(end))])
    return low - 0.03 * high, 1.06 * high


def _draw_exponent(
    axis: Axes, analysis: Directory, entry: Entry, name: str, y: float, limits: tuple[float, float]
) -> None:
    """Draw the exponent, its interval, and both as text. Grey and dotted: the data do not identify the exponent."""
    identified, value = is_identified(entry, name), entry["params"].get(name)
    colour, marker = analysis.colour(entry["family"]) if identified else GREY, analysis.marker(entry["family"])
    draw_interval(axis, entry["ci95"][name], y, limits, color=colour, ls="-" if identified else ":")
    if is_number(value) and limits[0] < value < limits[1]:
        axis.plot(value, y, marker=marker, mec=colour, mfc=colour if identified else "white", ms=5, zorder=3)
    if identified:
        text_beside(axis, y, with_interval(value, entry["ci95"][name], 3), x=1.03, size=7.5, color=INK)
    else:
        text_beside(axis, y, "not identified", x=1.03, size=7.5, color="#777777", style="italic")
