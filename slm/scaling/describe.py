"""Turn entries of fits.json and rows of comparison.json into the words of tables and reports."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slm.runtime.words import NO_VALUE, escape_markdown, interval, is_number, read_number, with_interval
from slm.scaling.bounded import from_angle, to_angle
from slm.scaling.forms import Floats
from slm.scaling.laws import LAWS

Entry = dict[str, Any]
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+|×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?%?")


def is_identified(entry: Entry, name: str) -> bool:
    """Whether the fit has a value of parameter `name`, and the data identify the parameter."""
    return bool(entry["fitted"]) and name not in entry["not_identified"] and entry["params"].get(name) is not None


def moved_points(entry: Entry, centre: Floats) -> Floats:
    """The values of the fitted points if they are moved along the law to points where the law is `centre`."""
    residual = np.array(entry["points"]["residual"], float)
    is_error = entry.get("kind") == "accuracy"
    return from_angle(to_angle(centre) + residual) if is_error else centre * np.exp(residual)


def has_complete_lists(entry: Entry | None, *names: str) -> bool:
    """Whether each of the keys `names` of `entry` has a nonempty list without None."""
    return entry is not None and all(entry.get(name) and None not in entry[name] for name in names)


def fitted_laws(entries: Sequence[Entry]) -> list[str]:
    """Return the names of the laws in these entries: built-in laws in the order of `LAWS`, then the user's formulas."""
    laws = dict.fromkeys(entry["law"] for entry in entries)
    return [*(law for law in LAWS if law in laws), *(law for law in laws if law not in LAWS)]


def family_name(row: Mapping[str, Any]) -> str:
    """Return the name of the row's family, escaped for Markdown."""
    return escape_markdown(row["family"])


def pair_name(row: Entry) -> str:
    """Return the names of the row's two families, `a - b`, escaped for Markdown."""
    return f"{escape_markdown(row['a'])} - {escape_markdown(row['b'])}"


def exponent_text(entry: Entry, name: str) -> str:
    """Return `value [low, high]` of an exponent; `not identified [low, high]` if the data do not identify it."""
    if not entry["fitted"]:
        return NO_VALUE
    return _value_text(entry, name, entry["params"].get(name), entry["ci95"].get(name))


def _value_text(entry: Entry, name: str, value: Any, ends: Sequence[Any] | None) -> str:
    if not is_identified(entry, name):
        return f"not identified {interval(ends, 3)}" if ends and any(map(is_number, ends)) else "not identified"
    return with_interval(value, ends)


def exponents_text(entry: Entry) -> str:
    """List the exponents of a fit with their variables, one per line of a table cell."""
    variables = entry["variable_of"]
    return "<br>".join(f"{name} (in {variables[name]}): {exponent_text(entry, name)}" for name in entry["exponents"])


def floor_text(entry: Entry) -> str:
    """Return the floor of the target as `exponent_text` writes it; `none in the law` if the law has no floor."""
    if entry["floor"] is None:
        return "none in the law"
    if not entry["fitted"]:
        return NO_VALUE
    return _value_text(entry, entry["floor"], entry["floor_value"], entry["floor_ci95"])


def status(entry: Entry) -> str:
    """Return `not fitted`, `identified (but not E)` for exponents that are, or `NOT IDENTIFIED` with a reason."""
    if not entry["fitted"]:
        return "not fitted"
    if entry["identified"]:
        exceptions = [name for name in entry["not_identified"] if name not in entry["exponents"]]
        return f"identified (but not {', '.join(exceptions)})" if exceptions else "identified"
    reason = next((entry["reasons"][name] for name in entry["exponents"] if name in entry["reasons"]), "")
    return f"**NOT IDENTIFIED**: {escape_markdown(reason or 'see the notes')}"


def notes(entries: Sequence[Entry]) -> list[str]:
    """Write one sentence for each note of the fits, with the laws and families that have the note.

    Notes that differ only in one number become one sentence. Two kinds of note are left out: the reasons that
    `status` gives, and the warning on exponents of perplexity, which reports show once for all fits.
    """
    groups: dict[str, list[tuple[Entry, str]]] = {}
    for entry in entries:
        for note in entry["notes"]:
            if entry["fitted"] and "exponent of perplexity" not in note and note not in entry["reasons"].values():
                groups.setdefault(_NUMBER.sub("#", note), []).append((entry, note))
    return [
        f"{laws_and_families([entry for entry, _ in group])}: {_merged_note([note for _, note in group])}."
        for group in groups.values()
    ]


def laws_and_families(entries: Sequence[Entry]) -> str:
    """Return `law, law (family, family); law (family)`: laws with the same families are named together."""
    families_by_law: dict[str, list[str]] = {}
    for entry in entries:
        families_by_law.setdefault(entry["law"], []).append(entry["family"])
    laws_by_families: dict[str, list[str]] = {}
    for law, families in families_by_law.items():
        laws_by_families.setdefault(", ".join(families), []).append(law)
    return "; ".join(f"{', '.join(laws)} ({escape_markdown(names)})" for names, laws in laws_by_families.items())


def _merged_note(notes: Sequence[str]) -> str:
    """Merge notes with one number each into one note with the range of this number; join other notes by semicolons."""
    notes = list(dict.fromkeys(notes))
    numbers = [_NUMBER.findall(note) for note in notes]
    if len(notes) == 1 or any(len(matches) != 1 for matches in numbers):
        return escape_markdown("; ".join(notes))
    ordered = sorted((number for (number,) in numbers), key=read_number)
    return escape_markdown(_NUMBER.sub(f"{ordered[0]} to {ordered[-1]}", notes[0], count=1))
