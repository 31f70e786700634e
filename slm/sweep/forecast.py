"""What a design will cost and what it can show, before anything is trained.

Durations go by the speeds that finished runs of this machine reached (`speeds.json` in the cache directory, written at
the end of a sweep); without any, by the rate that `sweep.assume.flops_per_second` states. Only training counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from slm.scaling.power import Design as Fitted
from slm.scaling.power import plan
from slm.sweep.cells import Cell
from slm.sweep.files import as_json, write

SPEEDS = "speeds.json"
FEWEST_STEPS = 50
"""Of a run whose speed is worth keeping."""
BYTES_PER_PARAMETER = 28
"""Of a finished run: two checkpoints of weights and Adam's two moments, and the exported model, all float32."""
BYTES_KEPT = 12
"""Of a parameter in the checkpoint that a trunk keeps for a branch."""
VARIABLES = {"D": "tokens", "C": "flops", "w": "width", "d": "depth"}
"""Variables of laws but N, as fields of a cell."""


@dataclass(frozen=True)
class Speeds:
    """FLOP/s that runs of this machine reached, by family and FLOPs a token."""

    known: Mapping[str, tuple[float, float]]
    """Name of a run's shape -> FLOPs a token, FLOP/s."""
    assumed: float

    @property
    def source(self) -> str:
        """Where the figures come from, in words."""
        if self.known:
            return f"by the speed of {len(self.known)} shapes trained on this machine"
        return f"at {self.assumed:.3g} FLOP/s a job, assumed (sweep.assume.flops_per_second)"

    def seconds(self, cell: Cell) -> float:
        """Of training a cell, at the speed of the known shape (of its family, if any) nearest in FLOPs a token."""
        if cell.impossible:
            return 0.0
        own = {name: speed for name, speed in self.known.items() if name.rpartition("_")[0] == cell.family}
        known = list((own or self.known).values())
        wanted = math.log(cell.flops / cell.tokens)
        rate = min(known, key=lambda speed: abs(math.log(speed[0]) - wanted))[1] if known else self.assumed
        return cell.flops_trained / rate


def read_speeds(cache_dir: Path, assumed: float) -> Speeds:
    """What `remember_speeds` has written, if anything."""
    try:
        known = {name: (float(a), float(b)) for name, (a, b) in json.loads((cache_dir / SPEEDS).read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        known = {}
    return Speeds({name: speed for name, speed in known.items() if min(speed) > 0}, assumed)


def remember_speeds(cache_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Keep the speeds of finished runs (rows of `collect`) for the next plan."""
    known = dict(read_speeds(cache_dir, 1.0).known)
    for row in rows:
        if row["tokens_per_second"] and row["steps"] >= FEWEST_STEPS:
            each = row["flops"] / row["tokens"]
            known[f"{row['family']}_{row['width']}x{row['depth']}"] = (each, each * row["tokens_per_second"])
    cache_dir.mkdir(parents=True, exist_ok=True)
    write(cache_dir / SPEEDS, as_json(known))


def disk_bytes(cells: Sequence[Cell]) -> int:
    """Of all runs when they are done."""
    kept = sum(cell.params_total for cell in cells if cell.branch_step)
    return BYTES_PER_PARAMETER * sum(cell.params_total for cell in cells) + BYTES_KEPT * kept


@dataclass(frozen=True)
class Power:
    """What a design tells apart."""

    exponent: str
    pairs: int
    """Of families."""
    detectable: Mapping[int, float | None]
    """Seeds -> the smallest difference of exponents that is found; None where the cells cannot tell."""


def power_of(
    cells: Sequence[Cell], *, size: str, seeds: int, assume: Mapping[str, Any], power: float, level: float
) -> Power | None:
    """The smallest difference of exponents between two families, with the seeds of the design and with more.

    Of the family whose cells tell least. `size` is the count of parameters that laws have for N, `assume` the config
    group of that name, `power` the chance of finding the difference, `level` the coverage of intervals. None if no cell
    can be trained. Raises `ValueError` for an assumption that is none.
    """
    families = dict.fromkeys(cell.family for cell in cells if not cell.impossible)
    designs = [_assumed([c for c in cells if c.family == f and not c.impossible], size, assume) for f in families]
    if not designs:
        return None
    pairs = max(1, len(list(combinations(families, 2))))
    detectable: dict[int, float | None] = {}
    for count in range(seeds, seeds + assume["more_seeds"] + 1):
        found = [replace(d, seeds=count).detectable(power=power, level=1 - level, pairs=pairs) for d in designs]
        detectable[count] = None if None in found else max(value for value in found if value is not None)
    return Power(designs[0].law.exponents[0], pairs, detectable)


def _assumed(cells: Sequence[Cell], size: str, assume: Mapping[str, Any]) -> Fitted:
    """The design of one family: a row a shape and budget, whatever its rates and seeds.

    A trunk and its branches tell as much as one run, as if they scattered alike: so it is with an exponent in N.
    """
    variables = {"N": size, **VARIABLES}
    points = dict.fromkeys(tuple(getattr(cell, name) for name in variables.values()) for cell in cells)
    sizes = dict(zip(variables, zip(*points, strict=True), strict=True))
    shapes = {(cell.width, cell.depth, cell.params_total) for cell in cells}
    groups = len(shapes) if any(cell.after for cell in cells) else len(points)
    sigma = assume["sigma"] * math.sqrt(len(points) / groups)
    try:
        return replace(plan(sizes, law=assume["law"], params=assume["params"], sigma=sigma), groups=groups)
    except ValueError as error:
        raise ValueError(f"sweep.assume.law={assume['law']}, sweep.assume.params={assume['params']}: {error}") from None
