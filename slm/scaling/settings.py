"""What an analysis is asked to do: the `analysis` config group, checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from slm.scaling.laws import FORMULAS, LAWS
from slm.scaling.solver import Loss
from slm.scaling.tables.columns import SIZES, TARGETS

CHOICES = {
    "laws": (*LAWS, *FORMULAS),
    "targets": TARGETS,
    "sizes": SIZES,
    "law": ("auto", *LAWS, *FORMULAS),
    "target": ("auto", *TARGETS),
    "size": ("auto", *SIZES),
    "loss": ("least_squares", "huber"),
    "residuals": ("log", "linear"),
    "unit": ("auto", "run", "cell"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One analysis. Raises `ValueError` naming the key that is wrong."""

    laws: tuple[str, ...] = tuple(LAWS)
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
        for name in ("laws", "targets", "sizes"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"analysis.{name}={getattr(self, name)!r} must be a list, or all")
        if self.delta is None:
            raise ValueError("analysis.delta is not set; it must be a number above 0")
        self._check_formulas()
        for name, allowed in CHOICES.items():
            if name in ("laws", "law"):
                allowed = (*allowed, *self.formulas)
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one not in allowed:
                    raise ValueError(f"analysis.{name}={one!r} must be one of {', '.join(allowed)}")
        if self.residuals == "linear" and self.loss != "least_squares":
            raise ValueError("analysis.residuals=linear goes with analysis.loss=least_squares: leave one of them out")
        for name in ("laws", "targets", "sizes"):
            if not getattr(self, name):
                raise ValueError(f"analysis.{name} is empty: name at least one")
        if not isinstance(self.optima, bool):
            raise ValueError(f"analysis.optima={self.optima!r} must be true (rows are optima, one a budget) or false")
        for name, least in (("bootstrap", 0), ("calibration", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least or 0 < value < 50:
                raise ValueError(f"analysis.{name}={value!r} must be 0 (none) or a whole number of at least 50")
        for name in ("level", "power"):
            if not _is_number(getattr(self, name)) or not 0.5 <= getattr(self, name) < 1:
                raise ValueError(f"analysis.{name}={getattr(self, name)!r} must be at least 0.5 and below 1")
        for name in ("delta", "target_loss", "flops_per_second", "price_per_hour"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or not value > 0):
                raise ValueError(f"analysis.{name}={value!r} must be a number above 0")
        if self.price_per_hour is not None and self.flops_per_second is None:
            raise ValueError(
                "analysis.price_per_hour needs analysis.flops_per_second, the achieved speed of the device"
            )
        given = self.predict
        if not isinstance(given, tuple) or not all(_is_above_zero(one) or _is_point(one) for one in given):
            raise ValueError(
                f"analysis.predict={given!r} must be multiples of the largest N, above 0, or points such as "
                "{N: 1.3e10, D: 5e12}"
            )
        if not isinstance(self.test, Mapping) or (self.test and not _is_point(self.test, signed=True)):
            raise ValueError(
                f"analysis.test={self.test!r} must be parameters with numbers, as in {{E: 1.69, A: 406.4}}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings of a plain mapping; refuses keys that are none, with the nearest that is one."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                near = get_close_matches(key, names, n=1)
                raise ValueError(f"analysis.{key} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
        values = {key: value for key, value in values.items() if key not in ("formulas", "test") or value is not None}
        plural = {"laws": tuple(LAWS), "targets": TARGETS, "sizes": SIZES}
        filled = {}
        for key, value in values.items():
            if key in plural:
                value = plural[key] if value == "all" else (value,) if isinstance(value, str) else _tuple(value)
            elif key == "predict":
                value = (value,) if _is_number(value) or isinstance(value, Mapping) else _tuple(value)
            filled[key] = value
        return cls(**filled)

    def _check_formulas(self) -> None:
        if not isinstance(self.formulas, Mapping):
            raise ValueError(
                f"analysis.formulas={self.formulas!r} must be names with formulas, as in {{mine: 'E + A*N**-a'}}"
            )
        for name, given in self.formulas.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
                raise ValueError(f"analysis.formulas.{name} must be named with letters, digits and _")
            if name in (*LAWS, *FORMULAS, "auto", "all"):
                raise ValueError(f"analysis.formulas.{name} has the name of a law that there is: choose another")
            from slm.scaling.formulas import check_formula  # sympy is slow to import, and seldom needed

            check_formula(name, given)

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


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _is_above_zero(value: Any) -> bool:
    return _is_number(value) and bool(value > 0)


def _is_point(value: Any, *, signed: bool = False) -> bool:
    """Whether it gives names numbers, above 0 unless `signed`."""
    good = _is_number if signed else _is_above_zero
    named = isinstance(value, Mapping) and all(isinstance(name, str) and good(one) for name, one in value.items())
    return named and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
