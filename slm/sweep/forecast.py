"""Forecast what a design costs and which differences it can detect, before anything is trained.

Durations are computed from the speeds of finished runs on this machine (`speeds.json` in the cache directory, written
at the end of a sweep), or else from `sweep.assume.flops_per_second`. They cover training only.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from slm.runtime.files import write_json
from slm.runtime.settings import prefixed
from slm.scaling.matching import MIN_SIZES, SAME_SIZE
from slm.scaling.power import Advice, Comparison, PairedDesign, UnpairedDesigns, plan
from slm.scaling.power import Design as FamilyDesign
from slm.sweep.cells import Cell

SPEEDS = "speeds.json"
MIN_STEPS = 50
"""Fewest steps of a run whose speed is stored."""
BYTES_PER_PARAMETER = 28
"""Largest disk use of a finished run: two checkpoints (weights and AdamW's two moments) and the export, all float32."""
BYTES_PER_PARAMETER_OF_BRANCH = 12
"""Disk use of the checkpoint that a trunk keeps for a branch."""
FIELDS = {"D": "tokens", "C": "flops", "w": "width", "d": "depth"}
"""Variable of a law -> field of a cell with its value. The field of N depends on the definition of N."""


@dataclass(frozen=True)
class Speeds:
    """FLOP/s reached by runs on this machine."""

    measured: Mapping[str, tuple[float, float]]
    """FAMILY_WIDTHxDEPTH of a run -> its FLOPs per token and its FLOP/s."""
    assumed: float

    @property
    def source(self) -> str:
        """Describe which speeds the durations are computed from."""
        if self.measured:
            return f"from the speeds of {len(self.measured)} shapes trained on this machine"
        return f"at an assumed {self.assumed:.3g} FLOP/s per job (sweep.assume.flops_per_second)"

    def seconds(self, cell: Cell) -> float:
        """Training time at the speed of the measured shape nearest in FLOPs per token, of this family if possible."""
        if not cell.is_possible:
            return 0.0
        same_family = [pair for name, pair in self.measured.items() if name.rpartition("_")[0] == cell.family]
        pairs = same_family or list(self.measured.values())
        if not pairs:
            return cell.flops_trained / self.assumed
        log_flops_per_token = math.log(cell.flops / cell.tokens)
        _, nearest_speed = min(pairs, key=lambda pair: abs(math.log(pair[0]) - log_flops_per_token))
        return cell.flops_trained / nearest_speed


def read_speeds(cache_dir: Path, assumed: float) -> Speeds:
    """Read the speeds that `remember_speeds` has written; no speeds if the file cannot be read."""
    try:
        stored = json.loads((cache_dir / SPEEDS).read_text(encoding="utf-8"))
        speeds = {name: (float(flops), float(speed)) for name, (flops, speed) in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        speeds = {}
    return Speeds({name: speed for name, speed in speeds.items() if min(speed) > 0}, assumed)


def remember_speeds(cache_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Store the speeds of finished runs (rows of runs.csv) for the next plan."""
    speeds = dict(read_speeds(cache_dir, 1.0).measured)
    for row in rows:
        if row["tokens_per_second"] and row["steps"] >= MIN_STEPS:
            flops_per_token = row["flops"] / row["tokens"]
            name = f"{row['family']}_{row['width']}x{row['depth']}"
            speeds[name] = (flops_per_token, flops_per_token * row["tokens_per_second"])
    write_json(cache_dir / SPEEDS, speeds)


def disk_bytes(cells: Sequence[Cell]) -> int:
    """Disk space of all runs after training."""
    params = sum(cell.params_total for cell in cells)
    params_of_branches = sum(cell.params_total for cell in cells if cell.branch_step > 0)
    return BYTES_PER_PARAMETER * params + BYTES_PER_PARAMETER_OF_BRANCH * params_of_branches


@dataclass(frozen=True)
class Power:
    """The power to detect a difference in `exponent`, for the pair of families (of `num_pairs`) with least power."""

    exponent: str
    num_pairs: int
    detectable: Mapping[int, float | None]
    """Number of seeds -> smallest detectable difference of exponents; None if the cells do not determine it."""
    size_mismatch: float | None
    """Largest relative difference of N between matched sizes of the paired test; None for the unpaired test."""
    advice: Advice | None
    """Changes of the design that would make half of the detectable difference detectable."""


def find_power(
    cells: Sequence[Cell], *, size: str, num_seeds: int, assume: Mapping[str, Any], power: float, level: float
) -> Power | None:
    """Find the smallest detectable difference of exponents between two families, with `num_seeds` seeds and with more.

    The test is paired if all pairs of families have enough sizes in common and `sweep.assume.law` is `power`; otherwise
    it is Welch's t-test. `size` is the column that laws use as N, `assume` the config group `sweep.assume`, `power` the
    probability of detection, `level` the coverage of intervals. Returns None if no cell can be trained. Raises
    `ValueError` for an invalid assumption.
    """
    families: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.is_possible:
            families.setdefault(cell.family, []).append(cell)
    if not families:
        return None
    # A single family is compared with an equal design.
    pairs = list(combinations(families, 2)) or [(name, name) for name in families]
    sizes = {name: {getattr(cell, size) for cell in family} for name, family in families.items()}
    matched_of_pairs = [_matched_sizes(sizes[first], sizes[second]) for first, second in pairs]
    is_paired = assume["law"] == "power" and all(matched_of_pairs)
    designs = {name: _family_design(family, size, assume, num_seeds) for name, family in families.items()}
    comparisons: list[Comparison] = [UnpairedDesigns(designs[first], designs[second]) for first, second in pairs]
    if is_paired:
        comparisons = [
            _paired_design(matched, families[first], assume, num_seeds)
            for (first, _), matched in zip(pairs, matched_of_pairs, strict=True)
        ]
    test: dict[str, Any] = {"power": power, "level": 1 - level, "num_tests": len(pairs)}

    def smallest(comparison: Comparison, count: int) -> float:
        difference = comparison.changed(seeds=count).detectable(**test)
        return math.inf if difference is None else difference

    seed_counts = range(num_seeds, num_seeds + assume["more_seeds"] + 1)
    detectable = {count: max(smallest(comparison, count) for comparison in comparisons) for count in seed_counts}
    with_given_seeds = detectable[num_seeds]
    size_ratios = [max(pair) / min(pair) for matched in matched_of_pairs for pair in matched]
    hardest = max(comparisons, key=lambda comparison: smallest(comparison, num_seeds))
    return Power(
        exponent=next(iter(designs.values())).law.exponents[0],
        num_pairs=len(pairs),
        detectable={count: found if math.isfinite(found) else None for count, found in detectable.items()},
        size_mismatch=max(size_ratios) - 1 if is_paired else None,
        advice=hardest.advice(with_given_seeds / 2, **test) if 0 < with_given_seeds < math.inf else None,
    )


def _matched_sizes(first: Collection[int], second: Collection[int]) -> list[tuple[int, int]]:
    """Pairs of sizes as the analysis matches them (`slm.scaling.matching`); empty if too few for the paired test."""
    first, second = sorted(first), sorted(second)
    distance = abs(np.log(first)[:, None] - np.log(second))
    # Two sizes match if each is the nearest to the other and they are nearly equal.
    pairs = [
        (first[i], second[j])
        for i, j in enumerate(distance.argmin(axis=1))
        if distance[:, j].argmin() == i and distance[i, j] <= math.log1p(SAME_SIZE)
    ]
    return pairs if len(pairs) >= MIN_SIZES else []


def _paired_design(
    matched: Sequence[tuple[int, int]], cells: Sequence[Cell], assume: Mapping[str, Any], num_seeds: int
) -> PairedDesign:
    log_N = np.log([math.sqrt(first * second) for first, second in matched])
    # The analysis averages over the budgets of a size. This reduces the noise, except between branches of one trunk,
    # which share its noise. It does not reduce the misfit, which all budgets of a size share.
    num_independent = 1 if any(cell.trunk for cell in cells) else len({cell.budget for cell in cells})
    return PairedDesign(log_N, assume["sigma"] / math.sqrt(num_independent), assume["misfit"], num_seeds)


def _family_design(cells: Sequence[Cell], size: str, assume: Mapping[str, Any], num_seeds: int) -> FamilyDesign:
    """The design of one family, with a row for each shape and budget.

    The budgets of a shape share its misfit, and branches of a trunk also share its noise, so several budgets leave an
    exponent in N as uncertain as one. Each variable besides N adds two parameters, which the budgets determine.
    """
    fields = {"N": size, **FIELDS}
    points = dict.fromkeys(tuple(getattr(cell, field) for field in fields.values()) for cell in cells)
    columns = dict(zip(fields, zip(*points, strict=True), strict=True))
    num_shapes = len({(cell.width, cell.depth, cell.params_total) for cell in cells})
    # Averaging the points of a shape does not reduce the scatter that they share, so it is raised by this factor.
    inflation = math.sqrt(len(points) / num_shapes)
    noise = assume["sigma"] * (inflation if any(cell.trunk for cell in cells) else 1)
    misfit = assume["own_misfit"] * inflation
    law, params = assume["law"], assume["params"]
    with prefixed(f"sweep.assume.law={law}, sweep.assume.params={params}"):
        planned = plan(columns, law=law, params=params, sigma=noise, misfit=misfit, seeds=num_seeds)
    if inflation == 1:
        return planned
    return replace(planned, num_groups=num_shapes + 2 * (len(planned.law.variables) - 1))
