"""Files that are whole or not there: written under another name, then renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Put `text` in place of what `path` holds."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def in_quotes(path: Path) -> str:
    """Any path as the value of an override."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"


def as_json(value: Any) -> str:
    """JSON of plain values, with a line break at its end."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
