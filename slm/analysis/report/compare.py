"""The section that compares families under one law: exponents, nested models, efficiency, pooling and ranking."""

from collections.abc import Sequence

from slm.analysis.report.directory import Directory
from slm.analysis.report.paired import difference
from slm.report.markdown import VISIBLE_ROWS, Columns, Section, bullets, folded, folded_if_long, table, table_by_column
from slm.report.style import INK, PALETTE, Axes, Figure, Margins, draw_interval, panels, short_name, text_beside
from slm.runtime.words import (
    LOSS_NAMES,
    NO_VALUE,
    count,
    escape_markdown,
    format_number,
    interval,
    is_number,
    join_names,
    p_value,
    plural,
    size_words,
    target_name,
    with_interval,
)
from slm.scaling.describe import Entry, family_name, pair_name

MODEL_NAMES = {
    "one_law": "one law for all families",
    "efficiency": "one law, with N (and D) rescaled per family",
    "shared_exponents": "shared exponents, other parameters per family",
    "separate": "a separate law per family",
}
UNITS = {"N": "parameter", "D": "training token", "C": "FLOP"}
MAX_FACTOR_RANGE = 100  # a factor is shown only if the ends of its interval differ by at most this factor


def comparison_section(analysis: Directory) -> Section:
    """Compare families under the law of the verdict, then under other laws, and rank them."""
    section = Section("Comparison of families under one law")
    comparison = analysis.verdict_comparison
    if comparison is None:
        why = "There is one family" if len(analysis.families) == 1 else "Fewer than two families could be fitted"
        return section.add(f"{why}, so there is nothing to compare.")
    law = comparison["law"]
    others = [other for name, other in analysis.comparison["laws"].items() if name != law]
    left_out = escape_markdown(join_names(comparison["left_out"] or []))
    return section.add(
        f"The law is {analysis.equation(law)} (`{law}`)."
        + (f" Left out, because their fits failed or an exponent is not identified: {left_out}." if left_out else ""),
        _equality_test(comparison),
        _pair_table(comparison),
        analysis.figure(
            "differences",
            f"Differences of exponents with {analysis.level:.0%} intervals (not adjusted), from separate fits of each "
            "family. Arrows: the interval is open.",
        ),
        _model_table(comparison),
        _models_explained(comparison),
        bullets(_efficiency(comparison, analysis.level)),
        _pooled(analysis, comparison),
        folded(f"Test of equal exponents under {plural(len(others), 'other law')}", _joint_tests(others)),
        *_ranking(analysis),
    )


def _equality_test(comparison: Entry) -> str:
    tests = [f"p {p_value(test['p'], with_equals=True)} for {name}" for name, test in comparison["joint"].items()]
    if not tests:
        return "No exponent is identified in two families, so none is compared."
    common_range = (comparison["common_range"] or {}).get("range")
    span = f"{count(common_range[0])} to {count(common_range[1])}" if common_range else ""
    return (
        f"Welch's test that all families have the same exponent, with a scatter per family: {', '.join(tests)}."
        + (f" Fits are over the sizes that all families span, {span}." if span else "")
        + " The intervals and p-values of the pairs use Welch's method as well."
    )


def _pair_table(comparison: Entry) -> str:
    columns: Columns = {
        "pair": pair_name,
        "exponent": lambda row: row["exponent"],
        "difference": lambda row: difference(row) if row["identified"] else "not identified",
        "p": lambda row: p_value(row["p"]),
        "Holm-adjusted p": lambda row: p_value(row["p_adjusted"]),
        "Holm-adjusted p, any floor": lambda row: p_value(row["p_any_floor_adjusted"]),
    }
    return table_by_column(comparison["pairs"], columns)


def _model_table(comparison: Entry) -> str:
    tests = {test["restricted"]: test for test in comparison["tests"] if test["wider"] == "separate"}
    columns: Columns = {
        "model": lambda row: MODEL_NAMES[row["model"]] + ("" if row["converged"] else " (did not converge)"),
        "parameters": lambda row: str(row["parameters"]),
        "AICc": lambda row: format_number(row["aicc"]),
        "AICc above the best": lambda row: format_number(row["aicc_above_best"], 3),
        "LR": lambda row: format_number(row.get("statistic"), 3),
        "df": lambda row: str(row.get("df", NO_VALUE)),
        "calibrated p": lambda row: p_value(row.get("p"), row.get("replicates")),
        "simulations": lambda row: str(row.get("replicates") or NO_VALUE),
        "chi-square p": lambda row: p_value(row.get("p_chi2")),
    }
    return table_by_column([tests.get(model["model"], {}) | model for model in comparison["models"]], columns)


