"""Entries of fits.json in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from slm.runtime.words import NOTHING, escape_markdown, interval, is_number, with_interval
from slm.scaling.laws import LAWS

Entry = dict[str, Any]


def variable_of(entry: Entry, exponent: str) -> str:
    """The variable, or variables, that an exponent is of."""
    return str(entry["variable_of"][exponent])


def is_identified(entry: Entry, name: str) -> bool:
    """Whether the data identify a parameter, so that its value may be shown."""
    return bool(entry["fitted"]) and name not in entry["not_identified"] and entry["params"].get(name) is not None


def has_complete_lists(entry: Entry | None, *names: str) -> bool:
    """Whether an entry has lists of numbers under these names with none missing."""
    held = entry or {}
    return all(held.get(name) and None not in held[name] for name in names)


def laws_of(entries: Sequence[Entry]) -> list[str]:
    """The laws of some fits, in the order of the registry, formulas last."""
    there = dict.fromkeys(entry["law"] for entry in entries)
    return [*(law for law in LAWS if law in there), *(law for law in there if law not in LAWS)]


_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?%?")


def exponent(entry: Entry, name: str, digits: int = 4) -> str:
    """An exponent with its interval; never a bare number where it is not identified."""
    if not entry["fitted"]:
        return NOTHING
    ends = entry["ci95"].get(name)
    if not is_identified(entry, name):
        return f"not identified {interval(ends, 3)}" if ends and any(map(is_number, ends)) else "not identified"
    return with_interval(entry["params"][name], ends, digits)


def exponents(entry: Entry) -> str:
    """All exponents of a fit with what they are in."""
    shown = [f"{name} (in {variable_of(entry, name)}): {exponent(entry, name)}" for name in entry["exponents"]]
    return "<br>".join(shown)


def floor(entry: Entry) -> str:
    """The floor of a law that has one."""
    if entry["floor"] is None:
        return "none in the law"
    return exponent(entry, entry["floor"])


def status(entry: Entry) -> str:
    """Whether a fit may be believed, and why not."""
    if not entry["fitted"]:
        return "not fitted"
    if entry["identified"]:
        lost = [name for name in entry["not_identified"] if name not in entry["exponents"]]
        return "identified" + (f" (but not {', '.join(lost)})" if lost else "")
    return f"**NOT IDENTIFIED**: {escape_markdown(reason(entry) or 'see the notes')}"


def reason(entry: Entry) -> str:
    """The first reason why a fit is not identified."""
    return next((entry["reasons"][name] for name in entry["exponents"] if name in entry["reasons"]), "")


def notes(entries: Sequence[Entry]) -> list[str]:
    """What the fits remark beside their status; remarks that differ in one number only become one."""
    about: dict[str, list[tuple[Entry, str]]] = {}
    for entry in entries:
        for note in entry["notes"] if entry["fitted"] else []:
            if "exponent of perplexity" not in note and note not in entry["reasons"].values():
                about.setdefault(_NUMBER.sub("#", note), []).append((entry, note))
    return [f"{_who([entry for entry, _ in of])}: {_joined([note for _, note in of])}." for of in about.values()]


def _who(entries: Sequence[Entry]) -> str:
    """Laws, and the families they were fitted to."""
    families: dict[str, list[str]] = {}
    for entry in entries:
        families.setdefault(entry["law"], []).append(entry["family"])
    laws: dict[str, list[str]] = {}
    for law, names in families.items():
        laws.setdefault(", ".join(names), []).append(law)
    return "; ".join(f"{', '.join(names)} ({escape_markdown(of)})" for of, names in laws.items())


def _joined(remarks: Sequence[str]) -> str:
    """One remark; a number that differs becomes a range."""
    remarks = list(dict.fromkeys(remarks))
    found = [_NUMBER.findall(note) for note in remarks]
    if len(remarks) == 1 or any(len(numbers) != 1 for numbers in found):
        return escape_markdown("; ".join(remarks))
    ordered = sorted((numbers[0] for numbers in found), key=lambda number: float(number.rstrip("%")))
    return escape_markdown(_NUMBER.sub(f"{ordered[0]} to {ordered[-1]}", remarks[0], count=1))
