"""Two sections: families compared at the same sizes, with a figure, and the power of the design."""

from collections.abc import Sequence

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, bullets, table, table_by_column
from slm.report.style import INK, PALETTE, Figure, label_left, log_axis, panels, short_name
from slm.runtime.words import NO_VALUE, format_number, is_number, p_value, percent, plural, with_interval
from slm.scaling.describe import Entry, has_complete_lists, pair_name

MAX_PANELS = 12


def paired_section(analysis: Directory) -> Section | None:
    """Slopes and levels of the log ratio of two families at the same sizes, for each pair."""
    paired = analysis.comparison["paired"]
    pairs = paired["pairs"]
    if not pairs:
        return None
    farthest = max((pair["farthest"] for pair in pairs if is_number(pair["farthest"])), default=0.0)
    moved = f" (sizes that differ by up to {farthest:.1%} are moved to a common size)" if farthest > 1e-3 else ""
    unmatched = [f"{pair_name(row)}: {row['reason']}" for row in paired["unmatched"]]
    return Section("Families at the same sizes").add(
        f"Each pair is compared at the sizes that both families have{moved}. Effects that both families have at a "
        "size cancel in the ratio of losses. Under any law, the slope of the log ratio against log N is the difference "
        "of the local exponents -dlog L / dlog N, and its height is the difference in level. One law with a floor and "
        "a constant factor on N between the families can also cause a slope: `p, any floor` tests this explanation and "
        "is the largest p over all floors that the runs do not reject. p-values are adjusted over the pairs (Holm).",
        _slope_table(pairs),
        _above_floor(pairs),
        analysis.figure(
            "ratios",
            f"Points: means over seeds. Line and band: the fitted ratio and its {analysis.level:.0%} interval. The "
            "scales of the panels differ.",
        ),
        _level_table(pairs, analysis.target_name),
        "Not paired:" if unmatched else "",
        bullets(unmatched),
    )


def difference(row: Entry) -> str:
    """The difference of two exponents with its interval."""
    return with_interval(row["delta"], [row["ci_low"], row["ci_high"]], 3)


def _slope_table(pairs: Sequence[Entry]) -> str:
    columns: Columns = {
        "pair": pair_name,
        "sizes": lambda pair: str(len(pair["sizes"])),
        "difference of exponents": difference,
        "p": lambda pair: p_value(pair["p_adjusted"]),
        "p, any floor": lambda pair: p_value(pair["p_any_floor_adjusted"]),
        "scatter of a ratio": lambda pair: percent(pair["spread"]),
        "detectable difference": lambda pair: format_number(pair["detectable"], 3),
    }
    return table_by_column(pairs, columns)


def _above_floor(pairs: Sequence[Entry]) -> str:
    """A table of differences of exponents above a shared floor, for pairs whose runs reject straight lines in logs."""
    rows = _pairs_above_floor(pairs)
    columns: Columns = {
        "pair": pair_name,
        "shared floor": lambda row: format_number(row["floor"], 4),
        "difference of exponents above the floor": difference,
        "p, any floor": lambda row: p_value(row["p_adjusted"]),
        "detectable difference": lambda row: format_number(row["detectable"], 3),
    }
    words = (
        "The runs reject straight lines in logs, so exponents are compared above a floor that both families share. "
        "The interval and p hold for every floor that the runs do not reject."
    )
    return f"{words}\n\n{table_by_column(rows, columns)}" if rows else ""


def _pairs_above_floor(pairs: Sequence[Entry]) -> list[Entry]:
    return [{**pair, **pair["above_floor"]} for pair in pairs if pair.get("above_floor")]


def _level_table(pairs: Sequence[Entry], target: str) -> str:
    """A table of the ratios of losses at the middle size, and of the factors on N that have the same effect."""

    def factor_text(factor: Entry) -> str:
        return with_interval(factor["factor"], [factor["low"], factor["high"]], 3)

    columns: Columns = {
        "pair": lambda pair: pair_name(pair).replace(" - ", " / "),
        f"difference in {target} at the middle size": lambda pair: percent(pair["level_above"], with_sign=True),
        "p": lambda pair: p_value(pair["level_p_adjusted"]),
        "equal to a factor on N of": lambda pair: factor_text(pair["worth"]),
        "factor at the smallest size": lambda pair: factor_text(pair["worth_by_size"][0]),
        "factor at the largest size": lambda pair: factor_text(pair["worth_by_size"][-1]),
    }
    return table_by_column(pairs, columns)


