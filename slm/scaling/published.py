"""The published study of four MobileLLM models: its rows, and its claims beside what these rows show when analysed.

Rows and claims are in one data file. tests/scaling/test_published.py computes every figure of the claims from the rows.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

NAME = "mobilellm_published"
"""The table that slm ships, as `read_table` knows it."""
IDENTIFYING = ("params_total", "params_non_embedding", "tokens", "perplexity", "tokens_per_second", "depth")
"""Columns that the claims are about."""


@cache
def _study() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / f"{NAME}.json").read_text(encoding="utf-8"))


def published_rows() -> list[dict[str, Any]]:
    """The four rows, smallest model first, as they were published."""
    return _study()["rows"]


def is_published(frame: pd.DataFrame) -> bool:
    """Whether a table has the published rows and no others, with all columns that the claims are about."""
    rows = [tuple(row[name] for name in IDENTIFYING) for row in published_rows()]
    return {*IDENTIFYING} <= {*frame} and rows == list(frame[[*IDENTIFYING]].itertuples(index=False, name=None))


def published_claims() -> list[dict[str, Any]]:
    """What the study claims: `id`, `claim`, `figures` computed from its rows, and `finding` in words."""
    return [{"id": key, **claim} for key, claim in _study()["claims"].items()]
