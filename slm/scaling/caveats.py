"""Sentences that qualify the verdict: differences of level (loss at equal size), detectable differences, and limits."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from slm.runtime.words import (
    MAX_ITEMS,
    count,
    format_number,
    interval,
    is_number,
    join_names,
    p_text,
    plural,
    shortlist,
    with_article,
)

Entry = dict[str, Any]
MAX_LEVEL_SENTENCES = 3  # maximum number of pairs whose difference of level gets a sentence

FEW_SIZES, NARROW_SPAN = 5, 10
"""With fewer sizes, or over a smaller factor, a family's exponent is hardly bounded."""
REPEATED_EPOCHS, FADING_EPOCHS = 1.05, 4
"""Text counts as repeated if it was seen more often than the first; from the second on, repeats are worth ever less."""
INCOMPARABLE = (
    "which family is lower at equal size is unknown, since loss per token does not compare across their tokenizers "
    "(bits_per_byte would)"
)
NOT_CONTROLLED = "The comparison is NOT CONTROLLED: the audit names what differs or is not recorded."


@dataclass(frozen=True)
class Case:
    """The content of comparison.json, and what sentences need about the law of the verdict."""

    comparison: Entry
    fits: list[Entry]  # entries of the law of the verdict, one per family
    law_name: str
    law_comparison: Entry  # the comparison of families under that law; empty if there is none
    target: str  # in words
    equation: str  # the law and its target in words

    def is_significant(self, p: float) -> bool:
        """Whether p is below 1 minus the confidence level of the analysis."""
        return bool(p < 1 - self.comparison["primary"]["level"])

    def assessment(self, law_name: str) -> Entry:
        """A law's row of `selection.assess_laws` (`tenable`, `why` not, ...); empty if the law was not assessed."""
        return self.comparison["weighed"].get(law_name, {})


def list_briefly(names: Iterable[str]) -> str:
    """List names as `a, b and c`; if there are many, as `a, b, c and 9 more`."""
    names = list(names)
    return shortlist(names) if len(names) > MAX_ITEMS + 1 else join_names(names)


def family_pairs(pairs: Iterable[Entry]) -> set[tuple[str, str]]:
    """The names (a, b) of the families of each pair."""
    return {(pair["a"], pair["b"]) for pair in pairs}


def lower_first(row: Entry) -> tuple[str, str]:
    """The families of a row of `paired`: first the one with the lower target at the middle size."""
    return (row["a"], row["b"]) if row["level_log_ratio"] < 0 else (row["b"], row["a"])


def lower_mean_first(pair: Entry) -> tuple[str, str]:
    """The families of a pair of `levels`: first the one with the lower target on average over the common sizes."""
    return (pair["a"], pair["b"]) if pair["mean"]["difference"] <= 0 else (pair["b"], pair["a"])


def common_sizes(pair: Entry) -> str:
    """How many sizes, or sizes and budgets, both families of a pair of `levels` have: `6 sizes`."""
    rows = pair["sizes"]
    return f"{len(rows)} {'sizes' if len({row['N_a'] for row in rows}) == len(rows) else 'sizes and budgets'}"


def worth(row: Entry) -> list[float] | None:
    """How many times as large the other family must be to match the lower one, as [low, factor, high], if known."""
    factors = [row["worth"][key] for key in ("low", "factor", "high")]
    if None in factors:
        return None
    is_for_a = lower_first(row)[0] == row["a"]  # `worth` is the factor on the size of b
    return factors if is_for_a else [1 / factor for factor in reversed(factors)]


def reach(row: Entry) -> float:
    """The factor from the middle size of a row of `paired`, to which its `worth` belongs, to the largest size."""
    return max(row["sizes"]) / math.exp(sum(map(math.log, row["sizes"])) / len(row["sizes"]))


def if_beyond(factor: float, limit: float) -> str:
    """The condition for a factor on size that leads beyond the measured sizes, which are within a factor `limit`."""
    return ", if this goes on beyond the sizes measured" if factor > limit else ""


def steeper_first(pair: Entry) -> tuple[str, str]:
    """The steeper and the flatter family of a pair."""
    return (pair["a"], pair["b"]) if pair["delta"] > 0 else (pair["b"], pair["a"])


def difference_text(pair: Entry) -> str:
    """The steeper exponent minus the flatter in words, as `difference [low, high]`."""
    ends = [pair["ci_low"], pair["ci_high"]]
    if pair["delta"] <= 0:
        ends = [None if end is None else -end for end in reversed(ends)]
    return f"{format_number(abs(pair['delta']), 3)} {interval(ends, 3)}"


def condition(case: Case, pairs: Sequence[Entry]) -> str:
    """The condition under which an answer on these pairs holds, such as `over these sizes`."""
    if any(pair["above"] for pair in pairs):
        return "above a floor that they share"
    return "over these sizes" if any(pair["paired"] for pair in pairs) else f"under {case.equation}"