def _models_explained(comparison: Entry) -> str:
    if not comparison["independent"]:
        return "Rows share runs or shapes, so no likelihood ratio is shown: it would treat them as independent."
    explanation = (
        "LR is the likelihood ratio against separate laws. `calibrated p` comes from data simulated under the "
        "restricted model with each family's own scatter, because `chi-square p` is too small with few runs."
    )
    tests = [test for test in comparison["tests"] if test["restricted"] == "one_law" and test["wider"] != "separate"]
    if not tests:
        return explanation
    test = tests[0]
    p = p_value(test["p"], test["replicates"], with_equals=True)
    ratio = format_number(test["statistic"], 3)
    return (
        f"{explanation} One law for all families against one law with N (and D) rescaled per family: LR {ratio}, p {p}."
    )


def _efficiency(comparison: Entry, level: float) -> list[str]:
    """What a parameter or token of each family is worth, and whether the runs reject the model behind these factors."""
    sentences = []
    for row in comparison["efficiency"] or []:
        unit = UNITS.get(row["variable"], row["variable"])
        low, high = row["low"], row["high"]
        is_narrow = is_number(low) and is_number(high) and low > 0 and high / low <= MAX_FACTOR_RANGE
        factor = with_interval(row["factor"], [low, high], 3) if is_narrow else "an unknown number of"
        reference = escape_markdown(row["reference"])
        sentences.append(f"One {unit} of {family_name(row)} is worth {factor} {unit}s of {reference}.")
    tests = {test["restricted"]: test for test in comparison["tests"] if test["wider"] == "separate"}
    test = tests.get("efficiency") or tests.get("shared_exponents")
    if sentences and test and is_number(test["p"]):
        outcome = "is rejected, so use the factors only as a summary" if test["p"] < 1 - level else "is not rejected"
        sentences.append(
            f"The model behind these factors (families differ only by a factor on size and data) {outcome} "
            f"(p {p_value(test['p'], test.get('replicates'), with_equals=True)})."
        )
    return sentences


def _pooled(analysis: Directory, comparison: Entry) -> str:
    rows = [{"exponent": name, **mean} for name, mean in (comparison["pooled"] or {}).items() if mean]
    heading = "Mixed-effects summary, which treats the families as a random sample from a population of families"
    if len(analysis.families) <= 4:
        heading += f" ({len(analysis.families)} families are a small sample)"
    columns: Columns = {
        "exponent": lambda row: row["exponent"],
        "mean over families": lambda row: with_interval(row["mean"], [row["low"], row["high"]]),
        "spread between families (tau)": lambda row: with_interval(row["tau"], [0, row["tau_high"]], 3),
        "prediction for a new family": lambda row: interval([row["next_low"], row["next_high"]]),
        "p of zero spread": lambda row: p_value(row["q_p"]),
    }
    return f"{heading}.\n\n{table_by_column(rows, columns)}" if rows else ""


def _joint_tests(comparisons: Sequence[Entry]) -> str:
    rows = [
        [f"`{comparison['law']}`", name, escape_markdown(join_names(test["families"])), p_value(test["p"])]
        for comparison in comparisons
        for name, test in comparison["joint"].items()
    ]
    return table(("law", "exponent", "families in which it is identified", "p of equal exponents"), rows)


