"""State in words whether families differ in how they scale: a headline, and the sentences that qualify it.

Families at the same sizes are compared by the slope of their log ratio (`paired`), or above a shared floor if the runs
reject straight lines; other families are compared by exponents under the law of the verdict. The verdict says that
two families differ only if the difference is significant, stays significant under every floor that the runs do not
reject, and has the same sign under every law that the runs do not reject and in which both exponents are identified. A
difference that could not be tested above floors must be significant under one of these laws too.
"""

from __future__ import annotations

from collections.abc import Sequence

from slm.runtime.words import shortlist
from slm.scaling.caveats import Case, Entry, detectable, family_pairs, levels, limits, list_briefly, not_compared
from slm.scaling.pairs import adjust

RECORDED_KEYS = "a b exponent paired above delta ci_low ci_high p p_adjusted p_any_floor_adjusted differs"
"""Keys of a pair that are written to comparison.json."""


def verdict(comparison: Entry, entries: Sequence[Entry], is_controlled: bool | None) -> Entry:
    """Return the entry `verdict` of comparison.json.

    It has the `headline`, the `sentences` that qualify it, whether the families are `distinguishable` (None if the
    table cannot tell), and the `pairs` that were compared. A pair is `paired` if it was compared at the same sizes, not
    by the law of the verdict. Its `differs` is None if the answer depends on the law.
    """
    primary = comparison["primary"]
    keys = ("law", "target", "loss")
    fits = [e for e in entries if all(e[k] == primary[k] for k in keys) and e["size"] in (None, primary["size"])]
    target = primary["target"].replace("_", " ")
    equation = f"{fits[0]['equation']} of {target}"
    case = Case(comparison, fits, primary["law"], comparison["laws"].get(primary["law"], {}), target, equation)
    sentences: list[str] = []
    pairs: list[Entry] = []
    distinguishable = None
    if comparison["weighed"].get(case.law_name, {}).get("exact"):
        headline = _headline_without_scatter(case)
    elif len(comparison["families"]) == 1:
        headline = _headline_for_one_family(case)
    else:
        pairs = _compared_pairs(case)
        headline, distinguishable = _headline(case, pairs)
        sentences = [*levels(case), *_differences(case, pairs), *not_compared(case, pairs)]
    if is_controlled is False and len(comparison["families"]) > 1:
        sentences.append("The comparison is NOT CONTROLLED: the audit names what differs or is not recorded.")
    sentences += limits(case)
    recorded = [{name: pair[name] for name in RECORDED_KEYS.split()} for pair in pairs]
    return {"headline": headline, "distinguishable": distinguishable, "sentences": sentences, "pairs": recorded}


def _compared_pairs(case: Case) -> list[Entry]:
    """Return every pair of families with its best comparison: the answer `differs`, and a sentence `against` that.

    `is_ranked` says whether families are also ranked by the exponent that is compared. The p-values are adjusted over
    all these pairs, and written back to the `source` rows in `case.comparison`, which the report shows.
    """
    matched = case.comparison["paired"]
    law_rows = case.law.get("pairs", [])
    ranking_exponent = law_rows[0]["exponent"] if law_rows else ""
    pairs: list[Entry] = []
    for row in matched["pairs"] if case.comparison["primary"]["in_N"] else []:
        is_above = bool(row["above_floor"])
        source = row["above_floor"] if is_above else row
        if is_above or not matched["curved"]:
            exponent = (ranking_exponent or "the exponent of N") if is_above else "local exponent"
            pair = {"a": row["a"], "b": row["b"], "variable": "N", "exponent": exponent, "straight": not is_above}
            pairs.append({"p_any_floor": None, **source, **pair, "paired": True, "above": is_above, "source": source})
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


