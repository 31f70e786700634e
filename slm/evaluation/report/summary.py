"""The summary of an evaluation: how many checkpoints, which of them is best at what, and how certain that is."""

from __future__ import annotations

import math

from slm.evaluation.report.quality import compare, ranked, target_error, warnings
from slm.evaluation.report.results import (
    Entry,
    Results,
    average,
    common_tasks,
    differ_significantly,
    name_of,
    tasks_of,
)
from slm.evaluation.report.speed import conditions, usual_conditions
from slm.report.markdown import Section, bullets
from slm.runtime.words import TARGET_NAMES, escape_markdown, is_number, listed, measured, plural, sig
from slm.scaling.describe import exponent_text, family_name, is_identified


def summary_section(results: Results) -> Section:
    """The results in a few sentences."""
    unfinished = [entry for entry in results.entries if entry["status"] != "completed"]
    lines = [f"{plural(len(results.entries) - len(unfinished), 'checkpoint')} evaluated."]
    if unfinished:
        names = listed([f"{name_of(entry)} ({escape_markdown(entry['status'])})" for entry in unfinished])
        lines.append(f"**Not finished**: {names}.")
    lines += filter(None, (_best(results), _fastest(results), _highest_average(results), _missing(results)))
    lines += [_exponent(results, entry) for entry in results.laws if is_identified(entry, "alpha")]
    if warnings(results):
        lines.append("**Caution**: see the warnings under Quality before comparing figures.")
    return Section("Summary").add(bullets(lines))


def _best(results: Results) -> str:
    rows = ranked(results, results.primary)
    if not rows or results.primary is None:
        return ""
    (entry, best), target = rows[0], results.target_by(results.primary)
    name, measure, target_name = name_of(entry), escape_markdown(results.primary.title), TARGET_NAMES[target]
    value = measured(best[target], target_error(best, target))
    if len(rows) == 1:
        return f"{name} has {value} {target_name} on {measure}."
    similar = [name_of(e) for e, score in rows[1:] if compare(best, score, target).is_significant is False]
    how = "the standard errors of the differences"
    return f"Lowest {target_name} on {measure}: {name}, {value}{_not_distinguishable(similar, how)}."


def _not_distinguishable(names: list[str], how: str) -> str:
    return f"; not distinguishable from {listed(names)} by {how}" if names else ""


def _fastest(results: Results) -> str:
    usual = usual_conditions(results)
    rows = [entry for entry in results.entries if usual is not None and conditions(entry) == usual]
    if not rows or usual is None:
        return ""
    best = max(rows, key=lambda entry: entry["speed"]["decode_tokens_per_second"])
    rate = sig(best["speed"]["decode_tokens_per_second"])
    slow_end = (best["speed"].get("decode_spread") or [math.inf])[0]
    similar = [
        name_of(entry)
        for entry in rows
        if entry is not best and (entry["speed"].get("decode_spread") or [-math.inf])[-1] >= slow_end
    ]
    tail = _not_distinguishable(similar, "the spread of repetitions")
    lead = "Fastest decode" if len(rows) > 1 else "Decode"
    return f"{lead}: {name_of(best)}, {rate} tokens/s ({escape_markdown(usual.words)}){tail}."


def _highest_average(results: Results) -> str:
    entries = [entry for entry in results.entries if tasks_of(entry)]
    common = common_tasks(entries)
    if len(common) < 2:
        return ""
    averages = [(name_of(entry), average(entry, common)) for entry in entries]
    name, best = max(averages, key=lambda pair: pair[1][0])
    similar = [other for other, value in averages if other != name and differ_significantly(value, best) is False]
    tail = _not_distinguishable(similar, "these standard errors")
    lead = "Highest average" if len(entries) > 1 else "Average"
    return f"{lead} of {len(common)} common tasks: {name}, {measured(*best)}{tail}."


def _missing(results: Results) -> str:
    task_results = [result for entry in results.entries for result in entry["tasks"].values()]
    num_missing = sum(not is_number(result.get("value")) for result in task_results)
    verb = "is" if num_missing == 1 else "are"
    words = f"{num_missing} of {plural(len(task_results), 'task result')} {verb} missing; the reasons are under Tasks."
    return words if num_missing else ""


def _exponent(results: Results, entry: Entry) -> str:
    return (
        f"{family_name(entry)}: {TARGET_NAMES[results.fit_target]} falls as N to the power -alpha, "
        f"alpha = {exponent_text(entry, 'alpha')} (n = {entry['n_runs']})."
    )
