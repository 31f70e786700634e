"""Print the plan of a sweep for `dry_run=true`: cells, cost, power, and what cannot be trained."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slm.runtime.words import duration, plural
from slm.scaling.settings import Settings
from slm.sweep.cells import Cell
from slm.sweep.design import Design
from slm.sweep.forecast import Speeds, disk_bytes, find_power, read_speeds
from slm.sweep.grid import Plan

WIDTH = 110
"""Smallest width of the table, so that no number is truncated; on a narrower terminal its lines wrap."""


def print_plan(design: Design, plan: Plan, analysis: Settings, *, folder: Path, num_slots: int) -> None:
    """Print the plan, for `num_slots` jobs at a time. Raises `ValueError` for an invalid assumption of the design."""
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH) if sys.stdout.isatty() else WIDTH
    possible = [cell for cell in plan.cells if cell.is_possible]
    speeds = read_speeds(plan.cache_dir, design.assume["flops_per_second"])
    seconds_of_cell = {cell.name: speeds.seconds(cell) for cell in possible}
    seconds = sum(seconds_of_cell.values())
    # A branch starts after its trunk, so the times of both add up.
    chains = [seconds_of_cell[cell.name] + seconds_of_cell.get(cell.trunk or "", 0.0) for cell in possible]
    longest = max(chains, default=0.0)
    elapsed = max(longest, seconds / num_slots)
    flops = sum(cell.flops_trained for cell in possible)
    for line in [
        f"sweep {design.name}: {len(possible)} runs, in {folder}",
        _cell_table(plan.cells, speeds),
        f"cost         {flops:.3g} FLOPs; about {duration(seconds)} of training, or {duration(elapsed)} with "
        f"{num_slots} at a time; {disk_bytes(possible) / 1e9:.2g} GB of disk",
        f"             {speeds.source}",
        *_trunk_lines(possible),
        *_evaluation_lines(design, len(possible)),
        *_power_lines(design, plan, analysis, seconds / len(design.seeds)),
        *(f"impossible   {cell.name}: {cell.impossible}" for cell in plan.cells if not cell.is_possible),
        *plan.notes,
    ]:
        console.print(line, soft_wrap=isinstance(line, str))


def _cell_table(cells: Sequence[Cell], speeds: Speeds) -> Table:
    """A table of the cells; runs that differ only in seed and learning rate share a row."""
    table = Table("family", "shape", "N", "non-embedding", "tokens", "FLOPs", "peak lr", "runs", "time", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    cells_of_row: dict[tuple[str, int, int, int], list[Cell]] = {}
    for cell in cells:
        if cell.is_possible:
            cells_of_row.setdefault((cell.family, cell.width, cell.depth, cell.tokens), []).append(cell)
    for (family, width, depth, tokens), runs in cells_of_row.items():
        first = runs[0]
        rates = sorted({cell.lr for cell in runs})
        table.add_row(
            family,
            f"{width}x{depth}",
            f"{first.params_total:,}",
            f"{first.params_non_embedding:,}",
            f"{tokens:,}" + (f", branch at {first.shared_tokens:,}" if first.branch_step > 0 else ""),
            f"{first.flops_trained:.3g}",
            f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}",
            str(len(runs)),
            duration(sum(map(speeds.seconds, runs))),
        )
    return table


def _trunk_lines(cells: Sequence[Cell]) -> list[str]:
    branches = [cell for cell in cells if cell.branch_step > 0]
    if not branches:
        return []
    trunks = {cell.trunk for cell in branches}
    saved = sum(cell.flops - cell.flops_trained for cell in branches)
    return [
        f"trunks       {len(trunks)} with {len(branches)} branches that start from a trunk's state where their decay "
        f"begins; this saves {saved:.3g} FLOPs. A trunk and its branches count as one independent run."
    ]


def _evaluation_lines(design: Design, num_runs: int) -> list[str]:
    lines = [
        f"evaluation   {name}, {num_runs} runs ({' '.join(overrides) or 'with the defaults of evaluate.py'})"
        for name, overrides in design.evaluations.items()
    ]
    note = "             evaluate.py runs after training; its cost is not included"
    return [*lines, note] if lines else []


def _power_lines(design: Design, plan: Plan, analysis: Settings, seconds_per_seed: float) -> list[str]:
    size = "params_total" if analysis.size == "auto" else analysis.size
    assume, num_seeds = design.assume, len(design.seeds)
    power = find_power(
        plan.cells, size=size, num_seeds=num_seeds, assume=assume, power=analysis.power, level=analysis.level
    )
    if power is None:
        return []
    smallest = power.detectable[num_seeds]
    if smallest is None:
        return [f"power        none: too few shapes per family for {power.exponent} under `{assume['law']}`"]
    if power.size_mismatch is None:
        test = "an unpaired test"
        scatter = f"a size deviates from `{assume['law']}` by {assume['own_misfit']:.2g}"
    else:
        test = f"a test paired by size (N matched to {power.size_mismatch:.1%})"
        scatter = f"the log ratio of two families deviates from a straight line by {assume['misfit']:.2g}"
    lines = [
        f"power        a difference of {smallest:.2g} in {power.exponent} between two families is found in "
        f"{analysis.power:.0%} of cases ({plural(power.num_pairs, 'pair')} tested),",
        f"             by {test}, if the log loss of a run scatters by {assume['sigma']:.2g} between seeds,",
        f"             and {scatter} (sweep.assume)",
    ]
    for count, difference in list(power.detectable.items())[1:]:  # the first count is that of the design
        more = duration(seconds_per_seed * (count - num_seeds))
        lines.append(f"             with {count} seeds: {difference:.2g}, for {more} of additional training")
    if power.advice is not None:
        advice = power.advice.text.replace("; ", ";\n             ")
        lines.append(f"             to find half of it, {smallest / 2:.2g}, takes {advice}")
    return lines
