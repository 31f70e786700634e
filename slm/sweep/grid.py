"""From a design to its cells: each family in each shape, with each budget, learning rate and seed.

A shape that a family's rule refuses, or a budget too short for the schedule, becomes one impossible cell with the
reason, for all its rates and seeds. Two requests that give the same shape (two aspects at a small size) are one cell.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from slm.composition.budget import check_parametrization, steps_of
from slm.composition.schedules import check_schedule
from slm.composition.settings import check_settings
from slm.model.counts import flops_per_token, num_params
from slm.runtime.command_line import one_sentence
from slm.runtime.words import plural
from slm.sweep.cells import Cell
from slm.sweep.design import Design
from slm.sweep.recipe import Recipe, digest, key_of
from slm.sweep.shapes import Solved, solve
from slm.sweep.trunks import check_trunk, share_trunks

REFUSALS = (ValueError, OmegaConfBaseException)


@dataclass(frozen=True)
class ShapeRequest:
    """A shape that a design asks of a family."""

    label: str
    find: Callable[[], Solved]
    target: float | None = None
    """The N that is asked; None if width and depth are given."""


@dataclass
class Plan:
    """The cells of a design, with what is known about them before training."""

    cache_dir: Path
    """cache_dir of train.py, with the corpora and the speeds measured on this machine."""
    configs: list[DictConfig] = field(default_factory=list)
    """Config of train.py for each family, before a shape is chosen."""
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences for the reader of the plan."""


def make_plan(design: Design) -> Plan:
    """All cells of a design. Raises `ValueError`, or Hydra's errors, if no cell can be trained."""
    recipes = [Recipe(family, design.common_overrides) for family in design.families]
    result = Plan(Path(os.path.expanduser(recipes[0].config.cache_dir)))
    result.configs = [recipe.config for recipe in recipes]
    keys: set[str] = set()
    repeats, missed = 0, []
    for recipe in recipes:
        _check_budget_is_ours(recipe)
        if design.trunk:
            check_trunk(recipe.config.schedule)
        for request in _shape_requests(design, recipe):
            cells = _cells_of(design, recipe, request)
            missed += _missed(cells[0], request, design.grid)
            for cell in cells:
                repeats += cell.key in keys
                if cell.key not in keys:
                    result.cells.append(cell)
                keys.add(cell.key)
    if all(cell.impossible for cell in result.cells):
        raise ValueError(f"no cell of sweep={design.name} can be trained: {result.cells[0].impossible}")
    if missed:
        result.notes.append(f"No shape meets its target to {100 * design.grid['tolerance']:g}%: {'; '.join(missed)}.")
    if repeats:
        result.notes.append(
            f"{plural(repeats, 'cell has', 'cells have')} the same settings as another and will not be trained twice."
        )
    return result


def _missed(cell: Cell, request: ShapeRequest, grid: Mapping[str, Any]) -> list[str]:
    """A sentence if N misses its target by more than the tolerance, so that families match less well there."""
    if request.target is None or cell.impossible:
        return []
    off = getattr(cell, grid["size"]) / request.target - 1
    where = f"{cell.family} {cell.width}x{cell.depth} is {100 * abs(off):.2g}% {'above' if off > 0 else 'below'}"
    return [f"{where} {request.target:g}"] if abs(off) > grid["tolerance"] else []


def _check_budget_is_ours(recipe: Recipe) -> None:
    for key in ("tokens_per_param", "flops"):
        if recipe.config.train[key] is not None:
            raise ValueError(
                f"sweep.overrides set train.{key}={recipe.config.train[key]} (an experiment may): add "
                f"train.{key}=null, since sweep.budget decides"
            )


def _shape_requests(design: Design, recipe: Recipe) -> Iterator[ShapeRequest]:
    grid = design.grid
    if grid["sizes"] is None:
        for width, depth in _pairs(grid):
            yield ShapeRequest(f"{width}x{depth}", partial(_by_rule, recipe, width, depth))
        return
    for size in grid["sizes"]:
        for aspect in grid["aspects"] or [recipe.own_aspect]:
            find = partial(solve, recipe, size, aspect, grid["size"], grid["tolerance"])
            yield ShapeRequest(f"{size:g}-aspect{aspect:g}", find, size)


