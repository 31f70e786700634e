"""Two parts of the first screen: what is solid, weak or unknown, and on what machine and with what code it was run."""

import math
from typing import NamedTuple

from slm.analysis.report.directory import Directory
from slm.report.markdown import LIGHTS, table
from slm.runtime.words import (
    amount,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    p_text,
    percent,
    plural,
    shortlist,
)
from slm.scaling.caveats import FEW_SIZES, NARROW_SPAN, Entry, deviating_families, family_pairs, lower_first, num_sizes
from slm.scaling.describe import is_identified

SOLID, WEAK, UNKNOWN = LIGHTS
MIN_SEEDS = 2  # with fewer, a design is called weak
MAX_NAMES = 3  # maximum number of families or laws that a row names
NOT_RECORDED = "not recorded"


class Finding(NamedTuple):
    """A row of the table: a question, one of `LIGHTS`, and the answer in Markdown."""

    question: str
    light: str
    answer: str


def key_line(analysis: Directory) -> str:
    """What the words and signs of the first screen mean."""
    level = f"{analysis.level:.0%}"
    return (
        "<small>Solid: these runs settle it. Weak: it depends on an assumption, or the runs fall short. Unknown: they "
        f"cannot say. N: number of parameters. [a, b]: {level} interval. p: how often chance alone gives as "
        "much, adjusted for the number of comparisons.</small>"
    )


def findings_table(analysis: Directory) -> str:
    """A row for each question that the table can raise, as Markdown."""
    about_families = (_audit, _level, _exponents) if analysis.has_law else (_audit, _level_without_law)
    about_laws = (_law, _floor, _lack_of_fit, _design) if analysis.has_law else ()
    finders = (*(about_families if len(analysis.families) > 1 else ()), *about_laws)
    findings = [find(analysis) for find in finders]
    return table(("question", "how sure", "what the runs say"), findings)


def _names(names: list[str]) -> str:
    return escape_markdown(shortlist(names, MAX_NAMES))


def _audit(analysis: Directory) -> Finding:
    question, audit = "Is the comparison controlled?", analysis.audit
    if not audit:
        return Finding(question, UNKNOWN, "not audited")
    violations, unknown, matched = ([i["what"] for i in audit[key]] for key in ("violations", "unknown", "checked"))
    if violations:
        return Finding(question, WEAK, f"no: families also differ in {_names(violations)}")
    if not audit["controlled"]:
        return Finding(question, UNKNOWN, f"not recorded for every run: {_names(unknown)}")
    return Finding(question, SOLID, f"yes, families are matched in {_names(matched)}" if matched else "yes")


def _level(analysis: Directory) -> Finding:
    question = f"Which family has the lower {analysis.target_name} at equal size?"
    pairs = analysis.comparison["paired"]["pairs"]
    if not pairs:
        return Finding(question, UNKNOWN, "no two families could be compared at the same sizes")
    clear = [pair for pair in pairs if is_number(p := pair["level_p_adjusted"]) and p < 1 - analysis.level]
    if not clear:
        return Finding(question, UNKNOWN, f"no clear difference in {plural(len(pairs), 'pair')}")
    largest_first = sorted(clear, key=lambda pair: -abs(pair["level_log_ratio"]))
    differences = [_difference(pair) for pair in largest_first]
    p = p_text(min(pair["level_p_adjusted"] for pair in clear))
    test = f"{len(clear)} of {plural(len(pairs), 'pair')} {_differ(len(clear))} (smallest adjusted {p})"
    return Finding(question, SOLID, f"{_names(differences)}; {test}")


def _difference(pair: Entry) -> str:
    """Which target of a pair is lower, and by how much: `ssd 4.2% below mobilellm`."""
    lower, higher = lower_first(pair)
    return f"{lower} {percent(-math.expm1(-abs(pair['level_log_ratio'])), digits=1)} below {higher}"


