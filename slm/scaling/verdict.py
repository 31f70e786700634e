"""The answer in words, with its conditions. No sentence says more than the numbers beside it.

Families at the same sizes are compared by the slope of their log ratio (`paired`), or above the floor that they share
if the runs reject straight lines; other families by the exponents of the law of the verdict. The verdict says that two
families differ only if the difference is significant, stays significant under every floor that the runs do not reject,
and has the same sign under every law that the runs do not reject and in which both exponents are identified. If nothing
could be tested above floors, it must be significant under one of these laws too.
"""

from __future__ import annotations

from collections.abc import Sequence

from slm.runtime.words import shortlist
from slm.scaling.caveats import Case, Entry, detectable, few, levels, limits, names_of, not_compared
from slm.scaling.pairs import adjust

RECORDED = "a b exponent paired above delta ci_low ci_high p p_adjusted p_any_floor_adjusted differs"
"""Keys of a pair in comparison.json."""


def verdict(comparison: Entry, entries: Sequence[Entry], controlled: bool | None) -> Entry:
    """`headline`, and `sentences` that qualify it; `distinguishable` is None if the table cannot tell.

    `pairs` are the comparisons behind it, each `paired` at the same sizes or by the law; `differs` is None if that
    depends on the law.
    """
    primary = comparison["primary"]
    keys = ("law", "target", "loss")
    fits = [e for e in entries if all(e[k] == primary[k] for k in keys) and e["size"] in (None, primary["size"])]
    case = Case(comparison, fits)
    is_exact = comparison["weighed"].get(case.law_name, {}).get("exact", False)
    sentences: list[str] = []
    pairs: list[Entry] = []
    answer = None
    if is_exact:
        headline = _exact(case)
    elif len(comparison["families"]) == 1:
        headline = _one_family(case)
    else:
        pairs = _compared_pairs(case)
        headline, answer = _headline(case, pairs)
        sentences = [*levels(case), *_differences(case, pairs), *not_compared(case, pairs)]
    if controlled is False and len(comparison["families"]) > 1:
        sentences.append("The comparison is NOT CONTROLLED: the audit names what differs or is not recorded.")
    sentences += limits(case)
    recorded = [{name: pair[name] for name in RECORDED.split()} for pair in pairs]
    return {"headline": headline, "distinguishable": answer, "sentences": sentences, "pairs": recorded}


def _compared_pairs(case: Case) -> list[Entry]:
    """Every pair by the best comparison there is, with `differs` and what speaks `against` it.

    The p-values, adjusted over all these pairs, are written into the comparison too, whose tables the report shows.
    """
    matched, law_rows = case.comparison["paired"], case.law.get("pairs", [])
    ranked = law_rows[0]["exponent"] if law_rows else ""  # the exponent by which families are ranked
    pairs: list[Entry] = []
    sources: list[Entry] = []
    for row in matched["pairs"] if case.comparison["primary"]["in_N"] else []:
        common = {"a": row["a"], "b": row["b"], "variable": "N", "paired": True, "above": bool(row["above_floor"])}
        if row["above_floor"]:
            sources.append(row["above_floor"])
            common |= {"exponent": ranked or "the exponent of N", "straight": False, "p_any_floor": None}
        elif not matched["curved"]:
            sources.append(row)
            common |= {"exponent": "local exponent", "straight": True}
        else:
            continue
        pairs.append(sources[-1] | common)
    done = names_of(pairs)
    for row in law_rows:
        if row["p"] is not None and not ((row["a"], row["b"]) in done and row["exponent"] == ranked):
            sources.append(row)
            pairs.append({**row, "paired": False, "above": False})
    adjust(pairs)
    for pair, source in zip(pairs, sources, strict=True):
        source |= {key: pair[key] for key in ("p_adjusted", "p_any_floor_adjusted")}
    for pair in pairs:
        pair["against"] = _objection(case, pair)
        pair["differs"] = None if pair["against"] else case.is_significant(pair["p_adjusted"])
        pair["is_ranked"] = pair["paired"] or pair["exponent"] == ranked
    return pairs


