"""Pieces of Markdown that a report is made of. Cells and sentences are Markdown already (`slm.runtime.words`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slm.runtime.words import NOTHING

VISIBLE_ROWS = 12
"""A longer table that is not the main one is folded."""


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


def figure(folder: Path, name: str, caption: str) -> str:
    """The figure `name` of a report in `folder` with its caption; empty where it was not drawn."""
    if not (folder / "figures" / f"{name}.png").exists():
        return ""
    return f"![Figure: {name}](figures/{name}.png)\n\n*{caption}*"
