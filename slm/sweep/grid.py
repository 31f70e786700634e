"""Turn a design into its cells: each family in each shape, with each budget, learning rate and seed.

If a family's rule refuses a shape, or a budget is too short for the schedule, one impossible cell with the reason takes
the place of the cells for each rate and seed. A size that some family cannot reach is replaced, in all families, by the
nearest that all can. Requests that give the same shape (such as two aspects at a small size) share their cells.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from slm.composition.budget import check_parametrization, check_quantize, count_steps
from slm.composition.schedules import check_schedule
from slm.composition.settings import check_settings
from slm.data.mixture import check_phases
from slm.model.counts import flops_per_token, num_params
from slm.runtime.command_line import one_sentence
from slm.runtime.words import join_names, plural
from slm.sweep.cells import Cell, check_trunk, share_trunks
from slm.sweep.design import Design
from slm.sweep.recipe import Recipe, digest, run_key
from slm.sweep.shapes import SolvedShape, has_shape, nearest_common_size, solve


@dataclass(frozen=True)
class ShapeRequest:
    """A shape that a design requests from a family; `label` is part of the name of an impossible cell."""

    label: str
    solve: Callable[[], SolvedShape]
    target: float | None = None
    """The requested N; None if width and depth are given."""


@dataclass
class Plan:
    """The planned cells of a design."""

    cache_dir: Path
    """cache_dir of train.py, with the corpora and the speeds measured on this machine."""
    configs: list[DictConfig]
    """One config of train.py for each family, before a shape is chosen."""
    cells: list[Cell]
    notes: list[str]
    """Sentences that are printed below the plan."""


def make_plan(design: Design) -> Plan:
    """Plan all cells of a design. Raises `ValueError`, or Hydra's errors, if no cell can be trained."""
    recipes = [Recipe(family, design.common_overrides) for family in design.families]
    sizes = _sizes_in_reach(design, recipes)
    cells_by_key: dict[str, Cell] = {}
    misses: list[str] = []
    num_requested = 0
    for recipe in recipes:
        _check_no_other_budget(recipe)
        if design.has_trunks:
            check_trunk(recipe.config.schedule)
        for request in _shape_requests(design, recipe, sizes):
            requested = _cells_of_request(design, recipe, request)
            misses += _describe_miss(requested[0], request, design.grid)
            num_requested += len(requested)
            for cell in requested:
                cells_by_key.setdefault(cell.key, cell)
    cells = list(cells_by_key.values())
    if not any(cell.is_possible for cell in cells):
        raise ValueError(f"no cell of sweep={design.name} can be trained: {cells[0].impossible}")
    notes = _describe_replacements(sizes)
    if misses:
        tolerance = f"{100 * design.grid['tolerance']:g}%"
        notes.append(f"Shapes that miss their target N by more than {tolerance}: {'; '.join(misses)}.")
    if num_repeats := num_requested - len(cells):
        count = plural(num_repeats, "cell has", "cells have")
        notes.append(f"{count} the same settings as another cell and will not be trained twice.")
    cache_dir = Path(os.path.expanduser(recipes[0].config.cache_dir))
    return Plan(cache_dir, [recipe.config for recipe in recipes], cells, notes)


Sizes = dict[tuple[float, float | None], tuple[float, tuple[str, ...]]]
"""(requested size, aspect) -> the size that takes its place, and the families that cannot reach the requested one.

The aspect is None if every family has its own."""


def _sizes_in_reach(design: Design, recipes: Sequence[Recipe]) -> Sizes:
    """The nearest size that all families can reach, for each requested size; the requested one if there is none."""
    sizes: Sizes = {}
    may_replace = design.grid["out_of_reach"] == "replace"
    for target, aspect in product(design.grid["sizes"] or [], design.grid["aspects"] or [None]):
        families = {recipe.family: partial(_solve, design.grid, recipe, aspect) for recipe in recipes}
        failing = tuple(name for name, family in families.items() if may_replace and not has_shape(family, target))
        common = nearest_common_size(list(families.values()), target) if failing else target
        sizes[target, aspect] = (target, ()) if common in (None, target) else (common, failing)
    return sizes


def _solve(grid: Mapping[str, Any], recipe: Recipe, aspect: float | None, target: float) -> SolvedShape:
    return solve(recipe, target, aspect or recipe.default_aspect, grid["size"], grid["tolerance"])


def _describe_replacements(sizes: Sizes) -> list[str]:
    replaced = [
        f"{target:,.0f} by {size:,.0f} ({join_names(out_of_reach)} cannot reach it)"
        for (target, _), (size, out_of_reach) in sizes.items()
        if out_of_reach
    ]
    return [f"Sizes replaced by the nearest that all families can reach: {'; '.join(replaced)}."] if replaced else []


