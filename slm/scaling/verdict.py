"""The answer in words, with its conditions, and nothing that the numbers beside it do not say.

Which pairs are compared how: at the same sizes by the slope of their log ratio (`paired`), above the floor that they
share where the runs reject straight lines; else by the exponents of the law of the verdict. A difference is said only
if it is significant, stays so under every floor that the runs do not reject, and has the same sign under every law that
the runs do not reject and in which both exponents are identified. Where nothing could be tested above floors, it must
be significant there too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slm.runtime.words import MOST_LISTED, shortlist
from slm.scaling.pairs import adjust

Entry = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What the comparisons of all pairs come to."""

    pairs: list[Entry]
    """Every pair that could be compared: `a`, `b`, `exponent`, `delta`, ends, `p`, `p_adjusted`, `paired`, `above`."""
    differ: list[Entry]
    """Significant, and so under every law and floor that is not rejected."""
    unsure: list[tuple[Entry, str]]
    """Significant by one law and not by another, with which says what."""
    p: float | None
    """Of no difference between any families."""
    how: str
    """Which test that is of, in words."""
    ranked: str
    """The exponent of the law by which families are ranked."""


def verdict(comparison: Entry, entries: Sequence[Entry], controlled: bool | None) -> Entry:
    """`headline`, and `sentences` that qualify it; `distinguishable` is None where the table cannot say.

    `pairs` are the comparisons that it rests on, each `paired` at the same sizes or by the law; `differs` is None where
    that depends on the law.
    """
    primary = comparison["primary"]
    own = [
        entry
        for entry in entries
        if (entry["law"], entry["target"], entry["loss"]) == (primary["law"], primary["target"], primary["loss"])
        and entry["size"] in (None, primary["size"])
    ]
    under = f"under {own[0]['equation']} of {primary['target'].replace('_', ' ')}"
    several = len(comparison["families"]) > 1
    sentences: list[str] = []
    pairs: list[Entry] = []
    answer = None
    exact = comparison["weighed"].get(primary["law"], {}).get("exact", False)
    if exact:
        headline = _exact(own, under)
    elif not several:
        headline = _one_family(own[0], under)
    else:
        found = findings(comparison)
        headline, answer = _headline(found, comparison, own, under)
        pairs = [_recorded(pair, found) for pair in found.pairs]
        what = primary["target"].replace("_", " ")
        if found.pairs:
            sentences += [_difference(pair, what) for pair in found.differ]
            sentences += [reason for _, reason in found.unsure]
            sentences += _bent(comparison, found, what)
            sentences += _survival(comparison["ranking"], found)
            sentences += _power(comparison, found)
        sentences += _not_compared(comparison, own, found)
    if several:
        sentences = ([] if exact else _levels(comparison)) + sentences
        if controlled is False:
            sentences.append(
                "The comparison is NOT CONTROLLED: the audit names what differs, or what the table does not say."
            )
    sentences += _limits(comparison, own)
    return {"headline": headline, "distinguishable": answer, "sentences": sentences, "pairs": pairs}


def _recorded(pair: Entry, found: Findings) -> Entry:
    names = (
        "a",
        "b",
        "exponent",
        "paired",
        "above",
        "delta",
        "ci_low",
        "ci_high",
        "p",
        "p_adjusted",
        "p_any_floor_adjusted",
    )
    differs = None if any(pair is one for one, _ in found.unsure) else any(pair is one for one in found.differ)
    return {**{name: pair[name] for name in names}, "differs": differs}