def _level_without_law(analysis: Directory) -> Finding:
    question = f"Which family has the lower {analysis.target_name} at equal size?"
    means = [pair["mean"] for pair in analysis.comparison["levels"]["pairs"] if pair["mean"]]
    tested = [mean["p_adjusted"] for mean in means if is_number(mean["p_adjusted"])]
    if not tested:
        reason = "the differences have no error" if means else "no two families have a size in common"
        return Finding(question, UNKNOWN, reason)
    num_clear = sum(p < 1 - analysis.level for p in tested)
    test = f"smallest adjusted {p_text(min(tested))}"
    answer = f"{num_clear} of {plural(len(means), 'pair')} {_differ(num_clear)} ({test})"
    return Finding(question, SOLID if num_clear else UNKNOWN, answer)


def _exponents(analysis: Directory) -> Finding:
    question, verdict = "Which family scales faster?", analysis.comparison["verdict"]
    pairs = verdict["pairs"]
    if not pairs:
        return Finding(question, UNKNOWN, "no exponents could be compared")
    p_values = [pair["p_adjusted"] for pair in pairs]
    test = f"smallest adjusted {p_text(min(p_values))}" if all(map(is_number, p_values)) else "no p"
    num_pairs = plural(len(family_pairs(pairs)), "pair")  # a pair has a row for each exponent
    num_differing = len(family_pairs(pair for pair in pairs if pair["differs"]))
    if num_differing:
        return Finding(question, SOLID, f"{num_differing} of {num_pairs} {_differ(num_differing)} ({test})")
    if verdict["distinguishable"] is None:
        return Finding(question, WEAK, f"depends on the law ({test})")
    return Finding(question, UNKNOWN, f"no difference found in {num_pairs} ({test})")


def _differ(number: int) -> str:
    return "differs" if number == 1 else "differ"


def _law(analysis: Directory) -> Finding:
    question, weighed = "Which law describes the runs?", analysis.comparison["weighed"]
    law = analysis.verdict_basis["law"]
    others = {name: row for name, row in weighed.items() if name != law and "aicc" in row}
    not_rejected = [name for name, row in others.items() if row["tenable"]]
    equation = analysis.equation(law)
    if not weighed.get(law, {}).get("tenable"):
        known = "the runs reject it" if "aicc" in weighed.get(law, {}) else "it could not be tested"
        return Finding(question, UNKNOWN, f"the verdict uses {equation}, but {known}")
    if not_rejected:
        return Finding(question, WEAK, f"{equation}, but the runs also allow {_equations(analysis, not_rejected)}")
    if not others:
        return Finding(question, WEAK, f"{equation}; no other law was tested")
    return Finding(question, SOLID, f"{equation}; the runs reject {_names(list(others))}")


def _equations(analysis: Directory, laws: list[str]) -> str:
    more = [f"{len(laws) - MAX_NAMES} more laws"] if len(laws) > MAX_NAMES else []
    return " or ".join([*(analysis.equation(law) for law in laws[:MAX_NAMES]), *more])


def _floor(analysis: Directory) -> Finding:
    question = f"Is there a floor below which the {analysis.target_name} does not fall?"
    weighed = analysis.comparison["weighed"]
    with_floor = [entry for entry in analysis.entries() if entry["floor"] is not None and entry["law"] in weighed]
    laws = [name for name in _by_aicc(weighed) if any(entry["law"] == name for entry in with_floor)]
    fits = [entry for entry in with_floor if entry["law"] == laws[0]] if laws else []
    identified = [entry for entry in fits if is_identified(entry, entry["floor"])]
    if not identified:
        return Finding(question, UNKNOWN, "the runs do not identify a floor")
    values = sorted(entry["floor_value"] for entry in identified)
    low, high = format_number(values[0], 3), format_number(values[-1], 3)
    families = plural(len(fits), "family", "families")
    heights = low if low == high else f"{low} to {high}"
    answer = f"{heights} in {len(identified)} of {families}, if {analysis.equation(laws[0])} holds"
    tenable = {name: analysis.entries(law=name) for name, row in weighed.items() if row["tenable"]}
    floorless = [name for name, fits_of_law in tenable.items() if all(fit["floor"] is None for fit in fits_of_law)]
    if floorless:
        answer += f"; without a floor, the runs allow {_equations(analysis, floorless)}"
    return Finding(question, SOLID if len(identified) == len(fits) and not floorless else WEAK, answer)