def levels(case: Case) -> list[str]:
    """Sentences on which family of a pair has the lower target at equal size, and how many parameters this is worth."""
    if case.comparison.get("incomparable"):
        return []
    if pairs := case.comparison["paired"]["pairs"]:
        rows = [row for row in pairs if case.is_significant(row["level_p_adjusted"])]
        rows.sort(key=lambda row: -abs(row["level_log_ratio"]))
        sentences = [_level(case, row) for row in rows[:MAX_LEVEL_SENTENCES]]
        num_more = len(rows) - MAX_LEVEL_SENTENCES
        if num_more > 0:
            sentences.append(f"{plural(num_more, 'more pair')} {'differs' if num_more == 1 else 'differ'} in level.")
        return sentences or [f"No two families differ significantly in {case.target} at the middle size."]
    if any(pair["mean"] and pair["mean"]["p"] is not None for pair in case.comparison["levels"]["pairs"]):
        return []  # the headline has the mean over common sizes, which a law could contradict
    # Without pairs at the same sizes: does the law fit better if each family has a factor on size of its own?
    nested_tests = [test for test in case.law_comparison.get("tests", []) if test["restricted"] == "one_law"]
    test = next((test for test in nested_tests if test["wider"] != "separate"), None)
    if test is None or not test["replicates"]:
        return []
    differ = "differ" if case.is_significant(test["p"]) else "do not differ significantly"
    return [f"In level (a constant factor on size), the families {differ} ({p_text(test['p'])})."]


def _level(case: Case, row: Entry) -> str:
    lower, higher = lower_first(row)
    reduction = -math.expm1(-abs(row["level_log_ratio"]))
    like = ""
    if factors := worth(row):
        low, factor, high = factors
        like = f", like a model with {format_number(factor, 3)} times the parameters {interval([low, high], 3)}"
        like += if_beyond(factor, reach(row))
    difference = f"At the middle size {lower} reaches {with_article(case.target)} {reduction:.1%} lower than {higher}"
    return f"{difference}{like} ({p_text(row['level_p_adjusted'])})."


def _rows_with_power(case: Case) -> tuple[list[Entry], Entry | None]:
    """The pairs that have a `detectable` difference, and advice on the design."""
    matched = case.comparison["paired"]
    power = case.law_comparison.get("power", {"by_pair": []})
    # The verdict uses the test above a shared floor if there is one, else the test of slopes unless laws are curved.
    compared = [row for row in matched["pairs"] if row["above_floor"] or not matched["curved"]]
    rows = [row | (row["above_floor"] or {}) for row in compared]  # a test above a floor has its own `detectable`
    rows = [row for row in rows if row["detectable"]]
    if rows:
        return rows, matched["advice"]
    return [row for row in power["by_pair"] if row["detectable"]], power.get("advice")


def detectable_differences(case: Case) -> dict[frozenset[str], float]:
    """The smallest difference of exponents that the design would have detected, by pair of families."""
    return {frozenset((row["a"], row["b"])): row["detectable"] for row in _rows_with_power(case)[0]}


def detectable(case: Case) -> list[str]:
    """Sentences on the smallest difference that the design would have detected, and on a design for half of that."""
    rows, advice = _rows_with_power(case)
    if not rows:
        return ["This design could not have detected any difference of exponents with confidence."]
    best = min(rows, key=lambda row: row["detectable"])
    worst = max(rows, key=lambda row: row["detectable"])
    if worst["detectable"] < 1.5 * best["detectable"]:
        differences = f"a difference of exponents of {format_number(worst['detectable'], 3)}"
    else:
        both = [f"{format_number(r['detectable'], 3)} between {r['a']} and {r['b']}" for r in (best, worst)]
        differences = f"these differences of exponents: {', '.join(both)} (the best and the worst pair)"
    is_above_floor = any(row.get("above_floor") for row in rows)
    floor = ", if the families share a floor, which the runs do not reject" if is_above_floor else ""
    share = f"{case.comparison['paired']['power']:.0%}"
    sentences = [f"In {share} of cases this design would have detected {differences}{floor}."]
    if advice:
        sentences.append(f"To detect {format_number(worst['detectable'] / 2, 3)} takes {advice['text']}.")
    return sentences


def not_compared(case: Case, pairs: Sequence[Entry]) -> list[str]:
    """Sentences on pairs that were not compared, exponents that are not identified, and ranges of sizes that differ."""
    sentences = []
    compared = family_pairs(pairs)
    rows = [row for row in case.comparison["paired"]["unmatched"] if (row["a"], row["b"]) not in compared]
    if rows and pairs:
        reasons = [f"{row['a']} and {row['b']} ({row['reason']})" for row in rows]
        sentences.append(f"Not compared: {shortlist(reasons, max_items=3, separator='; ', max_characters=150)}.")
    if families := [fit["family"] for fit in case.fits if not fit["identified"]]:
        exponents = f"{'exponent' if len(families) == 1 else 'exponents'} of {list_briefly(families)}"
        left_out = f"The comparison under {case.law_name} leaves out the {exponents}"
        sentences.append(f"{left_out}, which the runs do not identify.")
    if common := case.law_comparison.get("common_range"):
        effect = "with too few sizes in common, and the exponent of a law without a floor depends on the range"
        if common["range"]:
            low, high = map(count, common["range"])
            effect = f"so exponents are compared over sizes from {low} to {high}"
        sentences.append(f"The families' sizes span different ranges, {effect}.")
    return sentences


