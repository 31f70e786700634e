"""The parts of "Which to ship" that the reports of analyses and evaluations share: the choices and the candidates.

An entry has the keys of `slm.scaling.choices.choose`, and `target`, `level`, `sure`, `limits`, `words` (key of a
measure -> its name) and `candidates`, each with `name`, `family`, `loss`, `low`, `high`, and `measures`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from slm.report.markdown import Columns, bullets, folded_if_long, table_by_column
from slm.runtime.words import (
    NO_VALUE,
    count,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    target_name,
    with_interval,
)

Entry = Mapping[str, Any]
WORTH_NAMING = 0.01  # a smaller probability that no candidate is chosen is not said
DEFINITIONS = {
    "latency first": "the fastest that meets the limits; `ship.max_loss` says how good it must be",
    "balanced": "on the Pareto front of {target} and log latency, the one farthest below the line between the ends of "
    "the front: up to it, a doubling of the latency gains more than on average over the front. The ends depend on what "
    "was measured",
    "quality first": "the lowest {target} among those that meet the limits",
}


def choice_sentences(entry: Entry) -> list[str]:
    """One sentence per use case, for Markdown: the choice, or what the data cannot tell apart."""
    return [f"**{choice['use'].capitalize()}**: {_sentence(choice, entry)}" for choice in entry["choices"]]


def choice_rows(entry: Entry) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows for the tracker, one row per use case."""
    columns = ["use", "best", "probability", "sure"]
    return columns, [[choice[column] for column in columns] for choice in entry["choices"]]


def _sentence(choice: Entry, entry: Entry) -> str:
    among = [f"{escape_markdown(name)} ({_probability(share)})" for name, share in choice["among"]]
    if choice["best"] is None and choice["sure"]:
        return f"none, because {choice['why']}."
    if choice["sure"] or choice.get("doubt"):
        row = next(row for row in entry["candidates"] if row["name"] == choice["best"])
        speed = measured(row, entry["latency"], entry) if entry["latency"] else ""
        facts = f"{target_name(entry['target'])} {format_number(row['loss'])}" + (f", {speed}" if speed else "")
        text = f"{escape_markdown(choice['best'])} ({facts})"
        if choice.get("doubt"):
            return f"by these measurements {text}, but the data cannot say: {escape_markdown(choice['doubt'])}."
        return f"{text}, with probability {_probability(choice['probability'])}."
    if choice["none"] >= WORTH_NAMING:
        among.append(f"none ({_probability(choice['none'])})")
    because = f"; by the estimates none, because {choice['why']}" if choice["best"] is None else ""
    return f"the data cannot say which of {join_names(among)}{because}."


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
    blocks = [
        bullets(choice_sentences(entry)),
        intro,
        bullets(definitions),
        bullets(map(escape_markdown, entry["notes"])),
    ]
    return [*blocks, folded_if_long("Candidates", candidates, num)]


def uses_by_name(entry: Entry) -> dict[str, str]:
    """Name of each chosen candidate -> its uses, with a question mark where the data cannot say."""
    uses: dict[str, str] = {}
    for choice in entry["choices"]:
        if choice["best"] is not None:
            text = choice["use"] + ("" if choice["sure"] else "?")
            uses[choice["best"]] = f"{uses[choice['best']]}, {text}" if choice["best"] in uses else text
    return uses


def _value_of(key: str, row: Entry) -> str:
    return value_text(row["measures"].get(key))


def _columns(entry: Entry) -> Columns:
    columns: dict[str, Callable[[Any], str]] = {
        "candidate": lambda row: escape_markdown(row["name"]),
        target_name(entry["target"]): lambda row: with_interval(row["loss"], [row["low"], row["high"]]),
    }
    for key, words in entry["words"].items():
        columns[words] = partial(_value_of, key)
    if entry["limits"]:
        columns["meets the limits"] = lambda row: _probability(row["meets"])
    chosen = uses_by_name(entry)
    return {**columns, "choice": lambda row: chosen.get(row["name"], NO_VALUE)}
