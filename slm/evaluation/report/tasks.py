"""Report section on tasks: values with standard errors, reasons for skipped tasks, and averages of common tasks.

Notable: differences between checkpoints that answered the same items have *paired* errors, as losses on one text do
(`quality.py`). What makes an item hard for both then cancels.
"""

import math
from collections.abc import Sequence

import numpy as np

from slm.evaluation.bootstrap import influence_error, influences
from slm.evaluation.report.quality import Difference, Error, pairs_to_compare, significance_texts
from slm.evaluation.report.results import (
    Entry,
    Results,
    average,
    common_tasks,
    difference_error,
    name_of,
    number,
    task_metric,
    tasks_of,
    training_caveats,
)
from slm.report.markdown import Section, bullets, figure, table
from slm.runtime.words import NO_VALUE, escape_markdown, format_number, join_names, plural, with_error

Averages = dict[str, tuple[float, float | None]]  # checkpoint -> (mean over the common tasks, standard error)
MEASURES = {"bits_per_byte": "bits per byte", "margin": "margin"}
"""Metric of the right answer -> its words in a table."""
MEASURES_NOTE = (
    "**Bits per byte of the right answer**, lower is better, and its *margin* over the most probable wrong answer, in "
    "bits per byte: above zero if the right answer is the most probable one per byte. Both change with the size of "
    "small models whose accuracies are all near chance, the value of a random guess."
)
PAIRED_NOTE = (
    "Errors are *paired* item by item if both checkpoints answered the same items, else *independent*, which is too "
    "large if both find the same items hard."
)
ITEMS_PER_TASK = {"arc_easy": 2376, "arc_challenge": 1172, "boolq": 3270, "piqa": 1838, "social_iqa": 1954,
                  "hellaswag": 10042, "openbookqa": 500, "winogrande": 1267}  # fmt: skip
"""Number of items that lm-evaluation-harness 0.4 scores for each of the MobileLLM paper's eight tasks."""


def tasks_section(results: Results) -> Section | None:
    """Return the results of all tasks; None if no checkpoint has tasks."""
    entries = [entry for entry in results.entries if entry["tasks"]]
    if not entries:
        return None
    errors = [
        f"{name_of(entry)}, {escape_markdown(name)}: {escape_markdown(result['error'])}"
        for entry in entries
        for name, result in entry["tasks"].items()
        if result.get("error")
    ]
    caveats = [line for entry in entries for line in training_caveats(entry, entry["tasks"], "questions")]
    common = common_tasks(entries)
    averages: Averages = {}
    if len(common) > 1:
        averages = {name_of(entry): average(entry, common) for entry in entries if tasks_of(entry)}
    return Section("Tasks").add(
        "Values with their standard errors over the items, and the number of items; higher is better.",
        *(f"**Caution:** {line}" for line in warnings(entries) + caveats),
        _table(entries, common, averages),
        _average_note(entries, common),
        "Not evaluated:" if errors else "",
        bullets(errors),
        _measures_table(entries),
        _differences_table(entries, common),
        figure(results.folder, "tasks", "Bars are 2 standard errors. Dotted lines are chance."),
        figure(results.folder, "task_bits", "Bars are 2 standard errors. Further left is better."),
    )


def warnings(entries: list[Entry]) -> list[str]:
    """Return a sentence on tasks scored in part, and one on tasks whose settings differ between checkpoints."""
    results_by_task: dict[str, list[Entry]] = {}
    for entry in entries:
        for name, result in tasks_of(entry).items():
            results_by_task.setdefault(name, []).append(result)
    partly_scored, with_different_settings = [], []
    for name, results in results_by_task.items():
        counts = {int(n) for result in results if (n := number(result, "n")) is not None}
        if name in ITEMS_PER_TASK and counts and min(counts) < ITEMS_PER_TASK[name]:
            counts_text = join_names([str(n) for n in sorted(counts)])
            partly_scored.append(f"{escape_markdown(name)} ({counts_text} of {ITEMS_PER_TASK[name]})")
        if len({(result.get("metric"), result.get("n"), result.get("num_fewshot")) for result in results}) > 1:
            with_different_settings.append(escape_markdown(name))
    sentences = []
    if partly_scored:
        sentences.append(
            f"only a part of the items was scored: {join_names(partly_scored)}. These values, and averages with them, "
            "are not comparable with published values."
        )
    if with_different_settings:
        names = join_names(with_different_settings)
        sentences.append(
            f"items, examples or metrics of {names} differ between checkpoints, so the values are not comparable."
        )
    return sentences


def _table(entries: list[Entry], common: list[str], averages: Averages) -> str:
    names = list(dict.fromkeys(name for entry in entries for name in entry["tasks"]))
    checkpoints = [name_of(entry) for entry in entries]
    rows = [_row(name, entries) for name in names]
    if averages:
        values = [with_error(*averages[name]) if name in averages else NO_VALUE for name in checkpoints]
        results = next(filter(None, map(tasks_of, entries)))  # of any checkpoint that has all common tasks
        known = [value for name in common if (value := number(results[name], "chance")) is not None]
        chance = format_number(sum(known) / len(common), 3) if len(known) == len(common) else NO_VALUE
        rows.append([f"**average of {len(common)}**", NO_VALUE, NO_VALUE, NO_VALUE, chance, *values])
    return table(["task", "metric", "items", "shots", "chance", *checkpoints], rows)


