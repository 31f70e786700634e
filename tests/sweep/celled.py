"""Cells of stand-in jobs, and what tests ask of what became of them."""

from pathlib import Path
from typing import Any

from slm.sweep.cells import Cell

STUB = Path(__file__).with_name("stub_train.py")
LOCAL: dict[str, Any] = {
    "name": "local",
    "slots": 2,
    "gpus_per_job": 0,
    "threads": 1,
    "memory_gb": 1,
    "warm_start": False,
    "tries": 2,
}


def cell(name: str, *overrides: str, flops: float = 1e6, steps: int = 3, **changes: Any) -> Cell:
    fixed = {"key": name, "family": "f", "width": 32, "depth": 2, "seed": 1, "lr": 1e-3, "tokens": steps * 100}
    counts = {"params_total": 10, "params_non_embedding": 5, "flops": flops}
    return Cell(name=name, overrides=(f"steps={steps}", *overrides), **{**fixed, **counts, **changes})


def history(folder: Path) -> list[tuple[str, str]]:
    """What the stand-ins did, in order: (start | completed | ..., cell)."""
    lines = (folder / "history").read_text().splitlines() if (folder / "history").exists() else []
    return [(what, name) for what, name, _ in map(str.split, lines)]


def count(folder: Path, what: str, name: str) -> int:
    return history(folder).count((what, name))
