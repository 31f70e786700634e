"""Check the config group `sweep`, the design of a sweep. `conf/sweep/quick.yaml` says what each key means."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from slm.composition.budget import BUDGETS
from slm.composition.keys import did_you_mean, dotted_keys, unknown_keys
from slm.runtime import settings as kinds
from slm.runtime.settings import Kind, as_typed, check_kinds, list_of, one_of, or_null
from slm.sweep.evaluation import Evaluations, check_evaluations, is_evaluations
from slm.sweep.shapes import MAX_TOLERANCE

BASE_SHAPE = ("base_width", "base_depth", "base_head_dim")
"""Keys of the shape at which the rate in `optim.lr` was tuned. A parametrization transfers the rate to other shapes."""
GRIDS = ({"widths", "depths"}, {"shapes"}, {"sizes"})
"""A grid must set all keys of exactly one of these sets."""
MIN_RATES = 3
"""Fewest learning rates from which the best is interpolated: a parabola has three parameters."""
SET_BY_DESIGN = {
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
"""Key of train.py that a design sets -> key of the design that sets it."""


def _one_or_several(kind: Kind) -> Kind:
    def accepts(value: Any) -> bool:
        values = value if isinstance(value, list) else [value]
        return bool(values) and all(map(kind.accepts, values))

    return Kind(f"{kind.words}, or a list of them", accepts)


def _is_rate(value: Any) -> bool:
    rates = value.values() if isinstance(value, Mapping) else [value]
    return all(map(kinds.POSITIVE.accepts, rates))


NAME_OF_FOLDER = Kind("a folder name without /", lambda value: kinds.NAME.accepts(value) and Path(value).name == value)
SHAPE = Kind("WIDTHxDEPTH", lambda x: kinds.TEXT.accepts(x) and bool(re.fullmatch(r"0*[1-9]\d*x0*[1-9]\d*", x)))
TOLERANCE = Kind(
    f"a number above 0 and at most {MAX_TOLERANCE}",
    lambda value: kinds.POSITIVE.accepts(value) and value <= MAX_TOLERANCE,
)
RATE = Kind("a number above 0, or a mapping from family to number, as in {mobilellm: 0.008}", _is_rate)
PARAMS = Kind(
    "a mapping of numbers, as in {A: 20, alpha: 0.1}",
    lambda value: isinstance(value, Mapping) and all(isinstance(item, (int, float)) for item in value.values()),
)
KINDS: dict[str, Kind] = {
    "sweep.name": NAME_OF_FOLDER,
    "sweep.families": list_of(kinds.NAME, "families, such as [mobilellm,ssd]"),
    **{f"sweep.grid.{key}": or_null(list_of(kinds.COUNT, "whole numbers from 1 on")) for key in ("widths", "depths")},
    "sweep.grid.shapes": or_null(list_of(SHAPE, "WIDTHxDEPTH, such as [128x8,192x12]")),
    **{f"sweep.grid.{key}": or_null(list_of(kinds.POSITIVE, "numbers above 0")) for key in ("sizes", "aspects")},
    "sweep.grid.size": one_of("params_total", "params_non_embedding"),
    "sweep.grid.tolerance": TOLERANCE,
    "sweep.grid.out_of_reach": one_of("replace", "skip"),
    **{f"sweep.budget.{name}": or_null(_one_or_several(kinds.POSITIVE)) for name in BUDGETS},
    "sweep.budget.trunk": kinds.SWITCH,
    "sweep.lr.rule": one_of("fixed", "transferred", "tuned"),
    "sweep.lr.value": or_null(RATE),
    "sweep.lr.factors": or_null(list_of(kinds.POSITIVE, f"{MIN_RATES} or more numbers above 0", min_length=MIN_RATES)),
    "sweep.lr.parametrization": or_null(kinds.NAME),
    **{f"sweep.lr.{name}": or_null(kinds.COUNT) for name in BASE_SHAPE},
    "sweep.seeds": list_of(kinds.SEED, "whole numbers from 0 on"),
    **dict.fromkeys(("sweep.overrides", "sweep.also"), kinds.TEXTS),
    "sweep.evaluation": or_null(Kind("a mapping of names to lists of overrides of evaluate.py", is_evaluations)),
    **dict.fromkeys(("sweep.assume.sigma", "sweep.assume.flops_per_second"), kinds.POSITIVE),
    **dict.fromkeys(("sweep.assume.misfit", "sweep.assume.own_misfit"), kinds.NOT_NEGATIVE),
    "sweep.assume.law": kinds.NAME,
    "sweep.assume.params": PARAMS,
    "sweep.assume.more_seeds": kinds.NATURAL,
}


@dataclass(frozen=True, kw_only=True)
class Design:
    """A checked design. `grid`, `lr` and `assume` are the groups with these names in the config group `sweep`."""

    name: str
    families: tuple[str, ...]
    grid: Mapping[str, Any]
    budget_key: str
    """The key of `BUDGETS` that sets the budget."""
    budgets: tuple[float, ...]
    has_trunks: bool
    """Whether runs that differ only in their budget branch off the longest of them (`cells.py`)."""
    lr: Mapping[str, Any]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    evaluations: Evaluations
    """Evaluations of every completed run (`evaluation.py`)."""
    assume: Mapping[str, Any]

    @property
    def common_overrides(self) -> tuple[str, ...]:
        """Overrides of train.py for all cells: those of the design, and the parametrization."""
        name = self.lr["parametrization"]
        if name is None:
            return self.overrides
        base = (f"parametrization.{key}={self.lr[key]}" for key in BASE_SHAPE if self.lr[key] is not None)
        return (*self.overrides, f"parametrization={name}", *base)

    def lr_rule(self, family: str) -> str:
        """Describe how the learning rates of a family depend on the shape; equal rules have equal descriptions."""
        rule, parametrization = self.lr["rule"], self.lr["parametrization"]
        value = self.lr_value(family)
        description = rule
        if rule == "tuned" and isinstance(self.lr["value"], Mapping):
            description += " about each family's own rate"
        elif value is not None:
            description += f" {value:g}"
        if rule == "tuned":
            description += f" over {len(self.lr['factors'])} rates"
        return description if parametrization is None else f"{description} by {parametrization}"

    def lr_value(self, family: str) -> float | None:
        """The learning rate that the design sets for a family; None to use the one in conf/optim."""
        value = self.lr["value"]
        return value[family] if isinstance(value, Mapping) else value

    @property
    def lr_factors(self) -> tuple[float, ...]:
        """The learning rates to try for each shape, as multiples of `lr.value`."""
        return tuple(sorted(self.lr["factors"])) if self.lr["rule"] == "tuned" else (1.0,)


def check_design(sweep: Any) -> Design:
    """Check a `sweep` config and return its design. Raises `ValueError` naming the first key that is wrong."""
    _check_keys(sweep)
    check_kinds({"sweep": sweep}, KINDS)
    _check_grid(sweep["grid"])
    budget_keys = [name for name in BUDGETS if sweep["budget"][name] is not None]
    if len(budget_keys) != 1:
        keys, found = ", ".join(BUDGETS), _describe_set_keys(budget_keys)
        raise ValueError(f"sweep.budget must set exactly one of {keys}, but {found}: set the others to null")
    _check_lr(sweep["lr"], sweep["families"])
    for key in ("families", "seeds"):
        _check_distinct(f"sweep.{key}", sweep[key])
    for key in ("overrides", "also"):
        _check_overrides(f"sweep.{key}", sweep[key])
    evaluations = sweep["evaluation"] or {}
    check_evaluations(evaluations)
    (budget_key,) = budget_keys
    budget = sweep["budget"][budget_key]
    budgets = tuple(budget) if isinstance(budget, list) else (budget,)
    if sweep["budget"]["trunk"] and len(budgets) == 1:
        raise ValueError(
            f"sweep.budget.trunk=true needs several budgets, but sweep.budget.{budget_key} has only {budgets[0]:g}: "
            f"give a list, such as [{budgets[0] / 2:g},{budgets[0]:g}], or set sweep.budget.trunk=false"
        )
    return Design(
        name=sweep["name"],
        families=tuple(sweep["families"]),
        grid=sweep["grid"],
        budget_key=budget_key,
        budgets=budgets,
        has_trunks=sweep["budget"]["trunk"],
        lr=sweep["lr"],
        seeds=tuple(sweep["seeds"]),
        overrides=(*sweep["overrides"], *sweep["also"]),
        evaluations=evaluations,
        assume=sweep["assume"],
    )


def _check_keys(sweep: Any) -> None:
    # Hydra accepts any key in a file of conf/sweep, so a misspelt key would be ignored silently.
    tree: Any = OmegaConf.create()
    for key in KINDS:
        OmegaConf.update(tree, key, None)
    tree = OmegaConf.to_container(tree)
    if isinstance(sweep, Mapping):
        for key in unknown_keys({"sweep": sweep}, tree):
            raise ValueError(f"{key} is not a key of a sweep{did_you_mean(key, dotted_keys(tree))}")


def _check_grid(grid: Mapping[str, Any]) -> None:
    set_keys = {key for keys in GRIDS for key in keys if grid[key] is not None}
    if set_keys not in GRIDS:
        raise ValueError(
            f"sweep.grid must set widths and depths, or shapes, or sizes, but {_describe_set_keys(sorted(set_keys))}: "
            "set the others to null, as in sweep.grid.sizes=null"
        )
    if grid["aspects"] is not None and grid["sizes"] is None:
        raise ValueError(f"sweep.grid.aspects={grid['aspects']} needs sweep.grid.sizes: set aspects to null")
    for key in sorted({*set_keys, "aspects"}):
        _check_distinct(f"sweep.grid.{key}", grid[key] or [])


def _describe_set_keys(keys: Collection[str]) -> str:
    if len(keys) > 1:
        return f"{' and '.join(keys)} are set"
    return f"only {next(iter(keys))} is set" if keys else "none of them is set"


def _check_lr(lr: Mapping[str, Any], families: list[str]) -> None:
    rule, parametrization = lr["rule"], lr["parametrization"]
    transfers_rates = parametrization not in (None, "standard")
    if rule == "transferred" and not transfers_rates:
        given = as_typed(parametrization)
        raise ValueError(f"sweep.lr.rule=transferred needs sweep.lr.parametrization=mup or completep, not {given}")
    if rule == "tuned" and lr["factors"] is None:
        raise ValueError("sweep.lr.rule=tuned needs sweep.lr.factors to multiply rates by, such as [0.25,0.5,1,2,4]")
    if rule != "tuned" and lr["factors"] is not None:
        raise ValueError(f"sweep.lr.factors={lr['factors']} needs sweep.lr.rule=tuned, but the rule is {rule}")
    if rule == "fixed" and transfers_rates:
        raise ValueError(f"sweep.lr.parametrization={parametrization} needs sweep.lr.rule=transferred or tuned")
    for key in BASE_SHAPE:
        if lr[key] is not None and not transfers_rates:
            raise ValueError(f"sweep.lr.{key}={lr[key]} needs sweep.lr.parametrization=mup or completep")
    _check_distinct("sweep.lr.factors", lr["factors"] or [])
    if isinstance(lr["value"], Mapping) and set(lr["value"]) != set(families):
        raise ValueError(
            f"sweep.lr.value has rates for {', '.join(lr['value'])}, but sweep.families are {', '.join(families)}: "
            "give one rate for each family, or a single number"
        )


def _check_overrides(where: str, overrides: list[str]) -> None:
    for item in overrides:
        if "=" not in item and not item.startswith("~"):
            raise ValueError(f"{where} has {item!r}: an override of train.py has the form KEY=VALUE")
        key = item.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] == "logger":
            raise ValueError(f"{where} has {item}, but all runs use the logger of sweep.py: give {item} to sweep.py")
        if key in ("init_from", "init_vocab"):
            raise ValueError(
                f"{where} has {item}, but a sweep compares shapes, and a checkpoint has only one: give {item} to "
                "train.py, or to train.py -m for several runs"
            )
        if key in SET_BY_DESIGN:
            raise ValueError(f"{where} has {item}, which the design sets: set {SET_BY_DESIGN[key]} instead")


def _check_distinct(key: str, values: list[Any]) -> None:
    repeated = next((value for value in values if values.count(value) > 1), None)
    if repeated is not None:
        raise ValueError(f"{key} has {repeated} more than once")
