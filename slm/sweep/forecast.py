"""What a design costs and which differences it can detect, before anything is trained.

Durations are computed from the speeds of finished runs on this machine (`speeds.json` in the cache directory, written
at the end of a sweep), or else from `sweep.assume.flops_per_second`. They cover training only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from slm.runtime.files import write_json
from slm.scaling.matching import MIN_SIZES, SAME_SIZE
from slm.scaling.power import Advice, Comparison, PairedDesign, UnpairedDesigns, plan
from slm.scaling.power import Design as Fitted
from slm.sweep.cells import Cell

SPEEDS = "speeds.json"
MIN_STEPS = 50
"""The speed of a run with fewer steps is not kept."""
BYTES_PER_PARAMETER = 28
"""Disk of a finished run: two checkpoints of weights and Adam's two moments, and the exported model, all float32."""
BYTES_KEPT = 12
"""Disk of the checkpoint that a trunk keeps for a branch, per parameter."""
FIELDS = {"D": "tokens", "C": "flops", "w": "width", "d": "depth"}
"""Fields of a cell with the variables of laws other than N."""


@dataclass(frozen=True)
class Speeds:
    """FLOP/s reached by runs on this machine."""

    measured: Mapping[str, tuple[float, float]]
    """Family and shape of a run -> FLOPs per token, FLOP/s."""
    assumed: float

    @property
    def source(self) -> str:
        """Where the durations come from, in words."""
        if self.measured:
            return f"by the speed of {len(self.measured)} shapes trained on this machine"
        return f"at an assumed {self.assumed:.3g} FLOP/s a job (sweep.assume.flops_per_second)"

    def seconds(self, cell: Cell) -> float:
        """Training time of a cell at the speed of the measured shape (of its family if possible) nearest in FLOPs."""
        if cell.impossible:
            return 0.0
        same_family = [speed for name, speed in self.measured.items() if name.rpartition("_")[0] == cell.family]
        speeds = same_family or list(self.measured.values())
        log_flops = math.log(cell.flops / cell.tokens)
        rate = min(speeds, key=lambda speed: abs(math.log(speed[0]) - log_flops))[1] if speeds else self.assumed
        return cell.flops_trained / rate