def _objection(case: Case, pair: Entry) -> str:
    """What a law or a floor that the runs do not reject says against the result of this pair; "" if nothing."""
    is_significant = case.is_significant(pair["p_adjusted"])
    any_floor = pair["p_any_floor_adjusted"]
    is_confirmed = False
    for name, law in case.comparison["laws"].items():
        row = _same_pair(pair, law["pairs"])
        if row is None or row["straight"] or not case.comparison["weighed"].get(name, {}).get("tenable", False):
            continue  # a straight line has the test above floors for that
        if not pair["paired"] and name == case.law_name:
            continue
        differs, is_opposite = case.is_significant(row["p_adjusted"]), row["delta"] * pair["delta"] < 0
        # The test of a pair above a floor is sharper than that of the law, which then need not be significant.
        is_sharper = pair["above"] or (pair["straight"] and any_floor is not None)
        if is_significant and not is_opposite and (differs or is_sharper):
            is_confirmed = True
        elif is_significant or differs:
            return _contradiction(case, pair, name, row)
    if not is_significant or not pair["straight"]:
        return ""
    steeper, flatter = _order(pair)
    slope = (
        f"The {case.target} of {steeper} falls faster over these sizes than that of {flatter}, by {_difference(pair)} "
        f"in the exponent (p = {pair['p_adjusted']:.2g})"
    )
    if any_floor is None:
        return "" if is_confirmed else f"{slope}, but no law with a floor that the runs identify confirms it."
    if case.is_significant(any_floor):
        return ""
    return (
        f"{slope}. One law with a floor and a constant factor on N explains this too (p = {any_floor:.2g}), so the "
        "difference need not continue at larger sizes. A wider span of sizes would tell."
    )


def _same_pair(pair: Entry, rows: Sequence[Entry]) -> Entry | None:
    """The same two families by another law, and its first exponent of the same variable, if it is identified."""
    keys = ("a", "b", "variable")
    row = next((row for row in rows if all(row[key] == pair[key] for key in keys)), None)
    return row if row and row["identified"] and row["p_adjusted"] is not None else None


def _contradiction(case: Case, pair: Entry, law: str, row: Entry) -> str:
    """That another law says otherwise, and what would decide."""
    where = f"Under {case.law_name}"
    if pair["paired"]:
        where = "Above a floor that both share" if pair["above"] else "Over these sizes"
    here, there = f"{pair['a']} and {pair['b']} do not differ significantly", "they do not differ significantly"
    if case.is_significant(pair["p_adjusted"]):
        here = "{} scales faster than {}".format(*_order(pair))
    if case.is_significant(row["p_adjusted"]):
        there = f"{row['exponent']} of {_order(row)[0]} is larger"
    return (
        f"{where}, {here} (p = {pair['p_adjusted']:.2g}); under {law}, which the runs do not reject, {there} "
        f"(p = {row['p_adjusted']:.2g}). Sizes over a wider span, which show the bend, would decide."
    )


def _order(pair: Entry) -> tuple[str, str]:
    """The steeper and the flatter family of a pair."""
    return (pair["a"], pair["b"]) if pair["delta"] > 0 else (pair["b"], pair["a"])


def _difference(pair: Entry) -> str:
    """The absolute difference with its interval."""
    ends = [pair["ci_low"], pair["ci_high"]]
    if not pair["delta"] > 0:
        ends = [None if end is None else -end for end in reversed(ends)]
    low, high = ("open" if end is None else f"{end:.3g}" for end in ends)
    return f"{abs(pair['delta']):.3g} [{low}, {high}]"