def _objection(case: Case, pair: Entry) -> str:
    """A sentence on a law or floor that the runs do not reject and that contradicts this pair; "" if there is none."""
    is_significant = case.is_significant(pair["p_adjusted"])
    any_floor = pair["p_any_floor_adjusted"]
    is_confirmed = False
    for name, law in case.comparison["laws"].items():
        row = _identified_row(pair, law["pairs"])
        if row is None or row["straight"] or not case.comparison["weighed"].get(name, {}).get("tenable", False):
            continue  # what floors do to a straight line is tested below, by `any_floor`
        if not pair["paired"] and name == case.law_name:
            continue
        differs, is_opposite = case.is_significant(row["p_adjusted"]), row["delta"] * pair["delta"] < 0
        # A test above a floor has more power than a test under a law, which then need not be significant too.
        is_sharper = pair["above"] or (pair["straight"] and any_floor is not None)
        if is_significant and not is_opposite and (differs or is_sharper):
            is_confirmed = True
        elif is_significant or differs:
            return _contradiction(case, pair, name, row)
    if not is_significant or not pair["straight"]:
        return ""
    steeper, flatter = _steeper_first(pair)
    comparison = f"The {case.target} of {steeper} falls faster over these sizes than that of {flatter}"
    slope = f"{comparison}, by {_difference(pair)} in the exponent (p = {pair['p_adjusted']:.2g})"
    if any_floor is None:
        return "" if is_confirmed else f"{slope}, but no law with a floor that the runs identify confirms it."
    if case.is_significant(any_floor):
        return ""
    explanation = f"One law with a floor and a constant factor on N explains this too (p = {any_floor:.2g})"
    consequence = "the difference need not continue at larger sizes. A wider span of sizes would tell."
    return f"{slope}. {explanation}, so {consequence}"


def _identified_row(pair: Entry, rows: Sequence[Entry]) -> Entry | None:
    """The first of another law's `rows` with the same families and variable; None if it is not identified."""
    keys = ("a", "b", "variable")
    row = next((row for row in rows if all(row[key] == pair[key] for key in keys)), None)
    return row if row and row["identified"] and row["p_adjusted"] is not None else None


def _contradiction(case: Case, pair: Entry, law: str, row: Entry) -> str:
    """A sentence with the result of this pair, the different result under `law`, and what would decide."""
    condition = _condition(case, [pair]).capitalize() if pair["paired"] else f"Under {case.law_name}"
    result = f"{pair['a']} and {pair['b']} do not differ significantly"
    other_result = "they do not differ significantly"
    if case.is_significant(pair["p_adjusted"]):
        steeper, flatter = _steeper_first(pair)
        result = f"{steeper} scales faster than {flatter}"
    if case.is_significant(row["p_adjusted"]):
        other_result = f"{row['exponent']} of {_steeper_first(row)[0]} is larger"
    one_side = f"{condition}, {result} (p = {pair['p_adjusted']:.2g})"
    other_side = f"under {law}, which the runs do not reject, {other_result} (p = {row['p_adjusted']:.2g})"
    return f"{one_side}; {other_side}. Sizes over a wider span would show the bend and decide."


def _steeper_first(pair: Entry) -> tuple[str, str]:
    """The steeper and the flatter family of a pair."""
    return (pair["a"], pair["b"]) if pair["delta"] > 0 else (pair["b"], pair["a"])


def _difference(pair: Entry) -> str:
    """The steeper exponent minus the flatter, as `difference [low, high]`."""
    ends = [pair["ci_low"], pair["ci_high"]]
    if pair["delta"] <= 0:
        ends = [None if end is None else -end for end in reversed(ends)]
    low, high = ("open" if end is None else f"{end:.3g}" for end in ends)
    return f"{abs(pair['delta']):.3g} [{low}, {high}]"


def _headline(case: Case, pairs: Sequence[Entry]) -> tuple[str, bool | None]:
    """The headline, and whether the families are distinguishable."""
    if not pairs:
        families = [fit["family"] for fit in case.fits if not fit["identified"]] or [f["family"] for f in case.fits]
        reason = f"The exponents of {list_briefly(families)} are not identified under {case.equation}"
        return f"{reason}, so the families cannot be compared.", None
    p = min(pair["p_adjusted"] for pair in pairs)
    test = f"smallest of {len(pairs)} Holm-adjusted p-values: {p:.2g}" if len(pairs) > 1 else f"t test, p = {p:.2g}"
    differing = [pair for pair in pairs if pair["differs"]]
    condition = _condition(case, differing or pairs)
    if differing:
        return f"The families differ in how they scale {condition} ({test}).", True
    if any(pair["differs"] is None for pair in pairs):
        return f"Whether the families differ in how they scale depends on the law ({test} {condition}).", None
    return f"The families' exponents are not distinguishable with this design {condition} ({test}).", False