def _ranking(analysis: Directory) -> list[str]:
    ranking = analysis.comparison["ranking"]
    why_unknown = escape_markdown(ranking["unknown"])
    order = escape_markdown(" > ".join(ranking["primary_order"]))
    if not order:
        return [f"**Ranking**: none, because {why_unknown}."]
    heading = f"**Ranking** (steepest first): {order}."
    if ranking["survives"] is None:
        return [heading, f"It is unknown whether other fits give the same order: {why_unknown}."]
    pair_columns = {
        "steeper": lambda pair: escape_markdown(pair["steeper"]),
        "flatter": lambda pair: escape_markdown(pair["flatter"]),
        "same order in": lambda pair: f"{pair['same']} of {pair['of']} fits",
    }
    order_columns = {
        "law": lambda row: f"`{row['law']}`",
        "target": lambda row: target_name(row["target"]),
        "N": lambda row: size_words(row["size"]) if row["size"] else NO_VALUE,
        "fitted by": lambda row: LOSS_NAMES[row["loss"]],
        "order": lambda row: escape_markdown(" > ".join(row["order"])),
    }
    usable = [row for row in ranking["rankings"] if row["usable"]]
    unused = _unused_text([row for row in ranking["rankings"] if not row["usable"]])
    content = f"{table_by_column(usable, order_columns)}\n\n{unused}"
    return [
        heading,
        f"{ranking['same_order']} of {ranking['compared_with']} other fits in the same variable give the same order. "
        + _changes_of_order(ranking["survives_change_of"]),
        table_by_column(ranking["pairs"], pair_columns),
        folded_if_long("All rankings", content, len(usable), VISIBLE_ROWS // 2),
    ]


def _changes_of_order(survives_change_of: dict[str, bool]) -> str:
    labels = {"law": "law", "target": "target", "size": "N", "loss": "objective of the fit"}
    kept = join_names([labels[key] for key, is_same in survives_change_of.items() if is_same])
    lost = join_names([labels[key] for key, is_same in survives_change_of.items() if not is_same])
    kept_text = f"The order survives a change of {kept}." if kept else ""
    lost_text = f"The order does **not** survive a change of {lost}." if lost else ""
    return f"{kept_text} {lost_text}".strip()


def _unused_text(rows: Sequence[Entry]) -> str:
    num_untenable = sum(not row["tenable"] for row in rows)
    reasons = {
        "with an exponent that is not identified": len(rows) - num_untenable,
        "under a law that misses the data by much more than the best law": num_untenable,
    }
    counted = [f"{number} {reason}" for reason, number in reasons.items() if number]
    return f"Fits not used for rankings: {', '.join(counted)}." if counted else ""


def differences_figure(analysis: Directory) -> Figure | None:
    """Pairwise differences of the exponents of the verdict's law, one panel per exponent."""
    pairs = (analysis.verdict_comparison or {}).get("pairs", [])
    rows = [row for row in pairs if row["identified"] and is_number(row["delta"])]
    if not rows:
        return None
    groups: dict[str, list[Entry]] = {}
    for row in rows:
        groups.setdefault(row["exponent"], []).append(row)
    max_p = 1 - analysis.level
    num_significant = sum(_is_significant(row, max_p) for row in rows)
    title = f"Differences of exponents: {num_significant or 'none'} of {len(rows)} differ from zero (Holm-adjusted)"
    margins = Margins(left=max(1.8, 0.2 + 0.075 * max(len(_label(row)) for row in rows)), right=2.8)
    width, height = 6.4 + margins.left, 0.8 + 0.3 * max(map(len, groups.values()))
    figure, axes = panels(len(groups), title, ncols=1, width=width, height=height, margins=margins)
    for axis, (name, group) in zip(axes, groups.items(), strict=True):
        _draw_differences(axis, group, max_p)
        axis.set_xlabel(f"difference in {name}")
    return figure


def _draw_differences(axis: Axes, rows: list[Entry], max_p: float) -> None:
    ends = [row[key] for row in rows for key in ("delta", "ci_low", "ci_high")]
    edge = 1.08 * max(abs(end) for end in ends if is_number(end))
    axis.axvline(0, color=INK, lw=0.8)
    for y, row in enumerate(rows):
        colour = PALETTE[1] if _is_significant(row, max_p) else PALETTE[0]
        draw_interval(axis, (row["ci_low"], row["ci_high"]), y, (-edge, edge), color=colour)
        axis.plot(row["delta"], y, "o", color=colour, ms=5)
        p = f"Holm p {p_value(row['p_adjusted'], with_equals=True)}"
        text_beside(axis, y, f"{difference(row)}, {p}", x=1.02, size=8)
    axis.set_yticks(range(len(rows)), labels=[_label(row) for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(-edge, edge)


def _is_significant(row: Entry, max_p: float) -> bool:
    return is_number(row["p_adjusted"]) and row["p_adjusted"] < max_p


def _label(row: Entry) -> str:
    return f"{short_name(row['a'])} - {short_name(row['b'])}"