def _headline(case: Case, pairs: Sequence[Entry]) -> tuple[str, bool | None]:
    if not pairs:
        families = [fit["family"] for fit in case.fits if not fit["identified"]] or [f["family"] for f in case.fits]
        lost = f"The exponents of {few(families)} are not identified under {case.equation}"
        return f"{lost}, so the families cannot be compared.", None
    p = min(pair["p_adjusted"] for pair in pairs)
    test = f"smallest of {len(pairs)} Holm-adjusted p-values: {p:.2g}" if len(pairs) > 1 else f"t test, p = {p:.2g}"
    differing = [pair for pair in pairs if pair["differs"]]
    if differing:
        return f"The families differ in how they scale {_where(case, differing)} ({test}).", True
    if any(pair["differs"] is None for pair in pairs):
        return f"Whether the families differ in how they scale depends on the law ({test} {_where(case, pairs)}).", None
    return f"The families' exponents are not distinguishable with this design {_where(case, pairs)} ({test}).", False


def _where(case: Case, pairs: Sequence[Entry]) -> str:
    """What an answer holds for."""
    if any(pair["above"] for pair in pairs):
        return "above a floor that they share"
    return "over these sizes" if any(pair["paired"] for pair in pairs) else f"under {case.equation}"


def _differences(case: Case, pairs: Sequence[Entry]) -> list[str]:
    """Every difference and what supports or opposes it, and the smallest difference that this design detects."""
    if not pairs:
        return []
    differing = [pair for pair in pairs if pair["differs"]]
    sentences = []
    for pair in differing:
        steeper, flatter = _order(pair)
        value = f"by {_difference(pair)}, Holm-adjusted p = {pair['p_adjusted']:.2g}"
        if pair["paired"] and not pair["above"]:
            sentences.append(f"The {case.target} of {steeper} falls faster with N than that of {flatter}, {value}.")
        else:
            where = f"Above a floor that both share, {pair['exponent']}" if pair["above"] else pair["exponent"]
            sentences.append(f"{where} of {steeper} is larger than that of {flatter}, {value}.")
    sentences += [pair["against"] for pair in pairs if pair["against"]]
    sentences += _explained_by_floor(case, pairs)
    sentences += [_agreement(case, pair) for pair in differing if pair["is_ranked"]]
    return [sentence for sentence in sentences if sentence] + detectable(case)


def _explained_by_floor(case: Case, pairs: Sequence[Entry]) -> list[str]:
    """Pairs whose slopes differ over these sizes, but whose exponents above a shared floor do not."""
    equal = names_of(pair for pair in pairs if pair["above"] and pair["differs"] is False)
    rows = [row for row in case.comparison["paired"]["pairs"] if (row["a"], row["b"]) in equal]
    names = ["for {} than for {}".format(*_order(r)) for r in rows if case.is_significant(r["p_adjusted"])]
    slopes = f"Over these sizes the {case.target} falls faster {shortlist(names, most=3)}"
    return [f"{slopes}; one law with a floor and a constant factor on N explains that."] if names else []


def _agreement(case: Case, pair: Entry) -> str:
    """In how many other fits the order of a pair that differs is the same."""
    names = {pair["a"], pair["b"]}
    row = next((r for r in case.comparison["ranking"]["pairs"] if {r["steeper"], r["flatter"]} == names), None)
    if row is None or not row["of"]:
        return ""
    steeper, flatter = _order(pair)
    same = row["same"] if row["steeper"] == steeper else row["of"] - row["same"]
    return f"{steeper} is steeper than {flatter} in {same} of {row['of']} fits with other laws, N or targets."


def _exact(case: Case) -> str:
    values = [
        f"{fit['family']} {name} = {fit['params'][name]:.6g}"
        for fit in case.fits
        if fit["fitted"]
        for name in fit["exponents"]
    ]
    return (
        f"All rows lie on {case.equation} to rounding: {shortlist(values, separator='; ')}. Without scatter there are "
        "no intervals and no tests."
    )


def _one_family(case: Case) -> str:
    (fit,) = case.fits
    if not fit["identified"]:
        return f"One family, and its exponent is not identified under {case.equation}: {'; '.join(fit['notes'])}."
    name = fit["exponents"][0]
    low, high = fit["ci95"][name]
    zero = ", an interval that includes 0" if low <= 0 <= high else ""
    return (
        f"One family, {fit['family']}: {name} = {fit['params'][name]:.4g} [{low:.4g}, {high:.4g}] under "
        f"{case.equation}{zero}. A comparison of families needs at least two."
    )