def findings(comparison: Entry) -> Findings:
    """Every pair by the best comparison there is, and what the laws that are not rejected say against it.

    Families at the same sizes are compared in pairs where the law of the verdict is about N at all; `above` a floor
    where that is what the runs support. p-values are adjusted over all pairs, also in `comparison`.
    """
    level = 1 - comparison["primary"]["level"]
    law = comparison["laws"].get(comparison["primary"]["law"])
    rows = law["pairs"] if law else []
    ranked = rows[0]["exponent"] if rows else ""
    matched = comparison["paired"]["pairs"] if comparison["primary"]["in_N"] else []
    paired = {
        (pair["a"], pair["b"]): pair for pair in matched if pair["above_floor"] or not comparison["paired"]["curved"]
    }
    by_law = {(row["a"], row["b"], row["exponent"]): row for row in rows}
    pairs = [_by_ratio(pair, ranked) for pair in paired.values()]
    pairs += [
        {**row, "paired": False, "above": False}
        for row in rows
        if row["p"] is not None and not ((row["a"], row["b"]) in paired and row["exponent"] == ranked)
    ]
    adjust(pairs)
    for pair in pairs:  # the tables of the report show what the verdict rests on
        if pair["paired"]:
            own = paired[pair["a"], pair["b"]]
            own = own["above_floor"] if pair["above"] else own
        else:
            own = by_law[pair["a"], pair["b"], pair["exponent"]]
        own |= {key: pair[key] for key in ("p_adjusted", "p_any_floor_adjusted")}
    differ: list[Entry] = []
    unsure: list[tuple[Entry, str]] = []
    for pair in pairs:
        against = _against(pair, comparison, level)
        significant = pair["p_adjusted"] < level
        if significant and not against:
            differ.append(pair)
        elif against:
            unsure.append((pair, against))
    p = min((pair["p_adjusted"] for pair in pairs), default=None)
    how = f"least of {_counted(len(pairs), 'p-value')} after Holm's adjustment" if len(pairs) > 1 else "t test"
    return Findings(pairs, differ, unsure, p, how, ranked)


def _by_ratio(pair: Entry, ranked: str) -> Entry:
    """A pair at the same sizes: by its slope above a floor where it has that, else by its slope."""
    said = {"a": pair["a"], "b": pair["b"], "variable": "N", "paired": True}
    if pair["above_floor"]:
        exponent = ranked or "the exponent of N"
        return (
            said | pair["above_floor"] | {"exponent": exponent, "above": True, "straight": False, "p_any_floor": None}
        )
    return pair | said | {"exponent": "local exponent", "above": False, "straight": True}


def _against(pair: Entry, comparison: Entry, level: float) -> str:
    """What a floor or a law that the runs do not reject says against a significant pair, or in place of one."""
    significant = pair["p_adjusted"] < level
    what = comparison["primary"]["target"].replace("_", " ")
    floor = pair["p_any_floor_adjusted"]
    seconded = False
    for name, one in comparison["laws"].items():
        row = _same_pair(pair, one["pairs"])
        if row is None or row["straight"] or not comparison["weighed"].get(name, {}).get("tenable", False):
            continue  # a straight line has the floors above for that
        if not pair["paired"] and name == comparison["primary"]["law"]:
            continue
        there, turned = row["p_adjusted"] < level, row["delta"] * pair["delta"] < 0
        if significant and not turned and (there or pair["above"] or (pair["straight"] and floor is not None)):
            seconded = True  # of a pair, the test above a floor is the sharper one under that law
        elif significant or there:
            return _contradicted(pair, row, name, comparison, there)
    if significant and pair["straight"] and floor is not None and floor >= level:
        return _explained(pair, what)
    if significant and pair["straight"] and floor is None and not seconded:
        return _only_over_these(pair, what) + "; no law with a floor that the runs identify says so too."
    return ""


def _same_pair(pair: Entry, rows: Sequence[Entry]) -> Entry | None:
    """The same two families by another law, and its first exponent of the same variable, if it is identified."""
    own = [row for row in rows if (row["a"], row["b"]) == (pair["a"], pair["b"])]
    own = [row for row in own if row["variable"] == pair["variable"]]
    return own[0] if own and own[0]["identified"] and own[0]["p_adjusted"] is not None else None


def _contradicted(pair: Entry, row: Entry, law: str, comparison: Entry, there: bool) -> str:
    """That another law says otherwise, and what would decide."""
    over = "Over these sizes" if pair["paired"] else f"Under {comparison['primary']['law']}"
    over = "Above a floor that both share" if pair["above"] else over
    significant = pair["p_adjusted"] < 1 - comparison["primary"]["level"]
    names = f"{pair['a']} and {pair['b']}"
    one = f"{_steeper(pair)} scales faster than {_flatter(pair)}" if significant else f"{names} do not differ"
    p = f"(p = {row['p_adjusted']:.2g})"
    other = f"{row['exponent']} of {_steeper(row)} is the larger {p}" if there else f"they do not differ {p}"
    return (
        f"{over} {one} (p = {pair['p_adjusted']:.2g}); under {law}, which the runs do not reject, {other}. Sizes "
        "over a wider span, which show the bend, would decide."
    )


