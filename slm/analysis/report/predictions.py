"""Sections on what the laws predict: runs that were not made, given parameters, and the gain of doubling N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, folded, table, table_by_column
from slm.report.style import INK, Figure, Margins, log_axis, panels
from slm.runtime.words import (
    NO_VALUE,
    amount,
    count,
    format_number,
    interval,
    is_number,
    join_names,
    p_value,
    with_interval,
)
from slm.scaling.describe import Entry, family_name, has_complete_lists

DEPENDENT = "Rows share runs or shapes and are not independent: p is too small."


def predictions_section(analysis: Directory) -> Section | None:
    """Results of runs that were not made: the range over the laws that are not rejected, then what each law says."""
    rows = [row for entry in analysis.entries() for row in _predictions(analysis, entry)]
    if not rows:
        return None
    target, ranges = analysis.target_name, analysis.comparison["envelopes"]
    columns = {
        "family": family_name,
        "at": lambda row: _point(row["at"]),
        f"{target} of one run, range": lambda row: (
            interval([row["low"], row["high"]]) if row["laws"] else "none: every law is rejected"
        ),
        "laws not rejected": lambda row: ", ".join(row["laws"]) or NO_VALUE,
    }
    interval_name = f"{analysis.level:.0%} interval of one run, under this law"
    header = ("family", "law", "at", "beyond the data by", f"predicted {target}", interval_name)
    return Section("Predictions").add(
        "These sizes lie beyond the data, and no run here has tested whether a law still holds there. Quote the range "
        "over all laws that the data do not reject: from the lowest to the highest end of their "
        f"{analysis.level:.0%} intervals of one more run. `open` is an end that one of them leaves open.",
        " ".join(_refusals(analysis.entries())),
        table_by_column(ranges, columns)
        if any(row["laws"] for row in ranges)
        else "The data reject every law here that predicts these sizes, so there is no range to quote.",
        folded("What each law says by itself", table(header, rows)),
    )


def prediction_lines(analysis: Directory) -> list[str]:
    """For the terminal: what the verdict's law predicts at the points that the settings state."""
    lines = []
    for entry in analysis.verdict_fits:
        for row in entry.get("predictions") or []:
            if row["stated"]:
                factors = beyond(row)
                where = f"beyond the data by {factors}" if factors else "within the data"
                predicted = with_interval(row["value"], [row["low"], row["high"]])
                lines.append(f"- {entry['family']} at {_place(entry, row)}: {predicted}, {where}")
    lines += [f"- {sentence}" for sentence in _refusals(analysis.verdict_fits)]
    return ["Predicted, if the law of the verdict still holds there:", *lines] if lines else []


def _predictions(analysis: Directory, entry: Entry) -> list[list[str]]:
    weighed = analysis.comparison["weighed"].get(entry["law"]) or {}
    marks = [] if entry["identified"] else ["not identified"]
    marks += ["**rejected by the data**"] if weighed.get("tenable") is False else []
    law = entry["law"] + (f" ({', '.join(marks)})" if marks else "")
    return [
        [
            *(family_name(entry), law, _place(entry, row), beyond(row) or "within"),
            *(format_number(row["value"]), interval([row["low"], row["high"]])),
        ]
        for row in entry.get("predictions") or []
    ]


def _refusals(entries: Sequence[Entry]) -> list[str]:
    """A sentence for each law and point that lacks a variable of the law."""
    left_out = [(entry["law"], row) for entry in entries for row in entry.get("not_predicted") or []]
    points = {(law, _point(row["point"])): join_names(row["lacks"]) for law, row in left_out}
    return [f"Nothing is predicted at {at} by {law}, which needs {lacks} too." for (law, at), lacks in points.items()]


def _place(entry: Entry, row: Entry) -> str:
    """The point of a prediction, and which of its variables the law does not have."""
    ignored = f" ({join_names(row['ignored'])} is not in this law)" if row["ignored"] else ""
    return _point({variable: row[variable] for variable in entry["range"] if variable in row}) + ignored