def limits(case: Case) -> list[str]:
    """Sentences on what limits the exponents and intervals: tokens, fit of the law, seeds, number and span of sizes."""
    sentences = [*_tokens(case), *_repeats(case), *_misfit(case)]
    fewest = min(map(num_sizes, case.fits))
    if fewest < FEW_SIZES:
        sentences.append(f"The smallest family has {plural(fewest, 'size')}; intervals are exact only if the law is.")
    if all(fit["n_rows"] == fit["n_cells"] for fit in case.fits):
        sentences.append("No size was trained with a second seed, so the scatter of runs is inferred from the fit.")
    ranges = {fit["family"]: next(iter(fit["range"].values())) for fit in case.fits}
    spans = {family: high / low for family, (low, high) in ranges.items() if low > 0 and high / low < NARROW_SPAN}
    if spans:
        span = f"The sizes of {list_briefly(spans)} span a factor of only {format_number(min(spans.values()), 2)}"
        sentences.append(f"{span}; nothing is known beyond that span.")
    return sentences


def num_sizes(fit: Entry) -> int:
    """The number of values of the law's first variable; the number of cells if the fit does not list its points."""
    values = (fit.get("points") or {}).get(next(iter(fit["range"])))
    return len(set(map(format_number, values))) if values else int(fit["n_cells"])


def deviating_families(fits: Sequence[Entry]) -> list[str]:
    """The families whose sizes deviate from the law by more than seeds explain, at 5% after Bonferroni's adjustment."""
    tests = {fit["family"]: fit["lack_of_fit"] for fit in fits if fit.get("lack_of_fit")}
    return [name for name, test in tests.items() if is_number(test["p"]) and test["p"] * len(fits) < 0.05]


def _tokens(case: Case) -> list[str]:
    """A sentence on the tokens at which the exponent of N was measured, if the law has no term for them."""
    if case.comparison["tokens"] is None:
        return ["The table does not say how many tokens the runs saw; the exponents hold only for that number."]
    if "N" not in case.fits[0]["range"] or "D" in case.fits[0]["range"]:
        return []
    low, high = case.comparison["tokens"]
    if high <= low * 1.001:
        return [f"All runs saw {count(low)} tokens; with more or fewer tokens the exponents of N may differ."]
    variation = f"Tokens vary from {count(low)} to {count(high)}, and the law has no term for them"
    return [f"{variation}. Its exponent includes their effect, and holds only for this choice of tokens."]


def _repeats(case: Case) -> list[str]:
    """A sentence on text that was seen several times. Its value: Muennighoff et al. 2023 (arXiv:2305.16264)."""
    epochs = case.comparison.get("epochs")  # older analyses lack it
    if epochs is None or epochs <= REPEATED_EPOCHS:
        return []
    seen = f"Training text was seen up to {format_number(epochs, 2)} times"
    if epochs <= FADING_EPOCHS:
        return [
            f"{seen}. Up to about {FADING_EPOCHS} times, it is almost worth as much as new text (arXiv:2305.16264)."
        ]
    return [
        f"{seen}: from about {FADING_EPOCHS} times on, repeated text is worth ever less than new text "
        "(arXiv:2305.16264), so these runs have higher losses, and gain less from more tokens, than runs on new text."
    ]


def _misfit(case: Case) -> list[str]:
    """Sentences on what speaks against the law of the verdict: misfit, rejection, other tenable laws, refused laws."""
    sentences = []
    if deviating := deviating_families(case.fits):
        excess = f"The sizes of {list_briefly(deviating)} deviate from this law by more than the scatter between seeds"
        sentences.append(f"{excess} explains, so the law lacks something.")
    weighed = case.comparison["weighed"]
    assessment = case.assessment(case.law_name)
    if "aicc" in assessment and not assessment["tenable"]:
        sentences.append(f"The runs reject {case.law_name}: {assessment['why']}.")
    others = [name for name, row in weighed.items() if row["tenable"] and name != case.law_name]
    if others:
        either = " either" if assessment.get("tenable") else ""
        sentences.append(f"The runs do not reject {list_briefly(others)}{either}.")
    for name, row in weighed.items():
        if row["refused"] and row["families"]:
            reason = next(iter(row["refused"].values())).removeprefix("not fitted: ")
            sentences.append(f"{name} cannot be fitted to {list_briefly(row['refused'])} ({reason}).")
    return sentences