def _steeper(pair: Entry) -> str:
    return str(pair["a"] if pair["delta"] > 0 else pair["b"])


def _flatter(pair: Entry) -> str:
    return str(pair["b"] if pair["delta"] > 0 else pair["a"])


def _only_over_these(pair: Entry, what: str) -> str:
    return (
        f"The {what} of {_steeper(pair)} falls faster over these sizes than that of {_flatter(pair)}, by "
        f"{abs(pair['delta']):.3g} {_ends(pair)} in the exponent (p = {pair['p_adjusted']:.2g})"
    )


def _explained(pair: Entry, what: str) -> str:
    """Why a significant slope is no difference in scaling yet."""
    return (
        f"{_only_over_these(pair, what)}; but one law with a floor and a constant factor on N explains that too "
        f"(p = {pair['p_any_floor_adjusted']:.2g}), so it need not go on. A wider span of sizes would tell."
    )


def _headline(found: Findings, comparison: Entry, own: Sequence[Entry], under: str) -> tuple[str, bool | None]:
    where = _where(found.pairs, under)
    if not found.pairs:
        lost = [entry["family"] for entry in own if not entry["identified"]] or [entry["family"] for entry in own]
        return f"The exponents of {_listed(lost)} are not identified {under}, so the families cannot be compared.", None
    test = f"{found.how}, p = {found.p:.2g}"
    if found.differ:
        return f"The families differ in how they scale {_where(found.differ, under)} ({test}).", True
    if found.unsure:
        return f"Whether the families differ in how they scale depends on the law ({test} {where}).", None
    return f"The families' exponents are not distinguishable at this design {where} ({test}).", False


def _where(pairs: Sequence[Entry], under: str) -> str:
    """What an answer holds for."""
    if any(pair["above"] for pair in pairs):
        return "above a floor that they share"
    return "over these sizes" if any(pair["paired"] for pair in pairs) else under


def _difference(pair: Entry, what: str) -> str:
    low, high = _steeper(pair), _flatter(pair)
    value = f"by {abs(pair['delta']):.3g} {_ends(pair)}, Holm-adjusted p = {pair['p_adjusted']:.2g}"
    if pair["above"]:
        return f"Above a floor that both share, {pair['exponent']} of {low} is larger than that of {high}, {value}."
    if pair["paired"]:
        return f"The {what} of {low} falls faster with N than that of {high}, {value}."
    return f"{pair['exponent']} of {low} is larger than that of {high}, {value}."


def _bent(comparison: Entry, found: Findings, what: str) -> list[str]:
    """Pairs whose slopes differ over these sizes as those of one floored law at two levels may."""
    same = {(pair["a"], pair["b"]) for pair in found.pairs if pair["above"]}
    same -= {(pair["a"], pair["b"]) for pair in found.differ + [one for one, _ in found.unsure]}
    level = 1 - comparison["primary"]["level"]
    rows = [row for row in comparison["paired"]["pairs"] if (row["a"], row["b"]) in same and row["p_adjusted"] < level]
    if not rows:
        return []
    names = shortlist([f"{_steeper(row)} than {_flatter(row)}" for row in rows], most=3)
    return [
        f"Over these sizes the {what} of some falls faster ({names}), which one law with a floor and a constant "
        "factor on N explains."
    ]


def _ends(pair: Entry) -> str:
    """The interval of the absolute difference."""
    upright = pair["delta"] > 0
    low, high = pair["ci_low"], pair["ci_high"]
    if not upright:
        low, high = (None if end is None else -end for end in (high, low))
    return f"[{'open' if low is None else format(low, '.3g')}, {'open' if high is None else format(high, '.3g')}]"


def _survival(ranking: Entry, found: Findings) -> list[str]:
    """In how many other fits the order of a pair that differs is the same; of others an order says nothing."""
    said = []
    for pair in (one for one in found.differ if one["paired"] or one["exponent"] == found.ranked):
        names = {pair["a"], pair["b"]}
        row = next((row for row in ranking["pairs"] if {row["steeper"], row["flatter"]} == names), None)
        if row is None or not row["of"]:
            continue
        same = row["same"] if row["steeper"] == _steeper(pair) else row["of"] - row["same"]
        said.append(
            f"{_steeper(pair)} is the steeper of the two in {same} of {row['of']} fits by other laws, N or targets."
        )
    return said


