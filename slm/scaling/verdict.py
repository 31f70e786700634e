"""The answer in words, with its conditions, and nothing that the numbers beside it do not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slm.scaling.laws import LAWS

Entry = dict[str, Any]
UNEQUAL = 0.01
"""Bartlett's p below which one variance for all families is given up."""


def verdict(comparison: Entry, entries: Sequence[Entry], controlled: bool | None) -> Entry:
    """`headline`, and `sentences` that qualify it; `distinguishable` is None where the table cannot say."""
    primary = comparison["primary"]
    law = comparison["laws"].get(primary["law"])
    own = [
        entry
        for entry in entries
        if (entry["law"], entry["target"], entry["loss"]) == (primary["law"], primary["target"], primary["loss"])
        and entry["size"] in (None, primary["size"])
    ]
    under = f"under {own[0]['equation']} of {primary['target'].replace('_', ' ')}"
    sentences: list[str] = []
    lost = [entry["family"] for entry in own if not entry["identified"]]
    if len(comparison["families"]) < 2:
        headline, answer = _one_family(own[0], under), None
    elif law is None or len(lost) > len(own) - 2:
        lost = lost or [entry["family"] for entry in own]
        headline = f"The exponents of {_listed(lost)} are not identified {under}, so the families cannot be compared."
        answer = None
    else:
        headline, answer = _families(law, under, primary["level"])
        sentences += _pairs(law, answer)
        sentences += _power(law, primary)
        if lost:
            sentences.append(f"The exponent of {_listed(lost)} is not identified and enters no statement.")
        sentences += _assumed(law, primary)
    sentences += _ranking(comparison["ranking"], primary) if len(comparison["families"]) > 1 else []
    if controlled is False and len(comparison["families"]) > 1:
        sentences.append(
            "The comparison is NOT CONTROLLED: the audit names what differs, or what the table does not say."
        )
    sentences += _limits(comparison, own)
    return {"headline": headline, "distinguishable": answer, "sentences": sentences}


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


def _families(law: Entry, under: str, level: float) -> tuple[str, bool | None]:
    """The joint test decides where its assumptions hold, else the pairs, adjusted for their number."""
    if not _joint_test_holds(law):
        return _by_pairs(law, under)
    test = next((t for t in law["tests"] if t["restricted"] == "shared_exponents"), None)
    if test is None:
        return f"Whether the families share exponents {under} was not tested: {_untested(law)}.", None
    found = f"likelihood ratio {test['statistic']:.3g} on {_counted(test['df'], 'degree')} of freedom, {_p(test)}"
    if test["p"] < 1 - level:
        return f"The families differ in how they scale {under} ({found}).", True
    return f"The families' exponents are not distinguishable at this design {under} ({found}).", False


def _joint_test_holds(law: Entry) -> bool:
    """Whether rows are independent and families scatter alike, as the joint test assumes."""
    of = law["assumptions"]
    return not of["rows_share_runs"] and not (of["equal_variance_p"] is not None and of["equal_variance_p"] < UNEQUAL)


def _untested(law: Entry) -> str:
    linear = len(LAWS[law["law"]].parameters) == 2
    return "there are too few runs" if linear else "there are too few runs, or analysis.calibration=0 simulates nothing"


def _by_pairs(law: Entry, under: str) -> tuple[str, bool | None]:
    known, apart = _known_and_apart(law)
    if not known:
        return f"Too few runs to test whether the families share exponents {under}.", None
    if apart:
        return (
            f"The families differ in how they scale {under} ({len(apart)} of {_counted(len(known), 'difference')}).",
            True,
        )
    return f"The families' exponents are not distinguishable at this design {under} (no pair differs).", False


def _known_and_apart(law: Entry) -> tuple[list[Entry], list[Entry]]:
    """Differences of identified exponents, and those of them that remain after Holm's adjustment over all."""
    known = [pair for pair in law["pairs"] if pair["identified"] and pair["p_adjusted"] is not None]
    return known, [pair for pair in known if pair["p_adjusted"] < law["power"]["level"]]


def _pairs(law: Entry, answer: bool | None) -> list[str]:
    """Which pairs differ; none is named where a joint test that holds does not reject (closed testing)."""
    known, apart = _known_and_apart(law)
    if not known or answer is False:
        return []
    said = [
        f"{pair['a'] if pair['delta'] > 0 else pair['b']} has the larger {pair['exponent']} than "
        f"{pair['b'] if pair['delta'] > 0 else pair['a']}, by {abs(pair['delta']):.3g} "
        f"({_ends(pair, pair['delta'] > 0)}, Holm-adjusted p = {pair['p_adjusted']:.2g})."
        for pair in apart
    ]
    if not apart:
        said.append(f"No single pair differs after Holm's adjustment over {_counted(len(known), 'difference')}.")
    return said


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _p(test: Entry) -> str:
    """p as far as it is known: no simulation resolves less than one in its number of data sets."""
    if not test["replicates"]:
        return f"p = {test['p']:.2g} (F test)"
    least = test["p"] <= 1 / (test["replicates"] + 1)
    return f"p {'<=' if least else '='} {test['p']:.2g} (calibrated by {test['replicates']} simulations)"


