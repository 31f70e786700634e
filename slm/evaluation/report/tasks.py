"""Report section on tasks: values with standard errors, reasons for skipped tasks, and averages of common tasks."""

from __future__ import annotations

from itertools import combinations

from slm.evaluation.report.results import (
    Entry,
    Results,
    average,
    common_tasks,
    differ_significantly,
    name_of,
    number,
    tasks_of,
    training_caveats,
)
from slm.report.markdown import Section, bullets, figure, table
from slm.runtime.words import NO_VALUE, escape_markdown, join_names, plural, shortlist, with_error

Averages = dict[str, tuple[float, float | None]]  # checkpoint -> (mean over the common tasks, standard error)
MAX_PAIRS = 10  # maximum number of pairs of checkpoints that a sentence names
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
        _indistinguishable_pairs(averages),
        figure(results.folder, "tasks", "Bars are 2 standard errors."),
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
        rows.append([f"**average of {len(common)}**", NO_VALUE, NO_VALUE, NO_VALUE, *values])
    return table(["task", "metric", "items", "shots", *checkpoints], rows)


def _row(name: str, entries: list[Entry]) -> list[str]:
    results = [tasks_of(entry).get(name, {}) for entry in entries]
    cells = [escape_markdown(name)]
    for key in ("metric", "n", "num_fewshot"):
        distinct_values = dict.fromkeys(str(result[key]) for result in results if result.get(key) is not None)
        cells.append(escape_markdown(join_names(list(distinct_values))) or NO_VALUE)
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


def _indistinguishable_pairs(averages: Averages) -> str:
    pairs = []
    for (name, mean_and_error), (other_name, other_mean_and_error) in combinations(averages.items(), 2):
        if differ_significantly(mean_and_error, other_mean_and_error) is False:
            pairs.append(f"{name} and {other_name}")
    if not pairs:
        return ""
    return (
        f"- Averages less than 2 standard errors apart: {shortlist(pairs, MAX_PAIRS, '; ', max_characters=200)}. "
        "All checkpoints answered the same items, so a paired comparison item by item would be more sensitive."
    )
