"""Pieces of Markdown that a report is made of. Cells and sentences are Markdown already: see `wording.plainly`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from slm.scaling.report.directory import Directory, Entry, known, variable_of
from slm.scaling.report.wording import NOTHING, interval, is_number, plainly, with_interval

VISIBLE_ROWS = 12
"""A longer table that is not the main one is folded."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?%?")


@dataclass
class Section:
    """A heading and its blocks: paragraphs, tables, figures."""

    title: str
    blocks: list[str] = field(default_factory=list)

    def add(self, *blocks: str) -> Section:
        """Append blocks, leaving out empty ones."""
        self.blocks += [block for block in blocks if block]
        return self

    def markdown(self) -> str:
        """The section, with a blank line between blocks."""
        return "\n\n".join([f"## {self.title}", *self.blocks])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; empty without rows. Columns in which all cells begin like numbers are aligned right."""
    if not rows:
        return ""
    marks = ["---:" if all(_numeric(row[i]) for row in rows) else "---" for i in range(len(header))]
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _numeric(cell: str) -> bool:
    return cell == NOTHING or cell[:1].isdigit() or (cell[:1] in "-+<≤" and cell[1:].lstrip()[:1].isdigit())


def folded(summary: str, content: str) -> str:
    """Content that opens on a click, and reads on in plain Markdown."""
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>" if content else ""


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def figure(of: Directory, name: str, caption: str) -> str:
    """A figure of the directory with its caption; nothing where it was not drawn."""
    there = (of.path / "figures" / f"{name}.png").exists()
    return f"![Figure: {name}](figures/{name}.png)\n\n*{caption}*" if there else ""


def exponent(entry: Entry, name: str, digits: int = 4) -> str:
    """An exponent with its interval; never a bare number where it is not identified."""
    if not entry["fitted"]:
        return NOTHING
    ends = entry["ci95"].get(name)
    if not known(entry, name):
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
    return f"**NOT IDENTIFIED**: {plainly(reason(entry) or 'see the notes')}"


def reason(entry: Entry) -> str:
    """The first reason why a fit is not identified."""
    return next((entry["reasons"][name] for name in entry["exponents"] if name in entry["reasons"]), "")


def notes(entries: Sequence[Entry]) -> str:
    """What the fits remark beside their status; remarks that differ in one number only become one."""
    about: dict[str, list[tuple[Entry, str]]] = {}
    for entry in entries:
        for note in entry["notes"] if entry["fitted"] else []:
            if "exponent of perplexity" not in note and note not in entry["reasons"].values():
                about.setdefault(_NUMBER.sub("#", note), []).append((entry, note))
    return bullets(
        [f"{_who([entry for entry, _ in of])}: {_joined([note for _, note in of])}." for of in about.values()]
    )


def _who(entries: Sequence[Entry]) -> str:
    """Laws, and the families they were fitted to."""
    families: dict[str, list[str]] = {}
    for entry in entries:
        families.setdefault(entry["law"], []).append(entry["family"])
    laws: dict[str, list[str]] = {}
    for law, names in families.items():
        laws.setdefault(", ".join(names), []).append(law)
    return "; ".join(f"{', '.join(names)} ({plainly(of)})" for of, names in laws.items())


def _joined(remarks: Sequence[str]) -> str:
    """One remark; a number that differs becomes a range."""
    remarks = list(dict.fromkeys(remarks))
    found = [_NUMBER.findall(note) for note in remarks]
    if len(remarks) == 1 or any(len(numbers) != 1 for numbers in found):
        return plainly("; ".join(remarks))
    ordered = sorted((numbers[0] for numbers in found), key=lambda number: float(number.rstrip("%")))
    return plainly(_NUMBER.sub(f"{ordered[0]} to {ordered[-1]}", remarks[0], count=1))
