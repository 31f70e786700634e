"""Entries of fits.json, and rows of comparison.json, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from slm.runtime.words import NOTHING, escape_markdown, interval, is_number, with_interval
from slm.scaling.laws import LAWS

Entry = dict[str, Any]
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?%?")


def is_identified(entry: Entry, name: str) -> bool:
    """Whether the data identify a parameter, so that its value may be shown."""
    return bool(entry["fitted"]) and name not in entry["not_identified"] and entry["params"].get(name) is not None


def has_complete_lists(entry: Entry | None, *names: str) -> bool:
    """Whether an entry has a list of numbers under each of these names, with no number missing."""
    return all((entry or {}).get(name) and None not in entry[name] for name in names)  # type: ignore[index]


def laws_of(entries: Sequence[Entry]) -> list[str]:
    """The laws of some fits, in the order of the registry, formulas last."""
    fitted = dict.fromkeys(entry["law"] for entry in entries)
    return [*(law for law in LAWS if law in fitted), *(law for law in fitted if law not in LAWS)]


def family_name(row: Mapping[str, Any]) -> str:
    """The family of a row, as Markdown."""
    return escape_markdown(row["family"])


def pair_name(row: Entry) -> str:
    """The two families of a row, as Markdown."""
    return f"{escape_markdown(row['a'])} - {escape_markdown(row['b'])}"


def exponent(entry: Entry, name: str, digits: int = 4) -> str:
    """An exponent with its interval, without its value if the data do not identify it."""
    if not entry["fitted"]:
        return NOTHING
    ends = entry["ci95"].get(name)
    if not is_identified(entry, name):
        return f"not identified {interval(ends, 3)}" if ends and any(map(is_number, ends)) else "not identified"
    return with_interval(entry["params"][name], ends, digits)


def exponents(entry: Entry) -> str:
    """All exponents of a fit, each with its variable."""
    variables = entry["variable_of"]
    return "<br>".join(f"{name} (in {variables[name]}): {exponent(entry, name)}" for name in entry["exponents"])


def floor(entry: Entry) -> str:
    """The floor of a fit, if its law has one."""
    return "none in the law" if entry["floor"] is None else exponent(entry, entry["floor"])


def status(entry: Entry) -> str:
    """Whether a fit may be believed, and why not."""
    if not entry["fitted"]:
        return "not fitted"
    if entry["identified"]:
        lost = [name for name in entry["not_identified"] if name not in entry["exponents"]]
        return "identified" + (f" (but not {', '.join(lost)})" if lost else "")
    reason = next((entry["reasons"][name] for name in entry["exponents"] if name in entry["reasons"]), "")
    return f"**NOT IDENTIFIED**: {escape_markdown(reason or 'see the notes')}"


def notes(entries: Sequence[Entry]) -> list[str]:
    """What the fits note beside their status; notes that differ only in one number are merged into one."""
    groups: dict[str, list[tuple[Entry, str]]] = {}
    for entry in entries:
        for note in entry["notes"] if entry["fitted"] else []:
            if "exponent of perplexity" not in note and note not in entry["reasons"].values():
                groups.setdefault(_NUMBER.sub("#", note), []).append((entry, note))
    return [
        f"{_laws_and_families([entry for entry, _ in group])}: {_merged([note for _, note in group])}."
        for group in groups.values()
    ]


def _laws_and_families(entries: Sequence[Entry]) -> str:
    families: dict[str, list[str]] = {}
    for entry in entries:
        families.setdefault(entry["law"], []).append(entry["family"])
    laws: dict[str, list[str]] = {}
    for law, names in families.items():
        laws.setdefault(", ".join(names), []).append(law)
    return "; ".join(f"{', '.join(names)} ({escape_markdown(fitted_to)})" for fitted_to, names in laws.items())


def _merged(remarks: Sequence[str]) -> str:
    """One remark; a number that differs becomes a range."""
    remarks = list(dict.fromkeys(remarks))
    numbers = [_NUMBER.findall(note) for note in remarks]
    if len(remarks) == 1 or any(len(each) != 1 for each in numbers):
        return escape_markdown("; ".join(remarks))
    ordered = sorted((each[0] for each in numbers), key=lambda number: float(number.rstrip("%")))
    return escape_markdown(_NUMBER.sub(f"{ordered[0]} to {ordered[-1]}", remarks[0], count=1))