def _levels(comparison: Entry) -> list[str]:
    """Who reaches the lower target at equal size, and how much that is worth."""
    level = 1 - comparison["primary"]["level"]
    target = comparison["primary"]["target"].replace("_", " ")
    rows = [pair for pair in comparison["paired"]["pairs"] if pair["level_p_adjusted"] < level]
    said = []
    for pair in sorted(rows, key=lambda row: -abs(row["level_log_ratio"]))[:3]:
        better = pair["a"] if pair["level_log_ratio"] < 0 else pair["b"]
        other = pair["b"] if better == pair["a"] else pair["a"]
        worth, share = pair["worth"], -math.expm1(-abs(pair["level_log_ratio"]))
        ends = [worth["low"], worth["factor"], worth["high"]]
        times = ""
        if None not in ends:
            low, at, high = ends if better == pair["a"] else [1 / end for end in reversed(ends)]
            times = f", like a model with {at:.3g} times the parameters [{low:.3g}, {high:.3g}]"
        said.append(
            f"At the middle size {better} reaches a {target} {share:.1%} lower than {other}{times} "
            f"(p = {pair['level_p_adjusted']:.2g})."
        )
    if len(rows) > 3:
        said.append(f"{_counted(len(rows) - 3, 'more pair')} differ{'s' if len(rows) == 4 else ''} in level.")
    if comparison["paired"]["pairs"]:
        return said or [f"No two families differ in {target} at the middle size."]
    law = comparison["laws"].get(comparison["primary"]["law"])
    tests = [t for t in (law or {}).get("tests", []) if t["restricted"] == "one_law" and t["wider"] != "separate"]
    if not tests or not tests[0]["replicates"]:
        return []
    differ = "differ" if tests[0]["p"] < level else "cannot be told apart"
    return [f"In level, as a constant factor on size, the families {differ} (p = {tests[0]['p']:.2g})."]


def _power(comparison: Entry, found: Findings) -> list[str]:
    """The smallest difference that would have been found, by pair if they differ much, and what would find half."""
    law = comparison["laws"].get(comparison["primary"]["law"])
    paired = [{**pair, **(pair["above_floor"] or {})} for pair in comparison["paired"]["pairs"]]
    if comparison["paired"]["curved"]:
        paired = [pair for pair in paired if pair["above_floor"]]
    paired = [pair for pair in paired if pair["detectable"]]
    rows = paired or [row for row in (law or {"power": {"by_pair": []}})["power"]["by_pair"] if row["detectable"]]
    if not rows:
        return ["This design could not have detected any difference of exponents with confidence."]
    least, most = (pick(rows, key=lambda row: row["detectable"]) for pick in (min, max))
    chance = f"{comparison['paired']['power']:.0%}"
    if most["detectable"] < 1.5 * least["detectable"]:
        said = f"In {chance} of cases a difference of {most['detectable']:.3g} would have been found."
    else:
        said = f"In {chance} of cases these differences would have been found: " + ", ".join(
            f"{row['detectable']:.3g} between {row['a']} and {row['b']}" for row in (least, most)
        )
        said += " (the best and the worst pair)."
    if any(row.get("above_floor") for row in rows):
        said = f"{said[:-1]}, if the families share a floor, which the runs do not reject."
    advice = comparison["paired"]["advice"] if paired else (law or {})["power"]["advice"]
    return [said, f"To find {most['detectable'] / 2:.3g} takes {advice['text']}."] if advice else [said]


def _not_compared(comparison: Entry, own: Sequence[Entry], found: Findings) -> list[str]:
    """Pairs that nothing compares, families that the law of the verdict does not hold, and ranges that differ."""
    done = {(pair["a"], pair["b"]) for pair in found.pairs}
    left = [row for row in comparison["paired"]["unmatched"] if (row["a"], row["b"]) not in done]
    said = []
    if left and found.pairs:
        names = [f"{row['a']} and {row['b']} ({row['reason']})" for row in left]
        said.append(f"Not compared: {shortlist(names, most=3, separator='; ', longest=150)}.")
    lost = [entry["family"] for entry in own if not entry["identified"]]
    if lost:
        law = comparison["primary"]["law"]
        said.append(
            f"Under {law} the exponent of {_listed(lost)} is not identified and enters no comparison by that law."
        )
    common = (comparison["laws"].get(comparison["primary"]["law"]) or {}).get("common_range")
    if common:
        span = common["range"]
        said.append(
            f"The families' sizes span different ranges; exponents are compared from {span[0]:.3g} to {span[1]:.3g}."
            if span
            else "The families' sizes span different ranges with too few sizes in common; a law without a floor "
            "then has another exponent in each."
        )
    return said


