"""The section on tasks: values with standard errors, what was skipped and why, averages of what all have."""

from __future__ import annotations

from itertools import combinations

from slm.evaluation.overlap import task_caveats
from slm.evaluation.report.average import apart, average
from slm.evaluation.report.results import Entry, Results, common_tasks, number, tasks_of
from slm.report.markdown import Section, bullets, table
from slm.runtime.words import NOTHING, escape_markdown, listed, measured, plural

# Items of the splits that lm-evaluation-harness 0.4 scores for the MobileLLM paper's eight.
WHOLE = {"arc_easy": 2376, "arc_challenge": 1172, "boolq": 3270, "piqa": 1838, "social_iqa": 1954, "hellaswag": 10042,
         "openbookqa": 500, "winogrande": 1267}  # fmt: skip


def tasks_section(results: Results) -> Section | None:
    """Every task of every checkpoint; None where no task was asked for."""
    having = [entry for entry in results.entries if entry.get("tasks")]
    if not having:
        return None
    section = Section("Tasks").add(
        "Values with their standard errors over the items, and how many items there were; higher is better.",
        *(f"**Mind:** {line}" for line in warnings(having)),
        *(f"**Mind:** {escape_markdown(line)}" for entry in having for line in task_caveats(entry)),
        _table(having),
        _average_said(having),
    )
    lost = [
        f"{escape_markdown(entry['name'])}, {escape_markdown(name)}: {escape_markdown(one['error'])}"
        for entry in having
        for name, one in entry["tasks"].items()
        if one.get("error")
    ]
    if lost:
        section.add("Not evaluated:", bullets(lost))
    return section.add(bullets(_pairs(having)))


def warnings(having: list[Entry]) -> list[str]:
    """Tasks of which a part was scored, and tasks that checkpoints were not given alike."""
    found: dict[str, list[Entry]] = {}
    for entry in having:
        for name, one in tasks_of(entry).items():
            found.setdefault(name, []).append(one)
    counted = {name: {int(n) for one in of if (n := number(one, "n")) is not None} for name, of in found.items()}
    parts = [
        f"{escape_markdown(name)} ({listed([str(n) for n in sorted(counts)])} of {WHOLE[name]})"
        for name, counts in counted.items()
        if name in WHOLE and counts and min(counts) < WHOLE[name]
    ]
    unlike = [
        escape_markdown(name)
        for name, of in found.items()
        if len({(one.get("metric"), one.get("n"), one.get("num_fewshot")) for one in of}) > 1
    ]
    said = []
    if parts:
        said.append(
            f"only a part of the items was scored of {listed(parts)}: these values, and averages with them, do not "
            "compare with published ones."
        )
    if unlike:
        said.append(
            f"{listed(unlike)} had other items, examples or metrics for some checkpoints than for others, so the "
            "values do not compare."
        )
    return said


def _table(having: list[Entry]) -> str:
    names = list(dict.fromkeys(name for entry in having for name in entry["tasks"]))
    common = common_tasks(having)
    header = ["task", "metric", "items", "shots", *(escape_markdown(entry["name"]) for entry in having)]
    rows = [_row(name, having) for name in names]
    if len(common) > 1:
        of = [measured(*average(entry, common)) if tasks_of(entry) else NOTHING for entry in having]
        rows.append([f"**average of {len(common)}**", NOTHING, NOTHING, NOTHING, *of])
    return table(header, rows)


def _row(name: str, having: list[Entry]) -> list[str]:
    found = [tasks_of(entry).get(name) for entry in having]
    stated = {
        key: listed(list(dict.fromkeys(str(one.get(key)) for one in found if one and one.get(key) is not None)))
        for key in ("metric", "n", "num_fewshot")
    }
    values = [measured(one["value"], one.get("se")) if one else NOTHING for one in found]
    return [escape_markdown(name), *(escape_markdown(text) or NOTHING for text in stated.values()), *values]


def _average_said(having: list[Entry]) -> str:
    common = common_tasks(having)
    every = {name for entry in having for name in entry["tasks"]}
    if len(common) < 2:
        return "There is no average: fewer than two tasks have a value for every checkpoint."
    left = sorted(every - set(common))
    of = f"The average is over the {plural(len(common), 'task')} of which no checkpoint lacks a value"
    return (
        of
        + (f", so without {listed([escape_markdown(name) for name in left])}" if left else "")
        + ". Its error is that of other items of these tasks, the root of the summed squares over the number of tasks."
    )


def _pairs(having: list[Entry]) -> list[str]:
    common = common_tasks(having)
    if len(common) < 2:
        return []
    averages = [(entry["name"], average(entry, common)) for entry in having if tasks_of(entry)]
    alike = [
        f"{escape_markdown(a[0])} and {escape_markdown(b[0])}"
        for a, b in combinations(averages, 2)
        if apart(a[1], b[1]) is False
    ]
    if not alike:
        return []
    shown = "; ".join(alike[:10]) + (f"; and {plural(len(alike) - 10, 'more pair')}" if len(alike) > 10 else "")
    return [
        f"Averages within 2 standard errors of each other, and so not distinguishable by these: {shown}. They answered "
        "the same items, so that a paired comparison item by item would be sharper."
    ]
