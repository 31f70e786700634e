"""Sentences that stand beside the answer of a verdict: differences of level, detectable differences, and limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from slm.runtime.words import MAX_ITEMS, count, join_names, plural, shortlist

Entry = dict[str, Any]
MAX_LEVEL_SENTENCES = 3
"""Most pairs whose difference of level gets a sentence."""


@dataclass(frozen=True)
class Case:
    """A comparison, with what the sentences about it need."""

    comparison: Entry
    fits: list[Entry]
    """Entries of the law of the verdict, one a family."""
    law_name: str
    law: Entry
    """The comparison under that law; empty if there is none."""
    target: str
    """In words."""
    equation: str
    """The law in words."""

    def is_significant(self, p: float) -> bool:
        """Whether p is below the level of the analysis."""
        return bool(p < 1 - self.comparison["primary"]["level"])


def list_briefly(names: Iterable[str]) -> str:
    """`a, b and c`; if there are many, `a, b, c and 9 more`."""
    names = list(names)
    return shortlist(names) if len(names) > MAX_ITEMS + 1 else join_names(names)


def family_pairs(pairs: Iterable[Entry]) -> set[tuple[str, str]]:
    """The two families of each pair."""
    return {(pair["a"], pair["b"]) for pair in pairs}


def levels(case: Case) -> list[str]:
    """Which family of each pair reaches the lower target at equal size, and how much that is worth."""
    if pairs := case.comparison["paired"]["pairs"]:
        rows = [row for row in pairs if case.is_significant(row["level_p_adjusted"])]
        rows.sort(key=lambda row: -abs(row["level_log_ratio"]))
        sentences = [_level(case, row) for row in rows[:MAX_LEVEL_SENTENCES]]
        more = len(rows) - MAX_LEVEL_SENTENCES
        if more > 0:
            sentences.append(f"{plural(more, 'more pair')} {'differs' if more == 1 else 'differ'} in level.")
        return sentences or [f"No two families differ significantly in {case.target} at the middle size."]
    tests = [t for t in case.law.get("tests", []) if t["restricted"] == "one_law" and t["wider"] != "separate"]
    if not tests or not tests[0]["replicates"]:
        return []
    differ = "differ" if case.is_significant(tests[0]["p"]) else "do not differ significantly"
    return [f"In level, as a constant factor on size, the families {differ} (p = {tests[0]['p']:.2g})."]


def _level(case: Case, row: Entry) -> str:
    lower, higher = (row["a"], row["b"]) if row["level_log_ratio"] < 0 else (row["b"], row["a"])
    ends = [row["worth"][key] for key in ("low", "factor", "high")]
    worth = ""
    if None not in ends:
        low, factor, high = ends if lower == row["a"] else [1 / end for end in reversed(ends)]
        worth = f", like a model with {factor:.3g} times the parameters [{low:.3g}, {high:.3g}]"
    return (
        f"At the middle size {lower} reaches a {case.target} {-math.expm1(-abs(row['level_log_ratio'])):.1%} lower "
        f"than {higher}{worth} (p = {row['level_p_adjusted']:.2g})."
    )


def detectable(case: Case) -> list[str]:
    """The smallest difference that would have been detected, by pair if they differ much, and what detects half."""
    matched, power = case.comparison["paired"], case.law.get("power", {"by_pair": []})
    used = [row for row in matched["pairs"] if row["above_floor"] or not matched["curved"]]
    rows = [row for row in ({**row, **(row["above_floor"] or {})} for row in used) if row["detectable"]]
    advice = matched["advice"] if rows else power.get("advice")
    rows = rows or [row for row in power["by_pair"] if row["detectable"]]
    if not rows:
        return ["This design could not have detected any difference of exponents with confidence."]
    best, worst = (pick(rows, key=lambda row: row["detectable"]) for pick in (min, max))
    if worst["detectable"] < 1.5 * best["detectable"]:
        differences = f"a difference of exponents of {worst['detectable']:.3g}"
    else:
        ends = [f"{row['detectable']:.3g} between {row['a']} and {row['b']}" for row in (best, worst)]
        differences = f"these differences of exponents: {', '.join(ends)} (the best and the worst pair)"
    floor = ", if the families share a floor, which the runs do not reject"
    floor = floor if any(row.get("above_floor") for row in rows) else ""
    sentences = [f"In {matched['power']:.0%} of cases this design would have detected {differences}{floor}."]
    return sentences + ([f"To detect {worst['detectable'] / 2:.3g} takes {advice['text']}."] if advice else [])


def not_compared(case: Case, pairs: Sequence[Entry]) -> list[str]:
    """Pairs without any comparison, families outside the law of the verdict, and ranges that differ."""
    sentences = []
    unmatched = case.comparison["paired"]["unmatched"]
    unmatched = [row for row in unmatched if (row["a"], row["b"]) not in family_pairs(pairs)]
    if unmatched and pairs:
        names = [f"{row['a']} and {row['b']} ({row['reason']})" for row in unmatched]
        sentences.append(f"Not compared: {shortlist(names, max_items=3, separator='; ', max_characters=150)}.")
    if families := [fit["family"] for fit in case.fits if not fit["identified"]]:
        exponents = f"{'exponent' if len(families) == 1 else 'exponents'} of {list_briefly(families)}"
        sentences.append(f"{case.law_name} compares families without the {exponents}, which the runs do not identify.")
    if common := case.law.get("common_range"):
        effect = "with too few sizes in common, and the exponent of a law without a floor depends on the range"
        if common["range"]:
            effect = "so exponents are compared from {} to {}".format(*map(count, common["range"]))
        sentences.append(f"The families' sizes span different ranges, {effect}.")
    return sentences


def limits(case: Case) -> list[str]:
    """What the exponents and intervals rest on: tokens, the fit of the law, the number and the span of sizes."""
    sentences = [*_tokens(case), *_misfit(case)]
    fewest = min(fit["n_cells"] for fit in case.fits)
    if fewest < 5:
        sentences.append(f"The smallest family has {plural(fewest, 'size')}; intervals are exact only if the law is.")
    if all(fit["n_rows"] == fit["n_cells"] for fit in case.fits):
        sentences.append("No size was trained with a second seed, so the scatter of runs is inferred from the fit.")
    ranges = {fit["family"]: next(iter(fit["range"].values())) for fit in case.fits}
    spans = {family: high / low for family, (low, high) in ranges.items() if low > 0 and high / low < 10}
    if spans:
        narrowest = f"{min(spans.values()):.2g}"
        sentences.append(
            f"The sizes of {list_briefly(spans)} span a factor of only {narrowest}; nothing is known beyond them."
        )
    return sentences


def _tokens(case: Case) -> list[str]:
    """At which tokens the exponent in N was measured, if the law does not say."""
    if case.comparison["tokens"] is None:
        return ["The table does not say how many tokens the runs saw; the exponents hold for that budget only."]
    if "N" not in case.fits[0]["range"] or "D" in case.fits[0]["range"]:
        return []
    low, high = case.comparison["tokens"]
    if high <= low * 1.001:
        return [f"All runs saw {count(low)} tokens; at another budget the exponents in N may differ."]
    return [
        f"Tokens vary from {count(low)} to {count(high)} and the law leaves them out, so its exponent includes their "
        "effect and holds only for this choice of tokens."
    ]


def _misfit(case: Case) -> list[str]:
    """What the data say against the law of the verdict: lack of fit, a law they prefer, and laws they allow."""
    sentences = []
    tests = {fit["family"]: fit["lack_of_fit"] for fit in case.fits if fit.get("lack_of_fit")}
    deviating = [family for family, test in tests.items() if test["p"] * len(case.fits) < 0.05]
    if deviating:
        sentences.append(
            f"The sizes of {list_briefly(deviating)} deviate from this law by more than seeds do, so it leaves "
            "something out."
        )
    weighed = case.comparison["weighed"]
    own = weighed.get(case.law_name, {})
    if "aicc" in own and not own["tenable"]:
        sentences.append(f"The runs reject {case.law_name}: {own['why']}.")
    others = [name for name, law in weighed.items() if law["tenable"] and name != case.law_name]
    if others:
        sentences.append(f"The runs do not reject {list_briefly(others)}{' either' if own.get('tenable') else ''}.")
    for name, law in weighed.items():
        if law["refused"] and law["families"]:
            reason = next(iter(law["refused"].values())).removeprefix("not fitted: ")
            sentences.append(f"{name} cannot be fitted to {list_briefly(list(law['refused']))} ({reason}).")
    return sentences
