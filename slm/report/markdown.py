"""Pieces of Markdown that a report is made of. Cells and sentences are Markdown already (`slm.runtime.words`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm.runtime.words import NO_VALUE

Columns = Mapping[str, Callable[[Any], str]]
"""The header of each column, and what its cell shows of a row."""
VISIBLE_ROWS = 12
"""Rows that a supporting table shows; a longer one is folded."""


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
    """A Markdown table; empty without rows. A column is aligned right if all its cells begin like numbers."""
    if not rows:
        return ""
    marks = ["---:" if all(_numeric(row[i]) for row in rows) else "---" for i in range(len(header))]
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_by_column(rows: Iterable[Any], columns: Columns) -> str:
    """A Markdown table with a line for each of `rows`."""
    return table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def _numeric(cell: str) -> bool:
    return cell == NO_VALUE or cell[:1].isdigit() or (cell[:1] in "-+<≤" and cell[1:].lstrip()[:1].isdigit())


def folded(summary: str, content: str) -> str:
    """Content that HTML shows on a click and plain Markdown shows in full."""
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>" if content else ""


def folded_if_long(heading: str, content: str, rows: int, visible: int = VISIBLE_ROWS) -> str:
    """Content below its heading, folded if it has more than `visible` rows; empty without content."""
    if rows > visible:
        return folded(f"{heading} ({rows} rows)", content)
    return f"**{heading}**\n\n{content}" if content else ""


def bullets(lines: Iterable[str]) -> str:
    """A bulleted list."""
    return "\n".join(f"- {line}" for line in lines)


def figure(folder: Path, name: str, caption: str) -> str:
    """The figure `name` of the report in `folder` with its caption; empty if it was not drawn."""
    if not (folder / "figures" / f"{name}.png").exists():
        return ""
    return f"![Figure: {name}](figures/{name}.png)\n\n*{caption}*"