def _describe_miss(cell: Cell, request: ShapeRequest, grid: Mapping[str, Any]) -> list[str]:
    """A list of one clause that says by how much N misses its target; empty if N is within the tolerance."""
    if request.target is None or not cell.is_possible:
        return []
    error = getattr(cell, grid["size"]) / request.target - 1
    if abs(error) <= grid["tolerance"]:
        return []
    side = "above" if error > 0 else "below"
    return [f"{cell.family} {cell.width}x{cell.depth} is {100 * abs(error):.2g}% {side} {request.target:g}"]


def _check_no_other_budget(recipe: Recipe) -> None:
    for key in ("tokens_per_param", "flops"):
        if recipe.config.train[key] is not None:
            raise ValueError(
                f"train.{key}={recipe.config.train[key]} is set by sweep.overrides, or by an experiment in it, but the "
                f"budget must come from sweep.budget: add train.{key}=null to sweep.overrides"
            )


def _shape_requests(design: Design, recipe: Recipe, sizes: Sizes) -> Iterator[ShapeRequest]:
    grid = design.grid
    for (_, aspect), (target, _) in sizes.items():
        label = f"{target:g}-aspect{aspect or recipe.default_aspect:g}"
        yield ShapeRequest(label, partial(_solve, grid, recipe, aspect, target), target)
    shapes = [tuple(map(int, shape.split("x"))) for shape in grid["shapes"] or []]
    shapes += product(grid["widths"] or [], grid["depths"] or [])
    for width, depth in shapes:
        yield ShapeRequest(f"{width}x{depth}", partial(_shape_by_rule, recipe, width, depth))


def _shape_by_rule(recipe: Recipe, width: int, depth: int) -> SolvedShape:
    model = recipe.shape(width, depth)
    return SolvedShape(width=width, depth=depth, model=model, intermediate_size=None, misfit=0.0)


def _cells_of_request(design: Design, recipe: Recipe, request: ShapeRequest) -> list[Cell]:
    """The cells of one shape, or one impossible cell if the family has no such shape."""
    try:
        shape = request.solve()
    except (ValueError, OmegaConfBaseException) as error:
        return [_impossible_cell(recipe, request, None, error)]
    settings = recipe.settings(_shape_overrides(shape))
    check_settings(settings)
    check_parametrization(settings["parametrization"])
    cells = list(_cells_of_shape(design, recipe, request, shape, settings))
    return share_trunks(cells, settings) if design.has_trunks else cells


def _cells_of_shape(
    design: Design, recipe: Recipe, request: ShapeRequest, shape: SolvedShape, settings: Mapping[str, Any]
) -> Iterator[Cell]:
    """One cell for each budget, rate and seed; one impossible cell for a budget or a rounding that is refused."""
    for budget in design.budgets:
        label = f"{design.budget_key}={budget:g}"
        try:
            steps = count_steps({**settings["train"], design.budget_key: budget}, shape.model)
            check_schedule(settings["schedule"], steps)
            check_phases(settings["data"], steps)
            check_quantize(settings, shape.model)
        except ValueError as error:
            yield _impossible_cell(recipe, request, label, error)
            continue
        for factor, seed in product(design.lr_factors, design.seeds):
            base_lr = design.lr_value(recipe.family) or settings["optim"]["lr"]
            lr = float(f"{factor * base_lr:.6g}")  # rounded, so that equal rates (3 * 0.1 and 0.3) have equal keys
            tokens = steps * settings["train"]["batch_tokens"]
            cell = _make_cell(recipe, shape, settings, tokens=tokens, lr=lr, seed=seed)
            yield replace(cell, budget=label, lr_factor=factor)


def _make_cell(
    recipe: Recipe, shape: SolvedShape, settings: Mapping[str, Any], *, tokens: int, lr: float, seed: int
) -> Cell:
    train = {**settings["train"], "tokens": tokens}
    key = run_key({**settings, "train": train, "optim": {**settings["optim"], "lr": lr}, "seed": seed})
    name = f"{recipe.family}_{shape.width}x{shape.depth}-seed{seed}-{key[:8]}"
    changes = {**_shape_overrides(shape), "train.tokens": tokens, "optim.lr": lr, "seed": seed, "name": name}
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
    )


def _shape_overrides(shape: SolvedShape) -> dict[str, Any]:
    overrides: dict[str, Any] = {"width": shape.width, "depth": shape.depth}
    if shape.intermediate_size is not None:
        overrides["model.intermediate_size"] = shape.intermediate_size
    return overrides


def _impossible_cell(recipe: Recipe, request: ShapeRequest, budget: str | None, error: Exception) -> Cell:
    key = digest([recipe.overrides, request.label, budget])
    name = f"{recipe.family}_{request.label}-{key[:8]}"
    return Cell(name=name, key=key, family=recipe.family, budget=budget, impossible=one_sentence(error))
