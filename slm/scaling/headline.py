"""The headline of the verdict: one sentence on the loss at equal size, and on how the loss falls with size.

With several families it is about one pair, chosen by a rule that does not depend on what is significant: the family
with the lowest loss at the middle size against the first family of the table or, if the first family has the lowest
loss, against the family closest to it. The p-values are adjusted over all pairs, so the choice does not make a
difference significant.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slm.runtime.words import count, format_number, interval, is_number, join_names, shortlist, with_article
from slm.scaling.caveats import (
    INCOMPARABLE,
    Case,
    Entry,
    common_sizes,
    condition,
    detectable_differences,
    difference_text,
    family_pairs,
    if_beyond,
    lower_first,
    lower_mean_first,
    reach,
    steeper_first,
    worth,
)

DOUBLED = {"power": "parameters", "power_D": "training tokens", "power_C": "training FLOPs"}
"""A law in which the loss is a power of one quantity -> this quantity."""
NOT_COMPARABLE = "The comparison is not controlled (families differ in more than architecture, or settings are unknown)"


class HeadlinePair(NamedTuple):
    """The two families of the headline; `leader` has the lower loss at the middle size of the pair, if compared."""

    leader: str
    other: str
    at_equal_size: Entry | None  # the row of `paired`; None if the losses at equal size could not be compared


def headline_pair(case: Case) -> HeadlinePair:
    """Choose the pair of families that the headline is about."""
    families: list[str] = case.comparison["families"]
    rows = {lower_first(row): row for row in case.comparison["paired"]["pairs"]}
    if rows:
        pair = _choose(families, {pair: abs(row["level_log_ratio"]) for pair, row in rows.items()})
        return HeadlinePair(*pair, rows[pair])
    factors = {row["family"]: row["factor"] for row in _factors(case)}  # the fewer parameters a loss needs, the higher
    if factors:
        best = max(factors, key=lambda name: factors[name])
        leader, other = (best, families[0]) if factors[best] > 1 else (families[0], best)
        return HeadlinePair(leader, other, None)
    gaps = {lower_mean_first(pair): abs(pair["mean"]["difference"]) for pair in _mean_differences(case)}
    leader, other = _choose(families, gaps) if gaps else families[:2]
    return HeadlinePair(leader, other, None)


def _choose(families: Sequence[str], gaps: Mapping[tuple[str, str], float]) -> tuple[str, str]:
    """The pair of the family that is lower most often and the first family, else the family closest to it.

    `gaps` has the absolute difference of each pair, whose first family is the lower one.
    """
    times_lower = Counter(lower for lower, _ in gaps)
    leader = max(times_lower, key=lambda name: (times_lower[name], -families.index(name)))
    return min((pair for pair in gaps if leader in pair), key=lambda pair: (families[0] not in pair, gaps[pair]))


def _mean_differences(case: Case) -> list[Entry]:
    """The rows of `levels` of the pairs with sizes in common, and a scatter from which to judge the difference."""
    return [pair for pair in case.comparison["levels"]["pairs"] if pair["mean"] and pair["mean"]["p"] is not None]


def _factors(case: Case) -> list[Entry]:
    """The factor on N by which each family exceeds the first; empty if the runs reject one law with such factors."""
    tests = case.law_comparison.get("tests") or []
    test = next((row for row in tests if (row["restricted"], row["wider"]) == ("efficiency", "separate")), None)
    if test is None or test["p"] is None or case.is_significant(test["p"]):
        return []
    rows = [row for row in case.law_comparison.get("efficiency") or [] if is_number(row["factor"])]
    first = case.comparison["families"][0]  # it may be missing from the fits
    return [row for row in rows if row["variable"] == "N" and row["reference"] == first]


def headline(case: Case, pairs: Sequence[Entry], is_controlled: bool | None) -> tuple[str, bool | None]:
    """Return the sentence on several families, and whether the `pairs` of the verdict differ in how they scale.

    The second result is None if it is unknown: there is no pair, or the answer depends on the law.
    """
    answers = [pair["differs"] for pair in pairs]
    distinguishable = True if True in answers else None if None in answers or not pairs else False
    chosen = headline_pair(case)
    level = INCOMPARABLE.capitalize() if case.comparison.get("incomparable") else _level(case, chosen)
    start = f"{NOT_COMPARABLE}: {level[0].lower()}{level[1:]}" if is_controlled is False else level
    return f"{start}; {_scaling(case, chosen, pairs)}.", distinguishable


def _level(case: Case, chosen: HeadlinePair) -> str:
    """Which family reaches the lower loss at equal size."""
    leader, other, row = chosen
    if row is None:
        return _level_under_law(case, chosen)
    factor = _like(worth(row), reach(row))
    if not case.is_significant(row["level_p_adjusted"]):
        remark = f" ({leader} is {factor})" if factor else ""
        names = f"{leader} and {other}"
        return f"{_where(row)} {_runs(case)} show no clear difference in {case.target} between {names}{remark}"
    rows = case.comparison["paired"]["pairs"]
    beaten = [pair for pair in rows if lower_first(pair)[0] == leader and case.is_significant(pair["level_p_adjusted"])]
    num_others = len(case.comparison["families"]) - 1
    answer = f"{_where(row)} {leader} reaches a lower {case.target} than"
    if num_others > 1 and len(beaten) == num_others:
        remark = f" (compared with {other}, {factor})" if factor else ""
        return f"{answer} each of the {num_others} other families{remark}"
    return f"{answer} {other}, {factor}" if factor else f"{answer} {other}"


def _where(row: Entry) -> str:
    """`At equal size` if the same family is lower at all sizes of the fitted line, else `At the middle size`."""
    smallest, *_, largest = row["band"]["centre"]
    return "At equal size" if smallest * largest > 0 else "At the middle size"


def _level_under_law(case: Case, chosen: HeadlinePair) -> str:
    """The same by one law for both families, for families whose losses at equal size cannot be compared."""
    leader, other, _ = chosen
    row = next((row for row in _factors(case) if row["family"] in (leader, other)), None)
    if row is None:
        return _level_on_average(case, leader, other)
    factors = [row["low"], row["factor"], row["high"]]
    if row["family"] == other:
        factors = [1 / factor if factor else None for factor in reversed(factors)]
    low, _, high = factors
    like = _like(factors, limit=math.inf)  # "if one law holds" is the condition already
    start = f"If one law {case.equation} holds for both, "
    if is_number(low) and is_number(high) and not low <= 1 <= high:
        answer = f"{leader} reaches a lower {case.target} than {other} at equal size, "
        return start + answer + like
    answer = f"{_runs(case)} show no clear difference in {case.target} at equal size between {leader} and {other}"
    return f"{start}{answer} ({leader} is {like})"


def _level_on_average(case: Case, leader: str, other: str) -> str:
    """The same by the mean difference over the sizes that both have, which needs no law."""
    pair = next((pair for pair in _mean_differences(case) if {pair["a"], pair["b"]} == {leader, other}), None)
    if pair is None:
        return f"At equal size {leader} and {other} could not be compared in {case.target}"
    where = f"At the size of N = {count(pair['sizes'][0]['N_a'])}"
    if len(pair["sizes"]) > 1:
        where = f"On average over the {common_sizes(pair)} that both have,"
    mean = pair["mean"]
    if not case.is_significant(mean["p_adjusted"]):
        return f"{where} {_runs(case)} show no clear difference in {case.target} between {leader} and {other}"
    ends = sorted(abs(mean[end]) for end in ("low", "high"))  # of one sign, since the difference is significant
    gap = f"{format_number(abs(mean['difference']), 3)} {interval(ends, 3)}"
    return f"{where} {leader} reaches {with_article(case.target)} {gap} lower than {other}"


def _like(factors: Sequence[Any] | None, limit: float) -> str:
    """`like a model 1.9 times as large [1.6, 2.5]`; empty if the runs do not bound the factor. See `if_beyond`."""
    if factors is None:
        return ""
    low, factor, high = factors
    # Near 1, two digits would not show on which side of 1 a factor is.
    digits = 3 if any(x is not None and abs(x - 1) < 0.05 for x in factors) else 2
    like = f"like a model {format_number(factor, digits)} times as large {interval([low, high], digits)}"
    return like + if_beyond(factor, limit)


def _runs(case: Case) -> str:
    return f"these {case.comparison['n_runs']:,} runs"


def _scaling(case: Case, chosen: HeadlinePair, pairs: Sequence[Entry]) -> str:
    """Whether one family of the pair scales faster, and how many other pairs differ."""
    leader, other, _ = chosen
    of_both = [pair for pair in pairs if {pair["a"], pair["b"]} == {leader, other}]
    pair = next((pair for pair in of_both if pair["differs"]), of_both[0] if of_both else None)
    differing = family_pairs(p for p in pairs if p["differs"])  # a pair has a row for each exponent
    has_others = any({*families} != {leader, other} for families in differing)
    num_pairs = len(family_pairs(pairs))
    ending = f"; {len(differing)} of {num_pairs} pairs of families differ in how they scale" if has_others else ""
    question = f"whether {leader} scales faster than {other}"
    if pair is None:
        unknown = [fit["family"] for fit in case.fits if not fit["identified"] and fit["family"] in (leader, other)]
        reason = "their exponents could not be compared"
        if unknown:
            are = "exponent of {} is" if len(unknown) == 1 else "exponents of {} are"
            reason = f"the {are.format(join_names(unknown))} not identified"
        return f"{question} {_runs(case)} cannot say: {reason} under {case.equation}{ending}"
    if pair["differs"] is None:
        return f"{question} depends on the law that is assumed{ending}"
    if pair["differs"]:
        return _faster(case, chosen, pair) + ending
    smallest = detectable_differences(case).get(frozenset((leader, other)))
    unseen = "no difference of exponents could have been detected"
    if smallest:
        unseen = f"a difference of exponents under {format_number(smallest, 2)} could have gone unseen"
        if pair["paired"] and not pair["above"]:  # the difference is the slope of the log ratio of losses
            change = f"changes by up to {10.0**smallest - 1:.1%} of the {case.target} for each factor of ten in size"
            unseen = f"a lead that {change} could have gone unseen (exponents {format_number(smallest, 2)} apart)"
    return f"{question} {_runs(case)} cannot say: {unseen}{ending}"


def _faster(case: Case, chosen: HeadlinePair, pair: Entry) -> str:
    """Which family of a pair scales faster."""
    steeper, flatter = steeper_first(pair)
    is_ahead = chosen.at_equal_size is not None and case.is_significant(chosen.at_equal_size["level_p_adjusted"])
    contrast = "but" if is_ahead and steeper == chosen.other else "and"
    faster = f"{condition(case, [pair])} {steeper} scales faster than {flatter}"
    return f"{contrast} {faster}: its {case.target} falls with an exponent that is larger by {difference_text(pair)}"


def headline_without_scatter(case: Case) -> str:
    """The headline if all rows lie on the law, so that nothing can be tested."""
    fits = [fit for fit in case.fits if fit["fitted"]]
    values = [f"{fit['family']} {name} = {fit['params'][name]:.6g}" for fit in fits for name in fit["exponents"]]
    exponents = shortlist(values, separator="; ")
    return f"All rows lie on {case.equation} to rounding: {exponents}. Without scatter there are no intervals or tests."


def headline_for_one_family(case: Case) -> str:
    """The headline of a table with one family: what a doubling changes, and the exponent."""
    (fit,) = case.fits
    if not fit["identified"]:
        return f"One family, and its exponent is not identified under {case.equation}: {'; '.join(fit['notes'])}."
    name = fit["exponents"][0]
    low, high = fit["ci95"][name]
    remark = ", an interval that includes 0" if is_number(low) and is_number(high) and low <= 0 <= high else ""
    exponent = f"{name} = {format_number(fit['params'][name])} {interval([low, high])} under {case.equation}{remark}"
    doubled = DOUBLED.get(fit["law"])
    if doubled and not remark:
        verb, ends = ("lowers", (low, high)) if fit["params"][name] > 0 else ("raises", (high, low))
        change, least, most = ("open" if x is None else f"{abs(1 - 2.0**-x):.1%}" for x in (fit["params"][name], *ends))
        exponent = f"doubling its {doubled} {verb} the {case.target} by {change} [{least}, {most}] ({exponent})"
    return f"One family, {fit['family']}: {exponent}. A comparison of families needs at least two."
