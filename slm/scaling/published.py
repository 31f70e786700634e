"""The published study of four MobileLLM models: its rows, its claims, and what an analysis of the rows finds."""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

NAME = "mobilellm_published"  # the name under which `read_table` finds the table
CLAIM_COLUMNS = ("params_total", "params_non_embedding", "tokens", "perplexity", "tokens_per_second", "depth")


@cache
def _study() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / f"{NAME}.json").read_text(encoding="utf-8"))


def published_rows() -> list[dict[str, Any]]:
    """Return the four rows as they were published, the smallest model first."""
    return _study()["rows"]


def is_published(frame: "pd.DataFrame") -> bool:
    """Whether a table has exactly the published rows, with all columns that the claims are about."""
    has_columns = set(CLAIM_COLUMNS) <= set(frame)
    rows = [tuple(row[name] for name in CLAIM_COLUMNS) for row in published_rows()]
    return has_columns and rows == list(frame[[*CLAIM_COLUMNS]].itertuples(index=False, name=None))


def published_claims() -> list[dict[str, Any]]:
    """Return the study's claims: `id`, `claim`, `figures` (numbers computed from its rows) and `finding` in words."""
    return [{"id": key, **claim} for key, claim in _study()["claims"].items()]
