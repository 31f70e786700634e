"""The summary of an evaluation: how many checkpoints, which of them is best at what, and how certain that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slm.evaluation.report.differences import compare, ranked, target_error
from slm.evaluation.report.quality import warnings
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
from slm.runtime.words import (
    TARGET_NAMES,
    escape_markdown,
    is_number,
    listed,
    measured,
    plural,
    sig,
    with_interval,
)
from slm.scaling.describe import is_identified


def summary_section(results: Results, fits: Sequence[Entry]) -> Section:
    """The results in a few sentences."""
    unfinished = [entry for entry in results.entries if entry.get("status", "completed") != "completed"]
    lines = [f"{plural(len(results.entries) - len(unfinished), 'checkpoint')} evaluated."]
    if unfinished:
        names = listed([f"{name_of(entry)} ({escape_markdown(entry['status'])})" for entry in unfinished])
        lines.append(f"**Not finished**: {names}.")
    lines += [line for line in (_best(results), _fastest(results), _average(results), _missing(results)) if line]
    lines += [_law(results, entry) for entry in fits if is_identified(entry, "alpha")]
    if warnings(results):
        lines.append("**Mind**: see the warnings under Quality before comparing figures.")
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
    tail = f"; not distinguishable from {listed(similar)} by the standard errors of the differences" if similar else ""
    return f"Lowest {target_name} on {measure}: {name}, {value}{tail}."


def _fastest(results: Results) -> str:
    usual = usual_conditions(results)
    rows = [entry for entry in results.entries if usual is not None and conditions(entry) == usual]
    if not rows or usual is None:
        return ""
    best = max(rows, key=lambda entry: entry["speed"]["decode_tokens_per_second"])
    rate = sig(best["speed"]["decode_tokens_per_second"])
    lead = "Fastest decode" if len(rows) > 1 else "Decode"
    slow_end = (best["speed"].get("decode_spread") or [math.inf])[0]
    similar = [
        name_of(entry)
        for entry in rows
        if entry is not best and (entry["speed"].get("decode_spread") or [-math.inf])[-1] >= slow_end
    ]
    tail = f"; equally fast within the spread of repetitions: {listed(similar)}" if similar else ""
    return f"{lead}: {name_of(best)}, {rate} tokens/s ({escape_markdown(usual.words)}){tail}."


def _average(results: Results) -> str:
    entries = [entry for entry in results.entries if tasks_of(entry)]
    common = common_tasks(entries)
    if len(common) < 2:
        return ""
    averages = [(name_of(entry), average(entry, common)) for entry in entries]
    name, best = max(averages, key=lambda pair: pair[1][0])
    lead = "Highest average" if len(entries) > 1 else "Average"
    similar = [other for other, value in averages if other != name and differ_significantly(value, best) is False]
    tail = f"; not distinguishable from {listed(similar)} by these standard errors" if similar else ""
    return f"{lead} of {len(common)} common tasks: {name}, {measured(*best)}{tail}."


def _missing(results: Results) -> str:
    task_results = [result for entry in results.entries for result in (entry.get("tasks") or {}).values()]
    num_missing = sum(not is_number(result.get("value")) for result in task_results)
    if not num_missing:
        return ""
    verb = "is" if num_missing == 1 else "are"
    return f"{num_missing} of {plural(len(task_results), 'task result')} {verb} missing; the reasons are under Tasks."


def _law(results: Results, entry: Entry) -> str:
    alpha = with_interval(entry["params"]["alpha"], entry["ci95"]["alpha"])
    return (
        f"{escape_markdown(entry['family'])}: {TARGET_NAMES[results.fit_target]} falls as N to the power -alpha, "
        f"alpha = {alpha} (n = {entry['n_runs']})."
    )
