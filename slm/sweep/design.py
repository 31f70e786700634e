"""What a sweep compares: the `sweep` config group, checked. `conf/sweep/quick.yaml` says what each key means."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slm.composition.budget import BUDGETS
from slm.composition.keys import did_you_mean, dotted_keys, unknown_keys
from slm.runtime.settings import (
    COUNT,
    NAME,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SWITCH,
    TEXT,
    TEXTS,
    Kind,
    as_typed,
    check_kinds,
    list_of,
    one_of,
    or_null,
)
from slm.sweep.evaluation import Evaluations, check_evaluations, is_evaluations
from slm.sweep.shapes import MAX_TOLERANCE

BASE_SHAPE = ("base_width", "base_depth", "base_head_dim")
GRIDS = ({"widths", "depths"}, {"shapes"}, {"sizes"})
"""Alternative sets of keys, each of which determines the shapes."""
MIN_RATES = 3
"""Fewest learning rates of a shape that are tuned: a parabola has three parameters."""
DECIDED = {
    **dict.fromkeys(("width", "depth"), "sweep.grid"),
    **dict.fromkeys(("train.tokens", "train.tokens_per_param", "train.flops", "branch_from"), "sweep.budget"),
    "optim.lr": "sweep.lr",
    "parametrization": "sweep.lr.parametrization",
    "seed": "sweep.seeds",
    "family": "sweep.families",
    "name": "sweep.name",
    "output_dir": "output_dir",
    "dry_run": "dry_run",
}
"""Key of train.py that a design sets -> the design's key for it."""


def _one_or_several(kind: Kind) -> Kind:
    def fits(value: Any) -> bool:
        return bool(value) and all(map(kind.accepts, value)) if isinstance(value, list) else kind.accepts(value)

    return Kind(f"{kind.words}, or a list of them", fits)


NAME_OF_FOLDER = Kind(
    "the name of a folder, without /", lambda value: NAME.accepts(value) and Path(value).name == value
)
SHAPE = Kind("WIDTHxDEPTH", lambda value: TEXT.accepts(value) and bool(re.fullmatch(r"0*[1-9]\d*x0*[1-9]\d*", value)))
TOLERANCE = Kind(
    f"a number above 0 and at most {MAX_TOLERANCE}", lambda value: POSITIVE.accepts(value) and value <= MAX_TOLERANCE
)
RATE = Kind(
    "a number above 0, or one for each family, as in {mobilellm: 0.008}",
    lambda value: all(map(POSITIVE.accepts, value.values() if isinstance(value, Mapping) else [value])),
)
PARAMS = Kind(
    "a mapping of numbers, as in {A: 20, alpha: 0.1}",
    lambda value: isinstance(value, Mapping) and all(isinstance(item, (int, float)) for item in value.values()),
)
KINDS: dict[str, Kind] = {
    "sweep.name": NAME_OF_FOLDER,
    "sweep.families": list_of(NAME, "families, such as [mobilellm,ssd]"),
    "sweep.grid.widths": or_null(list_of(COUNT, "whole numbers of at least 1")),
    "sweep.grid.depths": or_null(list_of(COUNT, "whole numbers of at least 1")),
    "sweep.grid.shapes": or_null(list_of(SHAPE, "WIDTHxDEPTH, such as [128x8,192x12]")),
    "sweep.grid.sizes": or_null(list_of(POSITIVE, "numbers above 0")),
    "sweep.grid.aspects": or_null(list_of(POSITIVE, "numbers above 0")),
    "sweep.grid.size": one_of("params_total", "params_non_embedding"),
    "sweep.grid.tolerance": TOLERANCE,
    **{f"sweep.budget.{name}": or_null(_one_or_several(POSITIVE)) for name in BUDGETS},
    "sweep.budget.trunk": SWITCH,
    "sweep.lr.rule": one_of("fixed", "transferred", "tuned"),
    "sweep.lr.value": or_null(RATE),
    "sweep.lr.factors": or_null(list_of(POSITIVE, f"{MIN_RATES} or more numbers above 0", least=MIN_RATES)),
    "sweep.lr.parametrization": or_null(NAME),
    **{f"sweep.lr.{name}": or_null(COUNT) for name in BASE_SHAPE},
    "sweep.seeds": list_of(SEED, "whole numbers from 0 on"),
    "sweep.overrides": TEXTS,
    "sweep.also": TEXTS,
    "sweep.evaluation": or_null(Kind("a mapping of names to lists of overrides of evaluate.py", is_evaluations)),
    "sweep.assume.sigma": POSITIVE,
    "sweep.assume.misfit": NOT_NEGATIVE,
    "sweep.assume.own_misfit": NOT_NEGATIVE,
    "sweep.assume.law": NAME,
    "sweep.assume.params": PARAMS,
    "sweep.assume.flops_per_second": POSITIVE,
    "sweep.assume.more_seeds": NATURAL,
}