def _pairs(grid: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The widths and depths that the design lists."""
    if grid["shapes"] is None:
        return [(int(width), int(depth)) for width in grid["widths"] for depth in grid["depths"]]
    split = [shape.split("x") for shape in grid["shapes"]]
    return [(int(width), int(depth)) for width, depth in split]


def _by_rule(recipe: Recipe, width: int, depth: int) -> Solved:
    return Solved(width, depth, recipe.shape(width, depth), None, 0.0)


def _cells_of(design: Design, recipe: Recipe, request: ShapeRequest) -> Sequence[Cell]:
    try:
        shape = request.find()
    except REFUSALS as error:
        return [_impossible(recipe, request, None, error)]
    settings = recipe.settings(_changes(shape))
    check_settings(settings)
    check_parametrization(settings["parametrization"])
    cells = list(_cells_in(design, recipe, request, shape, settings))
    return share_trunks(cells, settings) if design.trunk else cells


def _cells_in(
    design: Design, recipe: Recipe, request: ShapeRequest, shape: Solved, settings: Mapping[str, Any]
) -> Iterator[Cell]:
    for budget in design.budgets:
        label = f"{design.budget}={budget:g}"
        try:
            steps = steps_of({**settings["train"], design.budget: budget}, shape.model)
            check_schedule(settings["schedule"], steps)
        except ValueError as error:
            yield _impossible(recipe, request, label, error)
            continue
        value = design.lr_value(recipe.family) or settings["optim"]["lr"]
        for factor in design.lr_factors:
            lr = float(f"{value * factor:.6g}")
            for seed in design.seeds:
                cell = _cell(recipe, shape, settings, label, steps=steps, lr=lr, seed=seed)
                yield replace(cell, lr_factor=factor)


def _cell(
    recipe: Recipe, shape: Solved, settings: Mapping[str, Any], budget: str, *, steps: int, lr: float, seed: int
) -> Cell:
    train = settings["train"]
    tokens = steps * train["batch_tokens"]
    key = key_of(
        {
            **settings,
            "train": {**train, "tokens": tokens},
            "optim": {**settings["optim"], "lr": lr},
            "seed": seed,
        }
    )
    name = f"{recipe.family}_{shape.width}x{shape.depth}-seed{seed}-{key[:8]}"
    changes = {**_changes(shape), "train.tokens": tokens, "optim.lr": lr, "seed": seed, "name": name}
    return Cell(
        name=name,
        key=key,
        overrides=(*recipe.overrides, *(f"{item}={value}" for item, value in changes.items())),
        family=recipe.family,
        width=shape.width,
        depth=shape.depth,
        seed=seed,
        tokens=tokens,
        lr=lr,
        params_total=num_params(shape.model),
        params_non_embedding=num_params(shape.model, non_embedding=True),
        flops=tokens * flops_per_token(shape.model, train["sequence_length"]),
        budget=budget,
    )


def _changes(shape: Solved) -> dict[str, Any]:
    own = {} if shape.intermediate_size is None else {"model.intermediate_size": shape.intermediate_size}
    return {"width": shape.width, "depth": shape.depth, **own}


def _impossible(recipe: Recipe, request: ShapeRequest, budget: str | None, error: Exception) -> Cell:
    key = digest([recipe.overrides, request.label, budget])
    return Cell(
        name=f"{recipe.family}_{request.label}-{key[:8]}",
        key=key,
        overrides=(),
        family=recipe.family,
        width=0,
        depth=0,
        seed=0,
        tokens=0,
        lr=0.0,
        params_total=0,
        params_non_embedding=0,
        flops=0.0,
        budget=budget,
        impossible=one_sentence(error),
    )
