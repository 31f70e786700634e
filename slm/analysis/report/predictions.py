"""Sections on predictions beyond the data, on tests of given parameter values, and on the gain of doubling N."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, folded, table, table_by_column
from slm.report.style import INK, Figure, Margins, draw_interval, log_axis, panels
from slm.runtime.words import NO_VALUE, amount, format_number, interval, is_number, join_names, p_value, with_interval
from slm.scaling.describe import Entry, family_name, has_complete_lists


def predictions_section(analysis: Directory) -> Section | None:
    """Predictions beyond the data: a range over the laws that are not rejected, and the prediction of each law."""
    rows = [row for entry in analysis.entries() for row in _prediction_rows(analysis, entry)]
    if not rows:
        return None
    target, ranges = analysis.target_name, analysis.comparison["envelopes"]
    columns = {
        "family": family_name,
        "point": lambda row: _point(row["at"]),
        f"range of {target} of a new run": lambda row: (
            interval([row["low"], row["high"]]) if row["laws"] else "none: every law is rejected"
        ),
        "laws not rejected": lambda row: ", ".join(row["laws"]) or NO_VALUE,
    }
    interval_name = f"{analysis.level:.0%} interval of a new run, under this law"
    header = ("family", "law", "point", "beyond the data by", f"predicted {target}", interval_name)
    has_range = any(row["laws"] for row in ranges)
    no_range = "The data reject every law here that predicts these sizes, so there is no range to quote."
    return Section("Predictions").add(
        "No run here tests whether a law still holds at these sizes, which lie beyond the data. Quote the range over "
        "all laws that the data do not reject. The range is from the lowest to the highest end of the "
        f"{analysis.level:.0%} intervals of these laws for a new run; `open` means that the range has no such end.",
        " ".join(_refusals(analysis.entries())),
        table_by_column(ranges, columns) if has_range else no_range,
        folded("Prediction of each law", table(header, rows)),
    )


def prediction_lines(analysis: Directory) -> list[str]:
    """Lines for the terminal: the predictions of the verdict's law at the points given in the settings."""
    lines = []
    for entry in analysis.verdict_fits:
        for row in entry.get("predictions") or []:
            if row["stated"]:
                factors = _factors_beyond(row)
                where = f"beyond the data by {factors}" if factors else "within the data"
                predicted = with_interval(row["value"], [row["low"], row["high"]])
                lines.append(f"- {entry['family']} at {_predicted_point(entry, row)}: {predicted}, {where}")
    lines += [f"- {sentence}" for sentence in _refusals(analysis.verdict_fits)]
    return ["Predictions, if the law of the verdict still holds at these points:", *lines] if lines else []


def _prediction_rows(analysis: Directory, entry: Entry) -> list[list[str]]:
    assessment = analysis.comparison["weighed"].get(entry["law"]) or {}
    doubts = [] if entry["identified"] else ["not identified"]
    if assessment.get("tenable") is False:  # None: the law was not assessed
        doubts.append("**rejected by the data**")
    law = f"{entry['law']} ({', '.join(doubts)})" if doubts else entry["law"]
    rows = []
    for row in entry.get("predictions") or []:
        beyond = _factors_beyond(row) or "within"
        value, limits = format_number(row["value"]), interval([row["low"], row["high"]])
        rows.append([family_name(entry), law, _predicted_point(entry, row), beyond, value, limits])
    return rows


def _refusals(entries: Sequence[Entry]) -> list[str]:
    """One sentence for each law and point, if the point lacks a variable of the law."""
    left_out = [(entry["law"], row) for entry in entries for row in entry.get("not_predicted") or []]
    missing = {(law, _point(row["point"])): join_names(row["lacks"]) for law, row in left_out}
    return [f"{law} predicts nothing at {point}: it also needs {names}." for (law, point), names in missing.items()]


