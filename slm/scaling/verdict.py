"""State in words whether model families differ in how they scale: a headline, and sentences that qualify the headline.

Two families are compared by the first of these that is possible:
- the slope of the log ratio of their losses at the same sizes, unless the runs reject straight lines in logs;
- their exponents of L - E at the same sizes, where E is a floor that both share, if the runs reject straight lines;
- their exponents under the law of the verdict, the one law chosen for all families.

A law or a floor is tenable if the runs do not reject it. The verdict says that two families differ only if
- the difference is significant, and stays significant with every tenable floor;
- it has the same sign under every tenable law in which both exponents are identified;
- one of these laws finds it significant too (only required if no floor could be tested).
"""

from collections.abc import Sequence

from slm.runtime.words import p_text, shortlist, target_name
from slm.scaling.caveats import (
    NOT_CONTROLLED,
    Case,
    Entry,
    condition,
    detectable,
    difference_text,
    family_pairs,
    levels,
    limits,
    not_compared,
    steeper_first,
)
from slm.scaling.headline import headline, headline_for_one_family, headline_without_scatter
from slm.scaling.pairs import adjust

RECORDED_KEYS = "a b exponent paired above delta ci_low ci_high p p_adjusted p_any_floor_adjusted differs"
"""Keys of a pair that are written to comparison.json. `above` says whether exponents of L - E were compared."""
SHARED_LAW = "One law with a floor for both families, and a constant factor on N between them,"


def verdict(comparison: Entry, entries: Sequence[Entry], is_controlled: bool | None) -> Entry:
    """Return the entry `verdict` of comparison.json.

    It has the `headline`, the `sentences` that qualify it, whether the families are `distinguishable` (None if the
    table cannot tell), and the `pairs` that were compared. A pair is `paired` if it was compared at the same sizes, not
    by the law of the verdict. Its `differs` is None if the answer depends on the law. `is_controlled` says whether an
    audit found that nothing but the family differs between runs of one size (None: no audit was made).
    """
    primary = comparison["primary"]
    sizes = (None, primary["size"])  # None: a law without N
    fits = [entry for entry in entries if entry["size"] in sizes]
    fits = [fit for fit in fits if all(fit[key] == primary[key] for key in ("law", "target", "loss"))]
    target = target_name(primary["target"])
    of_target = f"(L: {target})" if primary["kind"] == "accuracy" else f"of {target}"
    equation = f"{fits[0]['equation']} {of_target}"
    law = comparison["laws"].get(primary["law"], {})
    case = Case(comparison, fits, law_name=primary["law"], law_comparison=law, target=target, equation=equation)
    sentences: list[str] = []
    pairs: list[Entry] = []
    distinguishable = None
    if case.assessment(case.law_name).get("exact"):
        sentence = headline_without_scatter(case)
    elif len(comparison["families"]) == 1:
        sentence = headline_for_one_family(case)
    else:
        pairs = _compared_pairs(case)
        sentence, distinguishable = headline(case, pairs, is_controlled)
        answer = _test(case, pairs, distinguishable)
        sentences = [*levels(case), *answer, *_differences(case, pairs), *not_compared(case, pairs)]
    if is_controlled is False and len(comparison["families"]) > 1:
        sentences.append(NOT_CONTROLLED)
    sentences += limits(case)
    recorded = [{name: pair[name] for name in RECORDED_KEYS.split()} for pair in pairs]
    return {"headline": sentence, "distinguishable": distinguishable, "sentences": sentences, "pairs": recorded}