def ratios_figure(analysis: Directory) -> Figure | None:
    """The ratio of the losses of each pair of families against N, with the fitted line and its band."""
    pairs = analysis.comparison["paired"]["pairs"]
    pairs = [pair for pair in pairs if has_complete_lists(pair["band"], "centre", "low", "high")]
    if not pairs:
        return None
    max_p, target = 1 - analysis.level, analysis.target_name
    num_significant = sum(pair["p_adjusted"] < max_p for pair in pairs)
    title = f"Ratio of {target} at the same sizes: the slope differs from zero in {num_significant or 'none'} of "
    title += f"{plural(len(pairs), 'pair')} (Holm-adjusted)"
    if len(pairs) > MAX_PANELS:
        title += f"; the {MAX_PANELS} pairs with the smallest p are shown"
        pairs = sorted(pairs, key=lambda pair: pair["p"])[:MAX_PANELS]
    figure, axes = panels(len(pairs), title, ncols=3, width=3.15 if len(pairs) > 1 else 6.0, height=2.3)
    for axis, pair in zip(axes, pairs, strict=True):
        colour = PALETTE[1] if pair["p_adjusted"] < max_p else PALETTE[0]
        band, sizes = pair["band"], pair["sizes"]
        low, high, centre = (100 * np.expm1(np.array(band[name])) for name in ("low", "high", "centre"))  # percent
        axis.fill_between(band["N"], low, high, color=colour, alpha=0.2, lw=0)
        axis.plot(band["N"], centre, color=colour, lw=1.5)
        axis.plot(sizes, 100 * np.expm1(np.array(pair["log_ratio"])), "o", color=colour, ms=4, mec="white", mew=0.4)
        axis.axhline(0, color=INK, lw=0.8)
        log_axis(axis.xaxis, min(sizes) / 1.15, max(sizes) * 1.15)
        names = f"{short_name(pair['a'])} / {short_name(pair['b'])}"
        axis.set_title(f"{names}, p {p_value(pair['p_adjusted'], with_equals=True)}", fontsize=8.5)
        axis.set_xlabel(analysis.axis_name("N"))
    label_left(axes, f"difference in {target} (%)")
    return figure


def power_section(analysis: Directory) -> Section | None:
    """The differences of exponents that this design could have detected."""
    paired, under_law = analysis.comparison["paired"], analysis.verdict_comparison
    pairs = paired["pairs"]
    if under_law is None and not pairs:
        return None
    section = Section("Power of the design")
    power_under_law = (under_law or {}).get("power") or {}
    pairs_under_law = power_under_law.get("by_pair") or []
    if not any(is_number(row["detectable"]) for row in (*pairs, *pairs_under_law)):
        return section.add("This design could not have detected any difference: an exponent is not identified.")
    above_floor = _pairs_above_floor(pairs)
    comparisons = {"at the same sizes": pairs, "above a shared floor": above_floor, "under the law": pairs_under_law}
    rows = []
    for comparison, compared_pairs in comparisons.items():
        rows += [[pair_name(pair), comparison, format_number(pair["detectable"], 3)] for pair in compared_pairs]
    chance = f"{paired['power']:.0%}" if is_number(paired["power"]) else NO_VALUE
    advice = paired["advice"] if pairs else power_under_law.get("advice")
    return section.add(
        f"The detectable difference is the difference of exponents that a comparison finds in {chance} of cases, given "
        "the scatter of the pair and the adjustment over pairs. Smaller differences may exist although none was found.",
        table(("pair", "comparison", "detectable difference"), rows),
        f"To detect {format_number(advice['difference'], 3)} takes {advice['text']}." if advice else "",
    )
