"""The parts of "Which to ship" that the reports of analyses and evaluations share: the choices, and their figure.

An entry has the keys of `slm.scaling.choices.choose`, and `target`, `level`, `sure`, `limits`, `words` (key of a measure
-> its name) and `candidates`, each with `name`, `family`, `loss`, `low`, `high`, `measures` and `spread` (of costs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.report.markdown import Columns, bullets, folded_if_long, table_by_column
from slm.report.style import Figure, Margins, colours, draw_interval, log_axis, markers, panels, short_name
from slm.runtime.words import (
    NO_VALUE,
    count,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    target_label,
    target_name,
    with_interval,
)

Entry = Mapping[str, Any]
DEFINITIONS = {
    "latency first": "the fastest that meets the limits",
    "balanced": "on the Pareto front of {target} and log latency, the one farthest below the line between the ends of "
    "the front: up to it, a doubling of the latency gains more than on average over the front. The ends depend on what "
    "was measured",
    "quality first": "the lowest {target} among those that meet the limits",
}
MAX_LABELS = 12  # with more candidates, only those of the choices have labels in the figure


def choice_sentences(entry: Entry) -> list[str]:
    """One sentence per use case, for Markdown: the choice, or what the data cannot tell apart."""
    return [f"**{choice['use'].capitalize()}**: {_sentence(choice, entry)}" for choice in entry["choices"]]


def _sentence(choice: Entry, entry: Entry) -> str:
    if choice["best"] is None:
        return f"none, because {choice['why']}."
    if choice["sure"] or choice.get("doubt"):
        row = next(row for row in entry["candidates"] if row["name"] == choice["best"])
        speed = measured(row, entry["latency"], entry) if entry["latency"] else ""
        facts = f"{target_name(entry['target'])} {format_number(row['loss'])}" + (f", {speed}" if speed else "")
        text = f"{escape_markdown(choice['best'])} ({facts})"
        if choice.get("doubt"):
            return f"by these measurements {text}, but the data cannot say: {escape_markdown(choice['doubt'])}."
        return f"{text}, with probability {_probability(choice['probability'])}."
    among = [f"{escape_markdown(name)} ({_probability(share)})" for name, share in choice["among"]]
    return f"the data cannot say which of {join_names(among)}."


def _probability(share: float) -> str:
    return "above 0.99" if share > 0.99 else f"{share:.2f}"


def measured(row: Entry, key: str, entry: Entry) -> str:
    """A measured value of a candidate with the name of its measure: `42 decode tokens/s`."""
    return f"{value_text(row['measures'].get(key))} {entry['words'][key]}"


def value_text(value: Any) -> str:
    """A measured value: a large one, of bytes, as a count."""
    return count(value) if is_number(value) and value >= 1e5 else format_number(value, 3)


def limit_text(entry: Entry) -> str:
    """The limits in words; empty without any."""
    texts = [f"`ship.{key}={limit:g}`" for key, limit in entry["limits"].items()]
    return f"Limits: {join_names(texts)}. " if texts else "No limit was given. "


def choice_blocks(entry: Entry) -> list[str]:
    """The choices, their definitions, and the table of candidates, as Markdown."""
    target = target_name(entry["target"])
    definitions = [f"*{use}*: {text.format(target=target)}" for use, text in DEFINITIONS.items()]
    intro = (
        f"{limit_text(entry)}A probability is the share of results and speeds, drawn from their errors, with which "
        f"the same candidate is chosen; below {entry['sure']:g} the data cannot say. What each use asks for:"
    )
    num = len(entry["candidates"])
    candidates = table_by_column(entry["candidates"], _columns(entry))
    blocks = [bullets(choice_sentences(entry)), intro, bullets(definitions), bullets(map(escape_markdown, entry["notes"]))]
    return [*blocks, folded_if_long("Candidates", candidates, num)]


def _columns(entry: Entry) -> Columns:
    columns = {
        "candidate": lambda row: escape_markdown(row["name"]),
        target_name(entry["target"]): lambda row: with_interval(row["loss"], [row["low"], row["high"]]),
    }
    for key, words in entry["words"].items():
        columns[words] = lambda row, key=key: value_text(row["measures"].get(key))
    if entry["limits"]:
        columns["meets the limits"] = lambda row: _probability(row["meets"])
    chosen = {choice["best"]: choice["use"] for choice in entry["choices"]}
    return {**columns, "choice": lambda row: chosen.get(row["name"], NO_VALUE)}


def choice_figure(entry: Entry, families: list[str]) -> Figure | None:
    """The target against the latency of each candidate, with intervals and the front; None without two speeds."""
    key = entry["latency"]
    rows = [row for row in entry["candidates"] if key and is_number(row["measures"].get(key))]
    if len(rows) < 2:
        return None
    seconds = [1 / row["measures"][key] for row in rows]
    title = f"{target_name(entry['target']).capitalize()} against seconds per token ({entry['words'][key]})"
    margins = Margins(left=0.8, top=0.15, right=0.25)
    figure, (axis,) = panels(1, title, ncols=1, width=7.6, height=4.2, margins=margins, families=families)
    chosen = {choice["best"]: choice["use"] for choice in entry["choices"]}
    losses = [row["loss"] for row in rows]
    limits = min(losses) / 1.05, max(losses) * 1.05
    for row, x in zip(rows, seconds, strict=True):
        family = row["family"]
        colour, marker = colours(families)[family], markers(families)[family]
        draw_interval(axis, [row["low"], row["high"]], x, limits, vertical=True, color=colour, lw=1.1)
        axis.plot(row["spread"][key], [row["loss"]] * 2, color=colour, lw=1.1)
        axis.plot(x, row["loss"], marker=marker, ms=8 if row["name"] in chosen else 5, color=colour, mec="white")
        use = chosen.get(row["name"])
        if use or len(rows) <= MAX_LABELS:
            text = short_name(row["name"]) + (f": {use}" if use else "")
            axis.annotate(text, (x, row["loss"]), (5, 5), textcoords="offset points", fontsize=7.5)
    front, lowest = [], float("inf")
    for x, loss in sorted(zip(seconds, losses, strict=True)):
        if loss < lowest:
            front, lowest = [*front, (x, loss)], loss
    axis.plot(*zip(*front, strict=True), drawstyle="steps-post", color="#555555", lw=1, zorder=1)
    log_axis(axis.xaxis, min(seconds) / 1.2, max(seconds) * 1.4, as_counts=False)
    log_axis(axis.yaxis, *limits, as_counts=False)
    axis.set_xlabel("seconds per token: less is better")
    axis.set_ylabel(f"{target_label(entry['target'])}: less is better")
    return figure