def read_speeds(cache_dir: Path, assumed: float) -> Speeds:
    """The speeds that `remember_speeds` has written; none if the file cannot be read."""
    try:
        speeds = {
            name: (float(a), float(b))
            for name, (a, b) in json.loads((cache_dir / SPEEDS).read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        speeds = {}
    return Speeds({name: speed for name, speed in speeds.items() if min(speed) > 0}, assumed)


def remember_speeds(cache_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Keep the speeds of finished runs (rows of runs.csv) for the next plan."""
    speeds = dict(read_speeds(cache_dir, 1.0).measured)
    for row in rows:
        if row["tokens_per_second"] and row["steps"] >= MIN_STEPS:
            flops = row["flops"] / row["tokens"]
            speeds[f"{row['family']}_{row['width']}x{row['depth']}"] = (flops, flops * row["tokens_per_second"])
    write_json(cache_dir / SPEEDS, speeds)


def disk_bytes(cells: Sequence[Cell]) -> int:
    """Disk space of all runs when they are done."""
    branches = sum(cell.params_total for cell in cells if cell.branch_step)
    return BYTES_PER_PARAMETER * sum(cell.params_total for cell in cells) + BYTES_KEPT * branches


@dataclass(frozen=True)
class Power:
    """The power of a design, for the pair of families whose difference is hardest to detect."""

    exponent: str
    pairs: int
    """Number of pairs of families."""
    detectable: Mapping[int, float | None]
    """Number of seeds -> smallest detectable difference of exponents; None if the cells do not determine it."""
    size_mismatch: float | None
    """Largest relative difference of N between matched sizes of the paired test; None for the unpaired test."""
    advice: Advice | None
    """Changes of the design that would detect half of its smallest detectable difference."""


def find_power(
    cells: Sequence[Cell], *, size: str, seeds: int, assume: Mapping[str, Any], power: float, level: float
) -> Power | None:
    """The smallest difference of exponents between two families, with the seeds of the design and with more.

    The test is the paired one if all pairs of families have enough sizes in common and the law is `power`, else
    Welch's. `size` is the column that laws use as N, `assume` the config group of that name, `power` the probability of
    detection, `level` the coverage of intervals. None if no cell can be trained. Raises `ValueError` for an invalid
    assumption.
    """
    families: dict[str, list[Cell]] = {}
    for cell in cells:
        if not cell.impossible:
            families.setdefault(cell.family, []).append(cell)
    if not families:
        return None
    pairs = list(combinations(families, 2)) or [(name, name) for name in families]
    matched = [_matched(*({getattr(cell, size) for cell in families[name]} for name in pair)) for pair in pairs]
    is_paired = assume["law"] == "power" and all(matched)
    designs = {name: _family_design(family, size, assume, seeds) for name, family in families.items()}
    comparisons: list[Comparison] = [
        _paired(sizes, families[a], assume, seeds) if is_paired else UnpairedDesigns(designs[a], designs[b])
        for (a, b), sizes in zip(pairs, matched, strict=True)
    ]
    test: dict[str, Any] = {"power": power, "level": 1 - level, "pairs": len(pairs)}

    def smallest(comparison: Comparison, seeds: int) -> float:
        difference = comparison.changed(seeds=seeds).detectable(**test)
        return math.inf if difference is None else difference

    detectable = {n: max(smallest(c, n) for c in comparisons) for n in range(seeds, seeds + assume["more_seeds"] + 1)}
    now = detectable[seeds]
    worst = max(comparisons, key=lambda comparison: smallest(comparison, seeds))
    return Power(
        exponent=next(iter(designs.values())).law.exponents[0],
        pairs=len(pairs),
        detectable={n: value if math.isfinite(value) else None for n, value in detectable.items()},
        size_mismatch=max(max(a / b, b / a) - 1 for sizes in matched for a, b in sizes) if is_paired else None,
        advice=worst.advice(now / 2, **test) if 0 < now < math.inf else None,
    )


def _matched(a: Collection[int], b: Collection[int]) -> list[tuple[int, int]]:
    """Pairs of sizes as the analysis matches them (`slm.scaling.matching`); none if they are too few for its test."""
    a, b = sorted(a), sorted(b)
    gap = abs(np.log(a)[:, None] - np.log(b))
    pairs = [
        (a[i], b[j])
        for i, j in enumerate(gap.argmin(axis=1))
        if gap[:, j].argmin() == i and gap[i, j] <= math.log1p(SAME_SIZE)
    ]
    return pairs if len(pairs) >= MIN_SIZES else []


def _paired(
    matched: Sequence[tuple[int, int]], cells: Sequence[Cell], assume: Mapping[str, Any], seeds: int
) -> PairedDesign:
    # Several budgets of a size are averaged: branches of a trunk share its noise, and all share the size's misfit.
    log_N = np.log([math.sqrt(a * b) for a, b in matched])
    budgets = len({cell.budget for cell in cells})
    noise = assume["sigma"] / (1 if any(cell.trunk for cell in cells) else math.sqrt(budgets))
    return PairedDesign(log_N, noise, assume["misfit"], seeds)


def _family_design(cells: Sequence[Cell], size: str, assume: Mapping[str, Any], seeds: int) -> Fitted:
    """The design of one family, with a row for each shape and budget.

    The budgets of a shape share its misfit, and branches of a trunk its noise too, so an exponent in N is as uncertain
    as with one budget. Each further variable of a law takes two parameters, which the budgets of a shape determine.
    """
    variables = {"N": size, **FIELDS}
    points = dict.fromkeys(tuple(getattr(cell, name) for name in variables.values()) for cell in cells)
    sizes = dict(zip(variables, zip(*points, strict=True), strict=True))
    shared = math.sqrt(len(points) / len({(cell.width, cell.depth, cell.params_total) for cell in cells}))
    noise = assume["sigma"] * (shared if any(cell.trunk for cell in cells) else 1)
    try:
        law, params = assume["law"], assume["params"]
        planned = plan(sizes, law=law, params=params, sigma=noise, misfit=assume["own_misfit"] * shared, seeds=seeds)
    except ValueError as error:
        raise ValueError(f"sweep.assume.law={assume['law']}, sweep.assume.params={assume['params']}: {error}") from None
    shapes = round(len(points) / shared**2)
    return planned if shared == 1 else replace(planned, groups=shapes + 2 * (len(planned.law.variables) - 1))
