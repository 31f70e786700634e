"""The charts of an analysis in the tracker: loss against N, exponents, differences of exponents, worth in parameters.

A line is named TABLE: NAME, so that charts of several analyses can be read when the tracker shows them together.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from slm.analysis.report.directory import Directory
from slm.runtime.words import count
from slm.scaling.describe import is_identified
from slm.tracking import Chart, Rows

Interval = tuple[str, Any, Any, Any]  # name, value, low, high; an end is None if it is open


def charts(analysis: Directory) -> dict[str, Chart]:
    """Return name -> chart, without charts that have no data."""
    law, level = analysis.verdict_basis["law"], f"{analysis.level:.0%} intervals"
    target = analysis.target_name
    worths = [(f"{a} in {b}", factor, low, high) for a, b, factor, low, high, _ in worth_rows(analysis)[1]]
    drawn = {
        "loss_against_N": _loss_chart(analysis),
        "exponents": _forest(analysis, f"Exponents of {target} under {law}, {level}", "exponent", _exponents(analysis)),
        "differences": _forest(analysis, f"Differences of exponents, {level}", "difference", _differences(analysis)),
        "worth": _forest(analysis, f"Factor on N with the same {target}, {level}", "factor on N", worths),
        "level_differences": _forest(
            analysis, f"Differences in {target} at the same sizes, {level}", "difference", _level_differences(analysis)
        ),
    }
    return {name: chart for name, chart in drawn.items() if chart.rows[1]}


def worth_rows(analysis: Directory) -> Rows:
    """One row per pair of families: the factor on N with which a model of `b` matches a model of `a`.

    Pairs at the same sizes have a factor without a law (`source` is `same sizes`, at the middle size). Without any such
    pair, the factors of one law with N rescaled per family are given (`source` is the law).
    """
    pairs = [(pair["a"], pair["b"], pair["worth"], "same sizes") for pair in analysis.comparison["paired"]["pairs"]]
    if not pairs:
        efficiency = (analysis.verdict_comparison or {}).get("efficiency") or []
        law = analysis.verdict_basis["law"]
        pairs = [(row["family"], row["reference"], row, law) for row in efficiency if row["variable"] == "N"]
    ends = ("factor", "low", "high")
    rows = [[a, b, *(worth[key] for key in ends), source] for a, b, worth, source in pairs]
    return ["a", "b", *ends, "source"], [row for row in rows if row[2] is not None]


def level_rows(analysis: Directory) -> Rows:
    """One row per family, N and tokens: the mean over seeds, its standard error (None for one run), and the runs."""
    target = analysis.verdict_basis["target"]
    cells = analysis.comparison["levels"]["cells"]
    rows = [[*(cell[key] for key in ("family", "N", "tokens", "mean", "se")), len(cell["losses"])] for cell in cells]
    return ["family", "N", "tokens", target, "se", "runs"], rows


def _loss_chart(analysis: Directory) -> Chart:
    """Means over seeds against N on log axes, one line per family and, if they vary, number of tokens."""
    columns, cells = level_rows(analysis)
    target = columns[3]
    several_budgets = len({cell[2] for cell in cells}) > 1
    rows = []
    for family, N, tokens, mean, *_ in cells:
        line = f"{_prefix(analysis)}{family}" + (f", {count(tokens)} tokens" if several_budgets else "")
        rows.append([line, N, mean, math.log10(N), math.log10(mean)])
    axes = ["log10 N", f"log10 {target}"]
    title = f"{analysis.target_name} against N, log axes"
    return Chart(title, (["line", "N", target, *axes], rows), x=axes[0], y=axes[1], line="line")


def _forest(analysis: Directory, title: str, quantity: str, intervals: Iterable[Interval]) -> Chart:
    """A horizontal line from `low` over the value to `high` for each interval, the first at the top."""
    rows: list[Sequence[Any]] = []
    for index, (name, value, low, high) in enumerate(intervals):
        points = [point for point in (low, value, high) if point is not None]
        rows += [[f"{_prefix(analysis)}{name}", point, -index] for point in points]
    return Chart(title, (["line", quantity, "row"], rows), x=quantity, y="row", line="line")


def _prefix(analysis: Directory) -> str:
    name = analysis.comparison["table"]
    return f"{name}: " if name else ""


def _exponents(analysis: Directory) -> list[Interval]:
    return [
        (f"{entry['family']} {name}", entry["params"][name], *entry["ci95"][name])
        for entry in analysis.verdict_fits
        for name in entry["exponents"]
        if is_identified(entry, name)
    ]


def _differences(analysis: Directory) -> list[Interval]:
    pairs = analysis.comparison["verdict"]["pairs"]
    return [(_name(pair, pair["exponent"]), pair["delta"], pair["ci_low"], pair["ci_high"]) for pair in pairs]


def _level_differences(analysis: Directory) -> list[Interval]:
    means = [(pair, pair["mean"]) for pair in analysis.comparison["levels"]["pairs"] if pair["mean"]]
    return [(_name(pair), mean["difference"], mean["low"], mean["high"]) for pair, mean in means]


def _name(pair: dict[str, Any], quantity: str = "") -> str:
    return f"{pair['a']} - {pair['b']} {quantity}".strip()