@dataclass(frozen=True, kw_only=True)
class Design:
    """A checked design."""

    name: str
    families: tuple[str, ...]
    grid: Mapping[str, Any]
    budget: str
    """One of `BUDGETS`."""
    budgets: tuple[float, ...]
    trunk: bool
    """Whether the runs of one shape, learning rate and seed branch off that with the longest budget (`cells.py`)."""
    lr: Mapping[str, Any]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    evaluations: Evaluations
    """Evaluations of every completed run (`evaluation.py`)."""
    assume: Mapping[str, Any]

    @property
    def common_overrides(self) -> tuple[str, ...]:
        """Overrides of train.py for all cells: the given ones and the parametrization of the learning rate's rule."""
        chosen = self.lr["parametrization"]
        base = (f"parametrization.{key}={self.lr[key]}" for key in BASE_SHAPE if self.lr[key] is not None)
        return (*self.overrides, *(() if chosen is None else (f"parametrization={chosen}", *base)))

    def lr_rule(self, family: str) -> str:
        """How the learning rates of a family depend on the shape, in words; equal rules have equal words."""
        rule, value, parametrization = self.lr["rule"], self.lr_value(family), self.lr["parametrization"]
        words = rule
        if value is not None:
            is_per_family = isinstance(self.lr["value"], Mapping)
            words += " about each family's own rate" if is_per_family and rule == "tuned" else f" {value:g}"
        if rule == "tuned":
            words += f" over {len(self.lr['factors'])} rates"
        return words if parametrization is None else f"{words} by {parametrization}"

    def lr_value(self, family: str) -> float | None:
        """The learning rate given for a family; None for that of conf/optim."""
        value = self.lr["value"]
        return value[family] if isinstance(value, Mapping) else value

    @property
    def lr_factors(self) -> tuple[float, ...]:
        """Learning rates of a shape, as factors of `lr.value`."""
        return tuple(sorted(self.lr["factors"])) if self.lr["rule"] == "tuned" else (1.0,)


def check_design(sweep: Any) -> Design:
    """The design in a `sweep` config. Raises `ValueError` naming the first key that is wrong."""
    _check_keys(sweep)
    check_kinds({"sweep": sweep}, KINDS)
    _check_grid(sweep["grid"])
    given = [name for name in BUDGETS if sweep["budget"][name] is not None]
    if len(given) != 1:
        raise ValueError(
            f"sweep.budget must be one of {', '.join(BUDGETS)}, and {_are_set(given)}: set all but one to null"
        )
    _check_lr(sweep["lr"], sweep["families"])
    for key in ("families", "seeds"):
        _check_distinct(f"sweep.{key}", sweep[key])
    for key in ("overrides", "also"):
        _check_overrides(f"sweep.{key}", sweep[key])
    evaluations = sweep["evaluation"] or {}
    check_evaluations(evaluations)
    budgets = sweep["budget"][given[0]]
    budgets = tuple(budgets) if isinstance(budgets, list) else (budgets,)
    if sweep["budget"]["trunk"] and len(budgets) == 1:
        raise ValueError(
            f"sweep.budget.trunk=true needs several budgets to branch off, and sweep.budget.{given[0]} is "
            f"{budgets[0]:g} alone: give a list, such as [{budgets[0] / 2:g},{budgets[0]:g}], or set it to false"
        )
    return Design(
        name=sweep["name"],
        families=tuple(sweep["families"]),
        grid=sweep["grid"],
        budget=given[0],
        budgets=budgets,
        trunk=sweep["budget"]["trunk"],
        lr=sweep["lr"],
        seeds=tuple(sweep["seeds"]),
        overrides=(*sweep["overrides"], *sweep["also"]),
        evaluations=evaluations,
        assume=sweep["assume"],
    )