def _point(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{variable} = {amount(variable, value)}" for variable, value in values.items())


def beyond(row: Entry) -> str:
    """By what factor a prediction lies beyond the fitted rows, in each variable; empty if it lies within them."""
    factors = ((variable, factor) for variable, factor in row["beyond"].items() if is_number(factor))
    return ", ".join(f"{variable} {format_number(factor, 3)}x" for variable, factor in factors if factor > 1 + 1e-7)


def given_section(analysis: Directory) -> Section | None:
    """Published parameters against these rows."""
    rows = _tests(analysis)
    if not rows:
        return None
    columns: Columns = {
        "family": family_name,
        "law": itemgetter("law"),
        "likelihood ratio": lambda row: format_number(row["statistic"]),
        "degrees of freedom": lambda row: NO_VALUE if row["refused"] else str(row["df"]),
        "p": lambda row: p_value(row["p"]),
        "by": lambda row: row["refused"] or row["method"],
    }
    is_shared = any(row["independent"] is False for row in rows)
    return Section("Given parameters").add(
        f"The best fit with {_given(rows)} against the free one: twice the difference of their log likelihoods. "
        "Residuals are assumed to be normal under least squares, and under Huber's loss to have the density "
        "proportional to exp(-loss/s), each with its own best scale.",
        table_by_column(rows, columns),
        DEPENDENT if is_shared else "",
    )


def given_lines(analysis: Directory) -> list[str]:
    """For the terminal: given parameters against the free fit of every law that has them."""
    rows = _tests(analysis)
    lines = [f"The best fit with {_given(rows)} against the free one:"] if rows else []
    for row in rows:
        ratio = f"likelihood ratio {format_number(row['statistic'])}, df = {row['df']}"
        outcome = row["refused"] or f"{ratio}, p {p_value(row['p'], equals=True)} ({row['method']})"
        lines.append(f"  {row['family']}, {row['law']}: {outcome}")
    return [*lines, DEPENDENT] if any(row["independent"] is False for row in rows) else lines


def _tests(analysis: Directory) -> list[Entry]:
    """The tests of given parameters, each with the keys of its fit."""
    return [entry | entry["test"] for entry in analysis.entries() if entry.get("test")]


def _given(rows: Sequence[Entry]) -> str:
    return ", ".join(f"{name} = {format_number(value)}" for name, value in rows[0]["given"].items())


def doubling_section(analysis: Directory) -> Section | None:
    """What doubling N gains."""
    by_family = {family_name(entry): _doublings(entry) for entry in analysis.verdict_fits}
    all_rows = [row for rows in by_family.values() for row in rows]
    if not all_rows:
        return None
    ends = [row for rows in by_family.values() for row in (rows if len(rows) < 2 else (rows[0], rows[-1]))]
    names_without = [name for name, rows in by_family.items() if not rows]
    target = analysis.target_name
    header = ("family", "from N", f"{target} gained by doubling N", "measured between sizes", "twice N is")
    return Section("Gain of doubling").add(
        f"The {target} at N less that at 2N along the law, with its {analysis.level:.0%} interval. The gain falls with "
        "size by the same rule everywhere, so no size is a knee or a sweet spot; where to stop depends on what a "
        "parameter costs.",
        table(header, ends),
        folded("From every size", table(header, all_rows)) if len(all_rows) > len(ends) else "",
        f"No gain is given for {join_names(names_without)}, whose fit has no band." if names_without else "",
        analysis.figure(
            "doubling",
            "Gain of doubling N from each size that was run, with its band. Hollow: twice the size lies beyond the "
            "data. Crosses: measured, where two sizes are about a factor of two apart.",
        ),
    )


def _doublings(entry: Entry) -> list[list[str]]:
    doubling = entry.get("doubling") or {}
    columns = [doubling.get(name) or [] for name in ("x", "gain", "low", "high", "measured", "beyond")]
    return [
        [
            family_name(entry),
            count(x),
            with_interval(gain, [low, high], 3),
            format_number(measured, 3),
            "beyond the data" if is_beyond else "within the data",
        ]
        for x, gain, low, high, measured, is_beyond in zip(*columns, strict=True)
        if is_number(gain)
    ]


def doubling_figure(analysis: Directory) -> Figure | None:
    """Gain of doubling N against N, along the law and as measured."""
    entries = [entry for entry in analysis.verdict_fits if has_complete_lists(entry.get("doubling"), "x", "gain")]
    if not entries:
        return None
    target = analysis.target_name
    gains = [gain for entry in entries for gain in entry["doubling"]["gain"]]
    fall = f"{target} falls by {format_number(min(gains), 2)} to {format_number(max(gains), 2)}, less at larger N"
    title = f"Gain of doubling N: {fall if min(gains) > 0 else f'fall of {target} along the law'}"
    margins = Margins(left=1.05, top=0.15)
    figure, (axis,) = panels(1, title, columns=1, width=6.4, height=3.6, margins=margins, families=analysis.families)
    ends, sizes = list(gains), []
    for entry in entries:
        colour, marker = analysis.colour(entry["family"]), analysis.marker(entry["family"])
        columns = ("x", "gain", "low", "high", "measured")
        x, gain, low, high, measured = (np.array(entry["doubling"][name], float) for name in columns)
        is_beyond = np.array(entry["doubling"]["beyond"], bool)
        axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(x, gain, color=colour, lw=1.6)
        for fill, is_chosen in ((colour, ~is_beyond), ("white", is_beyond)):
            axis.plot(x[is_chosen], gain[is_chosen], ls="", marker=marker, ms=5, mec=colour, mfc=fill, mew=1.2)
        axis.plot(x, measured, ls="", marker="x", ms=5, color=colour)
        ends += [end for end in (*low, *high, *measured) if np.isfinite(end)]
        sizes += [*x]
    log_axis(axis.xaxis, min(sizes) / 1.1, max(sizes) * 1.1)
    # A band that the data hardly determine would squeeze the gains into a strip.
    reach = max(gains) - min(*gains, 0)
    bottom, top = max(min(*ends, 0), min(*gains, 0) - reach), min(max(ends), max(gains) + reach)
    axis.set_ylim(bottom - 0.05 * reach, top + 0.05 * reach)
    axis.axhline(0, color=INK, lw=0.8)
    axis.set_xlabel(analysis.axis_name("N"))
    axis.set_ylabel(f"{target} at N less {target} at 2N")
    return figure