def _predicted_point(entry: Entry, row: Entry) -> str:
    """The point of a prediction, followed by the given variables that the law does not have."""
    ignored = f" ({join_names(row['ignored'])} is not in this law)" if row["ignored"] else ""
    return _point({variable: row[variable] for variable in entry["range"] if variable in row}) + ignored


def _point(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{variable} = {amount(variable, value)}" for variable, value in values.items())


def _factors_beyond(row: Entry) -> str:
    """The factor by which a prediction lies beyond the data, for each variable: `N 2.00x`; empty within the data."""
    factors = ((variable, factor) for variable, factor in row["beyond"].items() if is_number(factor))
    return ", ".join(f"{variable} {format_number(factor, 3)}x" for variable, factor in factors if factor > 1 + 1e-7)


def given_section(analysis: Directory) -> Section | None:
    """Tests whether the rows reject given parameter values, such as published ones."""
    rows = _given_tests(analysis)
    if not rows:
        return None
    columns: Columns = {
        "family": family_name,
        "law": itemgetter("law"),
        "likelihood ratio": lambda row: format_number(row["statistic"]),
        "degrees of freedom": lambda row: NO_VALUE if row["refused"] else str(row["df"]),
        "p": lambda row: p_value(row["p"]),
        "method": lambda row: row["refused"] or row["method"],
    }
    return Section("Given parameters").add(
        f"Each test compares the best fit with {_given_values(rows)} to the fit with all parameters free. The "
        "likelihood ratio is twice the difference of the two log likelihoods. Residuals are assumed to be normal under "
        "least squares, and to have a density proportional to exp(-loss/s) under Huber's loss, with a scale per fit.",
        table_by_column(rows, columns),
        *_dependence_warning(rows),
    )


def given_lines(analysis: Directory) -> list[str]:
    """Lines for the terminal: the tests of `given_section`."""
    rows = _given_tests(analysis)
    lines = [f"The best fit with {_given_values(rows)} against the fit with all parameters free:"] if rows else []
    for row in rows:
        ratio = f"likelihood ratio {format_number(row['statistic'])}, df = {row['df']}"
        outcome = row["refused"] or f"{ratio}, p {p_value(row['p'], with_equals=True)} ({row['method']})"
        lines.append(f"  {row['family']}, {row['law']}: {outcome}")
    return lines + _dependence_warning(rows)


def _given_tests(analysis: Directory) -> list[Entry]:
    """The tests of given parameters, each merged with the entry of its fit."""
    return [entry | entry["test"] for entry in analysis.entries() if entry.get("test")]


def _dependence_warning(tests: Sequence[Entry]) -> list[str]:
    is_dependent = any(test["independent"] is False for test in tests)
    return ["Rows share runs or shapes, so they are not independent and p is too small."] if is_dependent else []


def _given_values(tests: Sequence[Entry]) -> str:
    return ", ".join(f"{name} = {format_number(value)}" for name, value in tests[0]["given"].items())


def doubling_section(analysis: Directory) -> Section | None:
    """How much doubling N lowers the target."""
    rows_by_family = {family_name(entry): _doubling_rows(entry) for entry in analysis.verdict_fits}
    all_rows = [row for rows in rows_by_family.values() for row in rows]
    if not all_rows:
        return None
    first_and_last = []
    for rows in rows_by_family.values():
        first_and_last += rows if len(rows) < 2 else [rows[0], rows[-1]]
    names_without = [name for name, rows in rows_by_family.items() if not rows]
    target = analysis.target_name
    header = ("family", "from N", f"gain in {target} by doubling N", "measured between two sizes", "2N is")
    return Section("Gain of doubling").add(
        f"The gain is the {target} at N minus the {target} at 2N along the law, with its {analysis.level:.0%} "
        "interval. The law is the same at all sizes, so the gain has no knee and no size is a sweet spot. Where "
        "to stop depends on what a parameter costs.",
        table(header, first_and_last),
        folded("From every size", table(header, all_rows)) if len(all_rows) > len(first_and_last) else "",
        f"No gain is given for {join_names(names_without)}, whose fit has no band." if names_without else "",
        analysis.figure(
            "doubling",
            f"Gain of doubling N from each size that was trained, along the law, with its {analysis.level:.0%} "
            "interval. Hollow marks: twice the size lies beyond the data. Crosses: gains measured between two sizes "
            "that differ by a factor of about two. Marks of one size are shifted sideways.",
        ),
    )


def _doubling_rows(entry: Entry) -> list[list[str]]:
    doubling = entry.get("doubling") or {}
    columns = [doubling.get(name) or [] for name in ("x", "gain", "low", "high", "measured", "beyond")]
    rows = []
    for x, gain, low, high, measured, is_beyond in zip(*columns, strict=True):
        if is_number(gain):
            where = "beyond the data" if is_beyond else "within the data"
            gain_text, measured_text = with_interval(gain, [low, high], 3), format_number(measured, 3)
            rows.append([family_name(entry), amount("N", x), gain_text, measured_text, where])
    return rows


def doubling_figure(analysis: Directory) -> Figure | None:
    """Gain of doubling N from each size: along the law, with its interval, and as measured between two sizes."""
    entries = [entry for entry in analysis.verdict_fits if has_complete_lists(entry.get("doubling"), "x", "gain")]
    if not entries:
        return None
    target = analysis.target_name
    gains = [gain for entry in entries for gain in entry["doubling"]["gain"]]
    title = f"Gain of doubling N: {target} along the law"
    if min(gains) > 0:
        title += f" falls by {format_number(min(gains), 2)} to {format_number(max(gains), 2)}, less at larger N"
    margins = Margins(left=0.8, top=0.15)
    figure, (axis,) = panels(1, title, ncols=1, width=7.6, height=3.9, margins=margins, families=analysis.families)
    limits = _gain_limits(entries)
    axis.axhline(0, color=INK, lw=0.8)
    # Marks of one size are shifted sideways, by family, so that they do not overlap.
    shifts = [1.06 ** (index - (len(entries) - 1) / 2) for index in range(len(entries))]
    for entry, shift in zip(entries, shifts, strict=True):
        colour, marker = analysis.colour(entry["family"]), analysis.marker(entry["family"])
        columns = ("x", "gain", "low", "high", "measured", "beyond")
        for x, gain, low, high, measured, is_beyond in zip(*map(entry["doubling"].get, columns), strict=True):
            if is_number(low) or is_number(high):
                draw_interval(axis, (low, high), x * shift, limits, vertical=True, color=colour, lw=1.3)
            axis.plot(x * shift, gain, marker=marker, ms=5, mec=colour, mfc="white" if is_beyond else colour, mew=1.2)
            if is_number(measured):
                axis.plot(x * shift, measured, ls="", marker="x", ms=5.5, mew=1.6, color=colour, zorder=3)
    sizes = [size for entry in entries for size in entry["doubling"]["x"]]
    log_axis(axis.xaxis, min(sizes) * min(shifts) / 1.1, max(sizes) * max(shifts) * 1.1)
    axis.set_ylim(*limits)
    axis.set_xlabel(analysis.axis_name("N"))
    axis.set_ylabel(f"{target} at N minus {target} at 2N")
    return figure


def _gain_limits(entries: Sequence[Entry]) -> tuple[float, float]:
    """Limits that show zero and all gains, also measured ones. Intervals extend this range to three times its width."""
    values = {
        name: [value for entry in entries for value in entry["doubling"][name] if is_number(value)]
        for name in ("gain", "measured", "low", "high")
    }
    gains = [0.0, *values["gain"], *values["measured"]]
    lowest, highest = min(gains), max(gains)
    reach = highest - lowest
    bottom = max(min([lowest, *values["low"]]), lowest - reach)
    top = min(max([highest, *values["high"]]), highest + reach)
    return bottom - 0.05 * reach, top + 0.05 * reach