def _compared_pairs(case: Case) -> list[Entry]:
    """Return every pair of families that can be compared, at the same sizes if possible, else under the verdict's law.

    `against` is a sentence on what contradicts the answer `differs`, or "". `is_ranked` says whether the report also
    ranks families by the exponent that is compared. The p-values are adjusted over all these pairs, and written back to
    the rows of `case.comparison` that the pairs come from (`source`), because the report shows these rows.
    """
    law_rows = case.law_comparison.get("pairs", [])
    ranking_exponent = law_rows[0]["exponent"] if law_rows else ""
    pairs = _pairs_at_same_sizes(case, ranking_exponent) if case.comparison["primary"]["in_N"] else []
    pairs_at_same_sizes = family_pairs(pairs)
    for row in law_rows:
        is_compared = (row["a"], row["b"]) in pairs_at_same_sizes and row["exponent"] == ranking_exponent
        if row["p"] is not None and not is_compared:
            pairs.append({**row, "paired": False, "above": False, "source": row})
    adjust(pairs)
    for pair in pairs:
        pair["source"] |= {key: pair[key] for key in ("p_adjusted", "p_any_floor_adjusted")}
    for pair in pairs:
        pair["against"] = _objection(case, pair)
        pair["differs"] = None if pair["against"] else case.is_significant(pair["p_adjusted"])
        pair["is_ranked"] = pair["paired"] or pair["exponent"] == ranking_exponent
    return pairs


def _pairs_at_same_sizes(case: Case, ranking_exponent: str) -> list[Entry]:
    """Pairs with exponents of L - E and, unless the runs reject straight lines, pairs with slopes (`straight`)."""
    pairs: list[Entry] = []
    for row in case.comparison["paired"]["pairs"]:
        pair: Entry = {"a": row["a"], "b": row["b"], "variable": "N", "paired": True, "p_any_floor": None}
        if above_floor := row["above_floor"]:
            pair |= above_floor | {"source": above_floor, "above": True, "straight": False}
            pairs.append(pair | {"exponent": ranking_exponent or "the exponent of N"})
        elif not case.comparison["paired"]["curved"]:
            pair |= row | {"source": row, "above": False, "straight": True}
            pairs.append(pair | {"exponent": "local exponent"})
    return pairs


def _objection(case: Case, pair: Entry) -> str:
    """A sentence on a tenable law or floor that contradicts this pair's answer; "" if there is no such law or floor."""
    is_significant = case.is_significant(pair["p_adjusted"])
    any_floor_p = pair["p_any_floor_adjusted"]
    has_floor_test = pair["above"] or (pair["straight"] and any_floor_p is not None)
    is_confirmed = False
    for name, law in case.comparison["laws"].items():
        row = _identified_row(pair, law["pairs"])
        is_own_law = name == case.law_name and not pair["paired"]
        # Straight laws are skipped: `any_floor_p` below tests whether a floor explains their slopes.
        if row is None or row["straight"] or is_own_law or not case.assessment(name).get("tenable"):
            continue
        is_significant_under_law = case.is_significant(row["p_adjusted"])
        if not is_significant and not is_significant_under_law:
            continue
        # A test with floors has more power than a test under a law. After it, the law need only give the same sign.
        has_same_sign = row["delta"] * pair["delta"] >= 0
        if is_significant and has_same_sign and (is_significant_under_law or has_floor_test):
            is_confirmed = True
        else:
            return _contradiction(case, pair, name, row)
    if not is_significant or not pair["straight"]:
        return ""
    steeper, flatter = steeper_first(pair)
    comparison = f"The {case.target} of {steeper} falls faster over these sizes than that of {flatter}"
    finding = f"{comparison}, by {difference_text(pair)} in the exponent ({p_text(pair['p_adjusted'])})"
    if any_floor_p is None:
        return "" if is_confirmed else f"{finding}, but no law with a floor could be fitted well enough to confirm it."
    if case.is_significant(any_floor_p):
        return ""
    consequence = "so the difference need not continue at larger sizes. A wider span of sizes would tell."
    return f"{finding}. {SHARED_LAW} explains this too ({p_text(any_floor_p)}), {consequence}"


def _identified_row(pair: Entry, rows: Sequence[Entry]) -> Entry | None:
    """The first of a law's `rows` with the families and variable of `pair`; None if an exponent is not identified."""
    keys = ("a", "b", "variable")
    row = next((row for row in rows if all(row[key] == pair[key] for key in keys)), None)
    return row if row and row["identified"] and row["p_adjusted"] is not None else None