def _exact(own: Sequence[Entry], under: str) -> str:
    values = [
        f"{entry['family']} {name} = {entry['params'][name]:.6g}"
        for entry in own
        if entry["fitted"]
        for name in entry["exponents"]
    ]
    said = f"All rows lie on the law to rounding {under}: {shortlist(values, separator='; ')}."
    return f"{said} Without scatter there is no interval and no test."


def _one_family(entry: Entry, under: str) -> str:
    if not entry["identified"]:
        return f"One family, and its exponent is not identified {under}: {'; '.join(entry['notes'])}."
    name = entry["exponents"][0]
    low, high = entry["ci95"][name]
    return (
        f"One family, {entry['family']}: {name} = {entry['params'][name]:.4g} [{low:.4g}, {high:.4g}] {under}"
        f"{', an interval that includes 0' if low <= 0 <= high else ''}. "
        "A comparison of families needs at least two."
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _budget(comparison: Entry, own: Sequence[Entry]) -> list[str]:
    """At which tokens the exponent in N was measured, which a law without D is silent about."""
    tokens = comparison["tokens"]
    if tokens is None:
        return ["The table does not say how many tokens the runs saw; the exponents hold for that budget alone."]
    if "N" not in own[0]["range"] or "D" in own[0]["range"]:
        return []
    low, high = tokens
    if high <= low * 1.001:
        return [f"All runs saw {_tokens(low)} tokens; at another budget the exponents in N may differ."]
    return [
        f"Tokens vary from {_tokens(low)} to {_tokens(high)} over the runs and the law leaves them out, so its "
        "exponent includes their effect and holds for this rule of tokens alone."
    ]


def _tokens(count: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _misfit(comparison: Entry, own: Sequence[Entry]) -> list[str]:
    """What the data hold against the law of the verdict: lack of fit, another law they prefer, or one they allow."""
    said = []
    tests = [(e["family"], e.get("lack_of_fit")) for e in own]
    amiss = [family for family, test in tests if test and test["p"] * len(tests) < 0.05]
    if amiss:
        said.append(
            f"Sizes of {_listed(amiss)} deviate from this law by more than seeds do, so it leaves something out."
        )
    law, weighed = comparison["primary"]["law"], comparison["weighed"]
    mine = weighed.get(law, {})
    if "aicc" in mine and not mine["tenable"]:
        said.append(f"The runs reject {law}: {mine['why']}.")
    others = [name for name, one in weighed.items() if one["tenable"] and name != law]
    if others:
        said.append(f"The runs do not reject {_listed(others)}{' either' if mine.get('tenable') else ''}.")
    for name, one in weighed.items():
        if one["refused"] and one["families"]:
            families = list(one["refused"])
            said.append(f"{name} cannot be fitted to {_listed(families)} ({one['refused'][families[0]]}).")
    return said


def _limits(comparison: Entry, own: Sequence[Entry]) -> list[str]:
    said = _budget(comparison, own) + _misfit(comparison, own)
    rows = [entry["n_cells"] for entry in own]
    if min(rows) < 5:
        said.append(f"The smallest family has {_counted(min(rows), 'size')}; intervals are exact only if the law is.")
    if all(entry["n_rows"] == entry["n_cells"] for entry in own):
        said.append("No size was trained with a second seed, so the scatter between runs is inferred from the fit.")
    spans = {e["family"]: end / start for e in own for start, end in [next(iter(e["range"].values()))] if start > 0}
    narrow = [family for family, span in spans.items() if span < 10]
    if narrow:
        least = min(spans[family] for family in narrow)
        said.append(f"The sizes of {_listed(narrow)} span a factor of {least:.2g} only; nothing is known beyond them.")
    return said


def _listed(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    if not names or len(names) > MOST_LISTED + 1:
        return shortlist(names)
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
