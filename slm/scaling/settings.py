"""What an analysis is asked to do: the `analysis` config group, checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from slm.runtime.settings import BELOW_ONE, POSITIVE, SWITCH, Kind, check_kind, list_of, one_of, or_null
from slm.runtime.words import is_number
from slm.scaling.laws import FORMULAS, LAWS
from slm.scaling.solver import Loss
from slm.scaling.tables.columns import SIZES, TARGETS

_REPLICATES = Kind(
    "0 (none) or a whole number of at least 50",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and (value == 0 or value >= 50),
)
_SHARE = Kind("at least 0.5 and below 1", lambda value: BELOW_ONE.accepts(value) and value >= 0.5)
_PREDICTIONS = Kind(
    "multiples of the largest N, above 0, or points such as {N: 1.3e10, D: 5e12}",
    lambda value: (
        isinstance(value, list) and all(POSITIVE.accepts(one) or _is_point(one, POSITIVE.accepts) for one in value)
    ),
)
_PARAMETERS = Kind(
    "parameters with numbers, as in {E: 1.69, A: 406.4}",
    lambda value: value == {} or _is_point(value, is_number),
)


def _is_point(value: Any, accepts: Callable[[Any], bool]) -> bool:
    """Whether it gives one or more names values that are accepted."""
    is_mapping = isinstance(value, Mapping) and bool(value)
    return is_mapping and all(isinstance(name, str) and accepts(one) for name, one in value.items())


def _some_of(names: Sequence[str]) -> Kind:
    return list_of(one_of(*names), f"some of {', '.join(names)}, or all")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One analysis. Raises `ValueError` naming the key that is wrong."""

    laws: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(LAWS))
    """Laws to fit."""
    formulas: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further laws to fit, each a formula of the target by its name: see `slm.scaling.formulas`."""
    targets: tuple[str, ...] = TARGETS
    """Quantities to fit, as far as the table has them."""
    sizes: tuple[str, ...] = SIZES
    """Definitions of N to fit with, as far as the table has them."""
    law: str = "auto"
    """The law that the verdict is about; auto is the law in N of the lowest AICc, pooled over the families."""
    target: str = "auto"
    """The target that the verdict is about; auto is bits_per_byte where tokenizers differ, else loss."""
    size: str = "auto"
    """The N that the verdict is about; auto is the first that the table has."""
    loss: str = "least_squares"
    """Loss of log residuals; the other one is fitted too, as a check of the ranking."""
    residuals: str = "log"
    """Residuals that are squared: log, of the logarithm of the target, or linear, of the target itself."""
    delta: float = 1e-3
    """Where Huber's loss turns from square to linear."""
    unit: str = "auto"
    """What is fitted: auto and cell are the means over seeds of each cell, run is single runs."""
    bootstrap: int = 1000
    """Bootstrap samples."""
    calibration: int = 999
    """Simulated data sets behind the p-value of a likelihood ratio."""
    level: float = 0.95
    """Coverage of intervals."""
    power: float = 0.8
    """Chance with which the detectable difference is detected."""
    predict: tuple[float | Mapping[str, float], ...] = (2.0, 10.0)
    """What to predict: multiples of the largest N, and points that give each variable of a law its value."""
    test: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Parameters to test, some or all, under every law that has them."""
    target_loss: float | None = None
    """A loss to compute the least FLOPs for."""
    optima: bool = False
    """Whether rows are optima already, one a budget: approach 2 then takes their N and D as they are."""
    flops_per_second: float | None = None
    """Achieved speed of a device, for costs."""
    price_per_hour: float | None = None
    """Price of that device."""

    def __post_init__(self) -> None:
        self._check_formulas()
        laws = (*LAWS, *FORMULAS, *self.formulas)
        kinds: dict[str, Kind] = {
            "laws": _some_of(laws),
            "targets": _some_of(TARGETS),
            "sizes": _some_of(SIZES),
            "law": one_of("auto", *laws),
            "target": one_of("auto", *TARGETS),
            "size": one_of("auto", *SIZES),
            "loss": one_of("least_squares", "huber"),
            "residuals": one_of("log", "linear"),
            "delta": POSITIVE,
            "unit": one_of("auto", "run", "cell"),
            "bootstrap": _REPLICATES,
            "calibration": _REPLICATES,
            "level": _SHARE,
            "power": _SHARE,
            "predict": _PREDICTIONS,
            "test": _PARAMETERS,
            "target_loss": or_null(POSITIVE),
            "optima": SWITCH,
            "flops_per_second": or_null(POSITIVE),
            "price_per_hour": or_null(POSITIVE),
        }
        for key, kind in kinds.items():
            value = getattr(self, key)
            check_kind(f"analysis.{key}", [*value] if isinstance(value, tuple) else value, kind)
        if self.residuals == "linear" and self.loss != "least_squares":
            raise ValueError("analysis.residuals=linear goes with analysis.loss=least_squares: leave one of them out")
        if self.price_per_hour is not None and self.flops_per_second is None:
            raise ValueError(
                "analysis.price_per_hour needs analysis.flops_per_second, the achieved speed of the device"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings of a plain mapping, whose lists may be one value or all. An unknown key is a `ValueError`."""
        names = [field.name for field in dataclasses.fields(cls)]
        everything = {"laws": tuple(LAWS), "targets": TARGETS, "sizes": SIZES}
        filled = {}
        for key, value in values.items():
            if key not in names:
                near = get_close_matches(key, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"analysis.{key} is not a setting{hint}")
            if key in ("formulas", "test") and value is None:
                continue
            if value == "all" and key in everything:
                value = everything[key]
            if key in ("predict", *everything):
                value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
            filled[key] = value
        return cls(**filled)

    def _check_formulas(self) -> None:
        if not isinstance(self.formulas, Mapping):
            raise ValueError(
                f"analysis.formulas={self.formulas!r} must be names with formulas, as in {{mine: 'E + A*N**-a'}}"
            )
        for name, formula in self.formulas.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
                raise ValueError(f"analysis.formulas.{name} must be named with letters, digits and _")
            if name in (*LAWS, *FORMULAS, "auto", "all"):
                raise ValueError(f"analysis.formulas.{name} has the name of an existing law: choose another")
            from slm.scaling.formulas import check_formula  # sympy is slow to import, and seldom needed

            check_formula(name, formula)

    @property
    def every_law(self) -> tuple[str, ...]:
        """The laws to fit, formulas and the law of the verdict among them."""
        return tuple(dict.fromkeys((*self.laws, *self.formulas, *([] if self.law == "auto" else [self.law]))))

    @property
    def fit_loss(self) -> Loss:
        """The loss that the main fits minimise."""
        return Loss(self.delta) if self.loss == "huber" else Loss(linear=self.residuals == "linear")

    @property
    def other_loss(self) -> Loss:
        """The loss that the ranking is checked with."""
        return Loss() if self.loss == "huber" or self.residuals == "linear" else Loss(self.delta)