def _ends(pair: Entry, upright: bool) -> str:
    low, high = (pair["ci_low"], pair["ci_high"]) if upright else (_minus(pair["ci_high"]), _minus(pair["ci_low"]))
    return f"[{'open' if low is None else format(low, '.3g')}, {'open' if high is None else format(high, '.3g')}]"


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _power(law: Entry, primary: Entry) -> list[str]:
    power = law["power"]
    if power["detectable"] is None:
        return ["This design could not have detected any difference of exponents with confidence."]
    said = (
        f"The smallest difference in {power['exponent']} that this design could have detected with "
        f"{power['power']:.0%} power (over {_counted(power['pairs'], 'pair')}) is {power['detectable']:.3g}."
    )
    better = power["better"]
    if better.get("times_runs_for_half"):
        said += f" To detect half of that takes {better['times_runs_for_half']} times the runs at these sizes"
        if better.get("span_for_half"):
            said += (
                f", or sizes that span a factor of {better['span_for_half']:.3g} instead of {better['span_now']:.3g}"
            )
        said += "."
    return [said]


def _assumed(law: Entry, primary: Entry) -> list[str]:
    of, said = law["assumptions"], []
    if primary["loss"] == "huber" and not of["rows_share_runs"]:
        said.append("Exponents are by Huber's loss, but the likelihood ratios compare least-squares fits.")
    if of["equal_variance_p"] is not None and of["equal_variance_p"] < UNEQUAL:
        said.append(
            f"The families do not scatter alike (Bartlett's p = {of['equal_variance_p']:.2g}), which the joint test "
            "assumes, so the verdict rests on the pairs, each with its own families' scatter."
        )
    if of["rows_share_runs"]:
        said.append(
            "Several rows come from one run; the likelihood ratios take them for independent and are too sure, so the "
            "verdict rests on the pairwise intervals, which draw whole runs."
        )
    return said


def _ranking(ranking: Entry, primary: Entry) -> list[str]:
    if ranking["survives"] is None:
        return [f"Whether the ranking survives another law, N or target cannot be said: {ranking['unknown']}."]
    order = " > ".join(ranking["primary_order"])
    apart = ranking["perplexity_order"]
    aside = (
        [f"Fitted to perplexity, whose exponent mixes that of loss with its level, the order is {' > '.join(apart)}."]
        if apart and apart != ranking["primary_order"]
        else []
    )
    count = f"{ranking['same_order']} of {ranking['compared_with']} other fits"
    if ranking["survives"]:
        return [f"The order of exponents, {order}, is the same in all other fits ({ranking['compared_with']}).", *aside]
    moved = [what for what, same in ranking["survives_change_of"].items() if not same]
    names = {"law": "law", "target": "target", "size": "N", "loss": "fitted loss"}
    changes = _listed([names[m] for m in moved]) or "law, target and N together"
    return [f"The order of exponents, {order}, holds in {count} only; it changes with the {changes}.", *aside]


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
    """What the data hold against the law of the verdict: lack of fit, or another law they prefer by far."""
    said = []
    amiss = [e["family"] for e in own if e.get("misfits")]
    if amiss:
        said.append(
            f"Sizes of {_listed(amiss)} deviate from this law by more than seeds do, so it leaves something out."
        )
    rows = comparison["selection"]
    voters = {row["family"] for row in rows if row["identified"] and row["law"] == comparison["primary"]["law"]}
    totals: dict[str, float] = {}
    for row in rows:
        if row["family"] in voters:
            aicc = row["aicc"] if row["aicc"] is not None and row["identified"] else float("nan")
            totals[row["law"]] = totals.get(row["law"], 0.0) + aicc
    finite = {law: total for law, total in totals.items() if abs(total) < float("inf")}
    law = comparison["primary"]["law"]
    best = min(finite, key=lambda name: finite[name], default=law)
    if law in finite and finite[law] - finite[best] > 10:
        said.append(f"{best} describes the runs better (AICc lower by {finite[law] - finite[best]:.3g}).")
    return said


def _limits(comparison: Entry, own: Sequence[Entry]) -> list[str]:
    said = _budget(comparison, own) + _misfit(comparison, own)
    rows = [entry["n_cells"] for entry in own]
    if min(rows) < 5:
        said.append(f"The smallest family has {_counted(min(rows), 'size')}; intervals are exact only if the law is.")
    if comparison["n_runs"] == comparison["n_cells"]:
        said.append("No size was trained with a second seed, so the scatter between runs is inferred from the fit.")
    spans = [end / start for entry in own for start, end in [next(iter(entry["range"].values()))] if start > 0]
    if spans and min(spans) < 10:
        said.append(f"The sizes span a factor of {min(spans):.2g} only; nothing is known beyond them.")
    return said


def _listed(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    if not names:
        return ""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
