"""The figure of the tasks: a panel a task, a row a checkpoint. Error bars are 2 standard errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from slm.evaluation.report.average import average
from slm.evaluation.report.results import Entry, Results, common_tasks, tasks_of
from slm.report.style import GREY, axes_at, colours, markers, sheet, short
from slm.runtime.words import is_number, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
"""Panels side by side."""


def tasks(results: Results) -> Figure | None:
    """A panel a task, a row a checkpoint, and the average of the tasks that all have."""
    having = [entry for entry in results.entries if tasks_of(entry)]
    if not having:
        return None
    common = common_tasks(having)
    shown = list(dict.fromkeys(name for entry in having for name in tasks_of(entry)))
    parts = [(name, {e["name"]: _task(e, name) for e in having if name in tasks_of(e)}) for name in shown]
    if len(common) > 1:
        parts.append((f"average of {len(common)}", {e["name"]: average(e, common) for e in having}))
    names = [results.labels[entry["name"]] for entry in having]
    left = 0.25 + 0.075 * max(map(len, names))
    inner, row, gap = 1.75, max(0.19 * len(names) + 0.1, 0.35), 0.62
    across = left + COLUMNS * inner + (COLUMNS - 1) * 0.2 + 0.2
    down = math.ceil(len(parts) / COLUMNS)
    body = down * (row + gap) + 0.1
    figure, head = sheet(f"Tasks: values with 2 standard errors, {plural(len(names), 'checkpoint')}", across, body)
    for place, (title, values) in enumerate(parts):
        at_row, column = divmod(place, COLUMNS)
        top = head + 0.25 + at_row * (row + gap)
        axis = axes_at(figure, left + column * (inner + 0.2), top, inner, row)
        _task_panel(axis, title, [(results.labels[e["name"]], values.get(e["name"])) for e in having], column == 0)
    return figure


def _task(entry: Entry, name: str) -> tuple[float, float | None]:
    found = tasks_of(entry)[name]
    return float(found["value"]), found["se"] if is_number(found.get("se")) else None


def _task_panel(axis: Axes, title: str, rows: list[tuple[str, tuple[float, float | None] | None]], named: bool) -> None:
    names = [name for name, _ in rows]
    for y, (name, value) in enumerate(rows):
        if value is None:
            axis.text(0.5, y, "not evaluated", transform=axis.get_yaxis_transform(), fontsize=7, color=GREY,
                      ha="center", va="center", style="italic")  # fmt: skip
            continue
        bars = None if value[1] is None else 2 * value[1]
        axis.errorbar(value[0], y, xerr=bars, marker=markers(names)[name], color=colours(names)[name], ms=5, capsize=2,
                      elinewidth=1.1, ls="")  # fmt: skip
    axis.set_title(short(title), fontsize=8.5)
    axis.set_yticks(range(len(rows)), labels=names if named else [""] * len(rows))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=4)
    axis.margins(x=0.15)
    axis.grid(True, axis="x")
