"""Build reports from pieces of Markdown. Cells and sentences must already be escaped (`words.escape_markdown`)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slm.runtime.words import NO_VALUE

Columns = Mapping[str, Callable[[Any], str]]
"""Header of a column -> the function that writes the column's cell for a row."""
VISIBLE_ROWS = 12  # a supporting table with more rows is folded
LIGHTS = {"● solid": "solid", "◐ weak": "weak", "○ unknown": "unknown"}
"""A cell that says how sure a finding is -> its colour in HTML. The shapes differ, so colour is not needed."""


@dataclass
class Section:
    """A heading and its blocks: paragraphs, tables, figures."""

    title: str
    blocks: list[str] = field(default_factory=list)

    def add(self, *blocks: str) -> "Section":
        """Append blocks, leaving out empty ones."""
        self.blocks += [block for block in blocks if block]
        return self

    def markdown(self) -> str:
        """Return the Markdown of the section, with a blank line between blocks."""
        return "\n\n".join([f"## {self.title}", *self.blocks])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, or "" without rows. Columns in which all cells begin like numbers are aligned right."""
    if not rows:
        return ""
    is_numeric = [all(_begins_like_number(cell) for cell in column) for column in zip(*rows, strict=True)]
    alignments = ["---:" if numeric else "---" for numeric in is_numeric]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, alignments, *rows])


def table_by_column(rows: Iterable[Any], columns: Columns) -> str:
    """Return a Markdown table with a line for each of `rows`."""
    return table(list(columns), [[write_cell(row) for write_cell in columns.values()] for row in rows])


def _begins_like_number(cell: str) -> bool:
    return cell == NO_VALUE or re.match(r"([-+<≤]\s*)?\d", cell) is not None


def folded(summary: str, content: str) -> str:
    """Return content that HTML shows after a click on `summary`; plain Markdown shows it in full."""
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>" if content else ""


def folded_if_long(heading: str, content: str, num_rows: int, max_visible: int = VISIBLE_ROWS) -> str:
    """Return content below its heading, folded if it has more than `max_visible` rows; "" without content."""
    if num_rows > max_visible:
        return folded(f"{heading} ({num_rows} rows)", content)
    return f"**{heading}**\n\n{content}" if content else ""


def bullets(lines: Iterable[str]) -> str:
    """Return a bulleted list."""
    return "\n".join(f"- {line}" for line in lines)


def side_by_side(*blocks: str) -> str:
    """Return blocks that HTML shows beside each other on a wide screen; plain Markdown shows one below the other."""
    content = "\n\n</div>\n<div>\n\n".join(filter(None, blocks))
    return f'<div class="beside">\n<div>\n\n{content}\n\n</div>\n</div>' if content else ""


def figure(folder: Path, name: str, caption: str) -> str:
    """Return the figure `name` of the report in `folder` with its caption, or "" if the figure was not drawn."""
    if not (folder / "figures" / f"{name}.png").exists():
        return ""
    return f"![Figure: {name}](figures/{name}.png)\n\n*{caption}*"