def _row(name: str, entries: list[Entry]) -> list[str]:
    results = [tasks_of(entry).get(name, {}) for entry in entries]
    cells = [escape_markdown(name)]
    for key in ("metric", "n", "num_fewshot"):
        distinct_values = dict.fromkeys(str(result[key]) for result in results if result.get(key) is not None)
        cells.append(escape_markdown(join_names(list(distinct_values))) or NO_VALUE)
    chances = dict.fromkeys(format_number(result.get("chance"), 3) for result in results if result.get("chance"))
    cells.append(join_names(list(chances)) or NO_VALUE)
    return cells + [with_error(result["value"], result.get("se")) if result else NO_VALUE for result in results]


def _average_note(entries: list[Entry], common: list[str]) -> str:
    if len(common) < 2:
        return "There is no average: fewer than two tasks have a value for every checkpoint."
    excluded = sorted({name for entry in entries for name in entry["tasks"]} - set(common))
    exclusion = f", which excludes {join_names([escape_markdown(name) for name in excluded])}" if excluded else ""
    return (
        f"The average is over the {plural(len(common), 'task')} for which every checkpoint has a value{exclusion}. Its "
        "error, sqrt(sum of squared errors) / number of tasks, covers the sampling of items within these tasks."
    )


def _measures_table(entries: list[Entry]) -> str:
    """Return a table of bits per byte of the right answer and its margin; empty if no task has them."""
    rows = []
    names = dict.fromkeys(name for entry in entries for name in tasks_of(entry))
    for name in names:
        for metric, metric_words in MEASURES.items():
            measured = [task_metric(tasks_of(entry).get(name, {}), metric) for entry in entries]
            if any(measured):
                values = [with_error(result.get("value"), result.get("se")) for result in measured]
                rows.append([escape_markdown(name), metric_words, *values])
    for metric, metric_words in MEASURES.items():
        common = common_tasks(entries, metric)
        if len(common) > 1:
            values = [with_error(*average(e, common, metric)) if tasks_of(e) else NO_VALUE for e in entries]
            rows.append([f"**average of {len(common)}**", metric_words, *values])
    return f"{MEASURES_NOTE}\n\n{table(['task', 'measure', *map(name_of, entries)], rows)}" if rows else ""


def compare_tasks(first: Entry, second: Entry, tasks: Sequence[str], metric: str = "value") -> Difference:
    """Return the difference, first minus second, of the averages of two checkpoints over tasks that both have.

    Its error is sqrt(sum of squared errors) / number of tasks. The error of a task is paired if both answered the same
    items. If this is not so for every task, `error.reason` says why not.
    """
    differences, errors, num_blocks, reason = [], [], 0, ""
    for name in tasks:
        results = [tasks_of(entry)[name] for entry in (first, second)]
        measured = [task_metric(result, metric) for result in results]
        differences.append(measured[0]["value"] - measured[1]["value"])
        error = _paired_error(results[0], results[1], metric)
        if error.num_blocks is None:
            error = error._replace(se=difference_error(number(measured[0], "se"), number(measured[1], "se")))
            reason = error.reason
        errors.append(error.se)
        num_blocks += error.num_blocks or 0
    known = [se for se in errors if se is not None]
    se = math.hypot(*known) / len(tasks) if len(known) == len(tasks) else None
    return Difference(sum(differences) / len(tasks), Error(se, None if reason else num_blocks, reason))


def _paired_error(first: Entry, second: Entry, metric: str) -> Error:
    """Return the error of the difference of two results of a task. If it cannot be paired, it has a reason, no `se`."""
    items = [result.get("items") or {} for result in (first, second)]
    if not all(metric in stored.get("blocks", {}) for stored in items):
        return Error(None, None, "no items stored")
    if items[0]["fingerprint"] != items[1]["fingerprint"]:
        return Error(None, None, "different items")
    first_K, second_K = (
        influences(np.asarray(stored["blocks"][metric], float), np.asarray(stored["blocks"]["count"], float))
        for stored in items
    )
    se = influence_error(first_K - second_K)
    return Error(se, len(first_K)) if math.isfinite(se) else Error(None, None, "a single item")


def _differences_table(entries: list[Entry], common: list[str]) -> str:
    """Return a table of pairs of checkpoints, the better one first; empty if they share no task."""
    metric = "bits_per_byte" if common and common_tasks(entries, "bits_per_byte") == common else "value"
    with_tasks = [entry for entry in entries if tasks_of(entry)]
    if not common or len(with_tasks) < 2:
        return ""
    sign = 1 if metric == "bits_per_byte" else -1
    ranking = sorted(with_tasks, key=lambda entry: sign * average(entry, common, metric)[0])
    pairs, remark = pairs_to_compare(ranking)
    title = f"**Differences**, A - B. A has the {'lower bits per byte' if sign > 0 else 'higher value'}.{remark}"
    of_tasks = escape_markdown(common[0]) if len(common) == 1 else f"average of {len(common)}"
    columns = [[name_of(a) for a, _ in pairs], [name_of(b) for _, b in pairs]]
    header = ["A", "B"]
    for name, name_words in (("value", of_tasks), ("bits_per_byte", f"bits per byte, {of_tasks}")):
        if name in ("value", metric):
            differences = [compare_tasks(a, b, common, name) for a, b in pairs]
            columns.append([difference.text for difference in differences])
            columns.append(significance_texts(differences))
            header += [name_words, "beyond 2 se"]
    reasons = [difference.error.reason for difference in differences]
    columns.append([f"independent: {reason}" if reason else "paired" for reason in reasons])
    return f"{title} {PAIRED_NOTE}\n\n{table([*header, 'error'], list(zip(*columns, strict=True)))}"