def _check_keys(sweep: Any) -> None:
    # Hydra accepts any key in a file of conf/sweep, so a misspelt one would be ignored silently.
    tree: Any = OmegaConf.create()
    for key in KINDS:
        OmegaConf.update(tree, key, None)
    tree = OmegaConf.to_container(tree)
    if isinstance(sweep, Mapping):
        for key in unknown_keys({"sweep": sweep}, tree):
            raise ValueError(f"{key} is not a key of a sweep{did_you_mean(key, dotted_keys(tree))}")


def _check_grid(grid: Mapping[str, Any]) -> None:
    given = {key for keys in GRIDS for key in keys if grid[key] is not None}
    if given not in GRIDS:
        raise ValueError(
            f"sweep.grid must be widths and depths, or shapes, or sizes, and {_are_set(sorted(given))}: set the others "
            "to null, as in sweep.grid.sizes=null"
        )
    if grid["aspects"] is not None and grid["sizes"] is None:
        raise ValueError(f"sweep.grid.aspects={grid['aspects']} goes with sweep.grid.sizes alone: set it to null")
    for key in sorted({*given, "aspects"}):
        _check_distinct(f"sweep.grid.{key}", grid[key] or [])


def _are_set(keys: Collection[str]) -> str:
    if len(keys) > 1:
        return f"{' and '.join(keys)} are set"
    return f"only {next(iter(keys))} is set" if keys else "none of them is set"


def _check_lr(lr: Mapping[str, Any], families: list[str]) -> None:
    rule, parametrization = lr["rule"], lr["parametrization"]
    has_transfer = parametrization not in (None, "standard")
    if rule == "transferred" and not has_transfer:
        raise ValueError(
            f"sweep.lr.rule=transferred needs a parametrization that transfers rates, and sweep.lr.parametrization="
            f"{as_typed(parametrization)} does not: choose mup or completep"
        )
    if rule == "tuned" and lr["factors"] is None:
        raise ValueError("sweep.lr.rule=tuned needs sweep.lr.factors of lr.value to try, such as [0.25,0.5,1,2,4]")
    if rule != "tuned" and lr["factors"] is not None:
        raise ValueError(f"sweep.lr.factors={lr['factors']} goes with sweep.lr.rule=tuned, which is {rule}")
    if rule == "fixed" and has_transfer:
        raise ValueError(
            f"sweep.lr.parametrization={parametrization} transfers rates between sizes: use it with "
            "sweep.lr.rule=transferred or tuned"
        )
    for key in BASE_SHAPE:
        if lr[key] is not None and not has_transfer:
            raise ValueError(f"sweep.lr.{key}={lr[key]} goes with sweep.lr.parametrization=mup or completep")
    _check_distinct("sweep.lr.factors", lr["factors"] or [])
    if isinstance(lr["value"], Mapping) and set(lr["value"]) != set(families):
        raise ValueError(
            f"sweep.lr.value has rates for {', '.join(lr['value'])}, and sweep.families are {', '.join(families)}: "
            "give each of them one, or a single number"
        )


def _check_overrides(where: str, overrides: list[str]) -> None:
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals and not item.startswith("~"):
            raise ValueError(f"{where} has {item!r}: an override of train.py is KEY=VALUE")
        key = key.lstrip("+~")
        if key.partition(".")[0] == "logger":
            raise ValueError(f"{where} has {item}, but runs have the logger of their sweep: give {item} to sweep.py")
        if key in DECIDED:
            raise ValueError(f"{where} has {item}, which the design sets: set {DECIDED[key]} instead")


def _check_distinct(key: str, values: list[Any]) -> None:
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise ValueError(f"{key} names {twice} more than once")