def _by_aicc(weighed: Entry) -> list[str]:
    """The laws that the runs do not reject, then the others; in both groups the law with the lowest AICc first."""

    def rank(name: str) -> tuple[bool, float]:
        aicc = weighed[name].get("aicc")
        return not weighed[name]["tenable"], aicc if is_number(aicc) else float("inf")

    return sorted(weighed, key=rank)


def _lack_of_fit(analysis: Directory) -> Finding:
    question, fits = "Do the sizes lie on the law?", analysis.verdict_fits
    tests = {entry["family"]: entry["lack_of_fit"] for entry in fits if entry.get("lack_of_fit")}
    worst = max((entry["rmse_log"] for entry in fits if is_number(entry["rmse_log"])), default=None)
    deviation = f"sizes deviate by up to {percent(worst, digits=1)} (rms)" if worst is not None else "not computed"
    tested = {name: test["p"] for name, test in tests.items() if is_number(test["p"])}
    if not tested:
        return Finding(question, UNKNOWN, f"{deviation}; without a second seed this cannot be tested")
    if deviating := deviating_families(fits):
        test = f"smallest adjusted {p_text(min(1.0, min(tested.values()) * len(fits)))}"
        return Finding(question, WEAK, f"no: {deviation}, more than seeds explain, in {_names(deviating)} ({test})")
    return Finding(question, SOLID, f"yes: {deviation}, no more than seeds explain")


def _design(analysis: Directory) -> Finding:
    question, fits = "Are there enough sizes and seeds to fit a law?", analysis.verdict_fits
    variable = next(iter(fits[0]["range"]))
    lows, highs = zip(*(entry["range"][variable] for entry in fits), strict=True)
    sizes = min(map(num_sizes, fits))
    seeds = min(entry["n_rows"] / max(entry["n_cells"], 1) for entry in fits)
    span = min(high / low for low, high in zip(lows, highs, strict=True))
    noun = ("size", "sizes") if variable == "N" else (f"value of {variable}", f"values of {variable}")
    answer = f"{plural(sizes, *noun)} per family, {variable} from {amount(variable, min(lows))} to "
    answer += f"{amount(variable, max(highs))}, {plural(math.floor(seeds), 'seed')}"
    lacking = [f"few {noun[1]}"] * (sizes < FEW_SIZES) + ["a narrow span"] * (span < NARROW_SPAN)
    if seeds < MIN_SEEDS:
        lacking.append("a second seed at some sizes only" if seeds > 1 else "no second seed")
    return Finding(question, WEAK if lacking else SOLID, f"{answer}: {join_names(lacking)}" if lacking else answer)


def provenance_line(analysis: Directory) -> str:
    """Where and with what code the runs were trained, and when they were analysed; `not recorded` if unknown."""
    written = analysis.settings.get("written") or {}
    columns = {"Hardware": "device", "precision": "precision", "commit": "git_commit", "versions": "versions"}
    trained = [f"{name}: {_recorded(analysis, column)}" for name, column in columns.items()]
    analysed = f"Analysed: {written.get('date') or NOT_RECORDED}"
    if written:
        analysed += f" with slm {written['slm']}, commit {(written['commit'] or NOT_RECORDED)}"
    return f"<small>{'; '.join(trained)}. {escape_markdown(analysed)}.</small>"


def _recorded(analysis: Directory, column: str) -> str:
    """The values of a column of results.csv, without repetitions."""
    frame = analysis.sweep_table("results.csv")
    values = frame[column].dropna().unique() if column in frame else []
    return escape_markdown(shortlist(values, MAX_NAMES, max_characters=160)) or NOT_RECORDED
