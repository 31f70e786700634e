"""What a reader must know first: how many checkpoints, which is best in what, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slm.evaluation.report.average import apart, average
from slm.evaluation.report.differences import compare, ranked, target_error
from slm.evaluation.report.quality import warnings
from slm.evaluation.report.results import Entry, Results, common_tasks, tasks_of
from slm.evaluation.report.speed import conditions, usual_conditions
from slm.report.markdown import Section, bullets
from slm.runtime.words import TARGET_NAMES, escape_markdown, is_number, listed, measured, plural, sig, with_interval
from slm.scaling.describe import is_identified


def summary_section(results: Results, fits: Sequence[Entry]) -> Section:
    """The results in a few sentences."""
    done = [entry for entry in results.entries if entry.get("status", "completed") == "completed"]
    lines = [f"{plural(len(done), 'checkpoint')} evaluated."]
    unfinished = [entry for entry in results.entries if entry not in done]
    if unfinished:
        named = listed(
            [f"{escape_markdown(entry['name'])} ({escape_markdown(entry['status'])})" for entry in unfinished]
        )
        lines.append(f"**Not finished**: {named}.")
    lines += [line for line in (_best(results), _fastest(results), _average(results), _skipped(results)) if line]
    lines += [_law(results, entry) for entry in fits if is_identified(entry, "alpha")]
    lines += ["**Mind**: see the warnings under Quality before comparing figures."] * bool(warnings(results))
    return Section("Summary").add(bullets(lines))


def _best(results: Results) -> str:
    rows = ranked(results, results.primary)
    if not rows or results.primary is None:
        return ""
    (entry, score), target = rows[0], results.target
    shown = measured(score[target], target_error(score, target))
    what = TARGET_NAMES[target]
    if len(rows) == 1:
        return f"{escape_markdown(entry['name'])} has {shown} {what} on {escape_markdown(results.primary.title)}."
    alike = [escape_markdown(other["name"]) for other, its in rows[1:] if compare(score, its, target).beyond is False]
    text = f"Lowest {what} on {escape_markdown(results.primary.title)}: {escape_markdown(entry['name'])}, {shown}"
    tail = f"; not distinguishable from {listed(alike)} by the standard errors of the differences." if alike else "."
    return text + tail


def _fastest(results: Results) -> str:
    usual = usual_conditions(results)
    rows = [entry for entry in results.entries if usual is not None and conditions(entry) == usual]
    if not rows or usual is None:
        return ""
    best = max(rows, key=lambda entry: entry["speed"]["decode_tokens_per_second"])
    rate = sig(best["speed"]["decode_tokens_per_second"])
    lead = "Fastest decode" if len(rows) > 1 else "Decode"
    slowest = (best["speed"].get("decode_spread") or [math.inf])[0]
    alike = [
        escape_markdown(entry["name"])
        for entry in rows
        if entry is not best and (entry["speed"].get("decode_spread") or [-math.inf])[-1] >= slowest
    ]
    within = f"; within the spread of repetitions as fast: {listed(alike)}" if alike else ""
    return f"{lead}: {escape_markdown(best['name'])}, {rate} tokens/s ({escape_markdown(usual.words)}){within}."


def _average(results: Results) -> str:
    having = [entry for entry in results.entries if tasks_of(entry)]
    common = common_tasks(having)
    if len(common) < 2:
        return ""
    best = max(having, key=lambda entry: average(entry, common)[0])
    lead = "Highest average" if len(having) > 1 else "Average"
    alike = [
        escape_markdown(entry["name"])
        for entry in having
        if entry is not best and apart(average(entry, common), average(best, common)) is False
    ]
    tail = f"; not distinguishable from {listed(alike)} by these standard errors" if alike else ""
    mean = measured(*average(best, common))
    return f"{lead} of {len(common)} common tasks: {escape_markdown(best['name'])}, {mean}{tail}."


def _skipped(results: Results) -> str:
    every = [one for entry in results.entries for one in (entry.get("tasks") or {}).values()]
    lost = sum(not is_number(one.get("value")) for one in every)
    return f"{lost} of {plural(len(every), 'task result')} are missing; the reasons are under Tasks." if lost else ""


def _law(results: Results, entry: Entry) -> str:
    said = with_interval(entry["params"]["alpha"], entry["ci95"]["alpha"])
    return (
        f"{escape_markdown(entry['family'])}: {TARGET_NAMES[results.fit_target]} falls as N to the power -alpha, "
        f"alpha = {said} (n = {entry['n_runs']})."
    )