def _contradiction(case: Case, pair: Entry, law: str, row: Entry) -> str:
    """A sentence with the result of this pair, the different result under `law`, and what would decide between them."""
    start = condition(case, [pair]).capitalize() if pair["paired"] else f"Under {case.law_name}"
    result = f"{pair['a']} and {pair['b']} do not differ significantly"
    other_result = "they do not differ significantly"
    if case.is_significant(pair["p_adjusted"]):
        steeper, flatter = steeper_first(pair)
        result = f"{steeper} scales faster than {flatter}"
    if case.is_significant(row["p_adjusted"]):
        other_result = f"{row['exponent']} of {steeper_first(row)[0]} is larger"
    one_side = f"{start}, {result} ({p_text(pair['p_adjusted'])})"
    other_side = f"under {law}, which the runs do not reject, {other_result} ({p_text(row['p_adjusted'])})"
    return f"{one_side}; {other_side}. A wider span of sizes would show which law holds."


def _test(case: Case, pairs: Sequence[Entry], distinguishable: bool | None) -> list[str]:
    """A sentence with the answer on exponents, and the smallest p of the comparisons."""
    if not pairs:
        return []
    p = p_text(min(pair["p_adjusted"] for pair in pairs))
    test = f"smallest of {len(pairs)} Holm-adjusted p-values: {p}" if len(pairs) > 1 else f"t test, {p}"
    under = condition(case, [pair for pair in pairs if pair["differs"]] or pairs)
    if distinguishable:
        return [f"The families differ in how they scale {under} ({test})."]
    if distinguishable is None:
        return [f"Whether the families differ in how they scale depends on the law ({test} {under})."]
    return [f"The families' exponents are not distinguishable with this design {under} ({test})."]


def _differences(case: Case, pairs: Sequence[Entry]) -> list[str]:
    """Sentences on significant differences, on what supports or contradicts answers, and on detectable differences."""
    if not pairs:
        return []
    differing = [pair for pair in pairs if pair["differs"]]
    sentences = []
    for pair in differing:
        steeper, flatter = steeper_first(pair)
        comparison = f"{pair['exponent']} of {steeper} is larger than"
        if pair["above"]:
            comparison = f"Above a floor that they share, {comparison}"
        elif pair["paired"]:
            comparison = f"The {case.target} of {steeper} falls faster with N than"
        difference = f"{difference_text(pair)}, Holm-adjusted {p_text(pair['p_adjusted'])}"
        sentences.append(f"{comparison} that of {flatter}, by {difference}.")
    sentences += [pair["against"] for pair in pairs if pair["against"]]
    sentences += _explained_by_floor(case, pairs)
    sentences += [_agreement(case, pair) for pair in differing if pair["is_ranked"]]
    return [sentence for sentence in sentences if sentence] + detectable(case)


def _explained_by_floor(case: Case, pairs: Sequence[Entry]) -> list[str]:
    """A sentence on pairs whose slopes differ over these sizes, but whose exponents of L - E do not."""
    explained = family_pairs(pair for pair in pairs if pair["above"] and pair["differs"] is False)
    rows = [row for row in case.comparison["paired"]["pairs"] if (row["a"], row["b"]) in explained]
    rows = [row for row in rows if case.is_significant(row["p_adjusted"])]
    if not rows:
        return []
    comparisons = [f"for {steeper} than for {flatter}" for steeper, flatter in map(steeper_first, rows)]
    slopes = f"Over these sizes the {case.target} falls faster {shortlist(comparisons, max_items=3)}"
    return [f"{slopes}. {SHARED_LAW} explains that."]


def _agreement(case: Case, pair: Entry) -> str:
    """A sentence on how many other fits order this pair in the same way; "" if there are no other fits."""
    names = {pair["a"], pair["b"]}
    row = next((row for row in case.comparison["ranking"]["pairs"] if {row["steeper"], row["flatter"]} == names), None)
    if row is None or not row["of"]:
        return ""
    steeper, flatter = steeper_first(pair)
    num_agreeing = row["same"] if row["steeper"] == steeper else row["of"] - row["same"]
    return f"{steeper} is steeper than {flatter} in {num_agreeing} of {row['of']} fits with other laws, N or targets."