def _condition(case: Case, pairs: Sequence[Entry]) -> str:
    """The condition under which an answer on these pairs holds: `over these sizes`."""
    if any(pair["above"] for pair in pairs):
        return "above a floor that they share"
    return "over these sizes" if any(pair["paired"] for pair in pairs) else f"under {case.equation}"


def _differences(case: Case, pairs: Sequence[Entry]) -> list[str]:
    """Sentences on each difference, on what supports or contradicts it, and on what the design can detect."""
    if not pairs:
        return []
    differing = [pair for pair in pairs if pair["differs"]]
    sentences = []
    for pair in differing:
        steeper, flatter = _steeper_first(pair)
        comparison = f"{pair['exponent']} of {steeper} is larger than"
        if pair["above"]:
            comparison = f"Above a floor that they share, {comparison}"
        elif pair["paired"]:
            comparison = f"The {case.target} of {steeper} falls faster with N than"
        value = f"{_difference(pair)}, Holm-adjusted p = {pair['p_adjusted']:.2g}"
        sentences.append(f"{comparison} that of {flatter}, by {value}.")
    sentences += [pair["against"] for pair in pairs if pair["against"]]
    sentences += _explained_by_floor(case, pairs)
    sentences += [_agreement(case, pair) for pair in differing if pair["is_ranked"]]
    return [sentence for sentence in sentences if sentence] + detectable(case)


def _explained_by_floor(case: Case, pairs: Sequence[Entry]) -> list[str]:
    """A sentence on pairs whose slopes differ over these sizes, but whose exponents above a shared floor do not."""
    not_differing = family_pairs(pair for pair in pairs if pair["above"] and pair["differs"] is False)
    rows = [row for row in case.comparison["paired"]["pairs"] if (row["a"], row["b"]) in not_differing]
    rows = [row for row in rows if case.is_significant(row["p_adjusted"])]
    if not rows:
        return []
    comparisons = [f"for {steeper} than for {flatter}" for steeper, flatter in map(_steeper_first, rows)]
    slopes = f"Over these sizes the {case.target} falls faster {shortlist(comparisons, max_items=3)}"
    return [f"{slopes}; one law with a floor and a constant factor on N explains that."]


def _agreement(case: Case, pair: Entry) -> str:
    """A sentence on how many other fits order this pair in the same way; "" if there are no other fits."""
    families = {pair["a"], pair["b"]}
    row = next((r for r in case.comparison["ranking"]["pairs"] if {r["steeper"], r["flatter"]} == families), None)
    if row is None or not row["of"]:
        return ""
    steeper, flatter = _steeper_first(pair)
    agreeing = row["same"] if row["steeper"] == steeper else row["of"] - row["same"]
    return f"{steeper} is steeper than {flatter} in {agreeing} of {row['of']} fits with other laws, N or targets."


def _headline_without_scatter(case: Case) -> str:
    """The headline where all rows lie on the law, so that nothing can be tested."""
    fits = [fit for fit in case.fits if fit["fitted"]]
    values = [f"{fit['family']} {name} = {fit['params'][name]:.6g}" for fit in fits for name in fit["exponents"]]
    exponents = shortlist(values, separator="; ")
    return f"All rows lie on {case.equation} to rounding: {exponents}. Without scatter there are no intervals or tests."


def _headline_for_one_family(case: Case) -> str:
    """The headline of a table with one family: its exponent with its interval."""
    (fit,) = case.fits
    if not fit["identified"]:
        return f"One family, and its exponent is not identified under {case.equation}: {'; '.join(fit['notes'])}."
    name = fit["exponents"][0]
    low, high = fit["ci95"][name]
    zero = ", an interval that includes 0" if low <= 0 <= high else ""
    exponent = f"{name} = {fit['params'][name]:.4g} [{low:.4g}, {high:.4g}] under {case.equation}{zero}"
    return f"One family, {fit['family']}: {exponent}. A comparison of families needs at least two."
