"""The settings of an analysis, from the config group `analysis`, with checks of their values."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from slm.runtime.settings import BELOW_ONE, POSITIVE, SWITCH, Kind, check_kind, list_of, one_of, or_null
from slm.runtime.words import is_number
from slm.scaling.bounded import LINKS
from slm.scaling.laws import FORMULAS, LAWS
from slm.scaling.solver import Loss
from slm.scaling.tables.columns import SIZES, TARGETS

KINDS = ("loss", "error", "accuracy", "bits_per_byte")  # of a column that is the target

_REPLICATES = Kind(
    "0 (none) or a whole number of at least 50",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and (value == 0 or value >= 50),
)
_HALF_OR_MORE = Kind("at least 0.5 and below 1", lambda value: BELOW_ONE.accepts(value) and value >= 0.5)
_PREDICTIONS = Kind(
    "multiples of the largest N, above 0, or points such as {N: 1.3e10, D: 5e12}",
    lambda value: (
        isinstance(value, list) and all(POSITIVE.accepts(item) or _is_point(item, POSITIVE.accepts) for item in value)
    ),
)
_COLUMN = Kind(
    "the name of a column: letters, digits, spaces and _ . : / ( ) % + -",
    lambda value: isinstance(value, str) and re.fullmatch(r"\w[\w .:/()%+-]*", value) is not None,
)
_CHANCE = Kind("at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1)
_PARAMETERS = Kind("parameters with numbers, as in {E: 1.69}", lambda value: value == {} or _is_point(value, is_number))


def _is_point(value: Any, accepts: Callable[[Any], bool]) -> bool:
    """Whether `value` maps one or more names to numbers that `accepts` allows."""
    is_mapping = isinstance(value, Mapping) and bool(value)
    return is_mapping and all(isinstance(name, str) and accepts(number) for name, number in value.items())


def _some_of(*names: str) -> Kind:
    return list_of(one_of(*names), f"some of {', '.join(names)}, or all")


def _setting(default: Any, kind: Kind | None = None) -> Any:
    """Return a field that records which values are allowed, its `kind` (None if that depends on another setting)."""
    return dataclasses.field(default_factory=lambda: default, metadata={"kind": kind})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one analysis, described in conf/analysis/full.yaml. `ValueError` names the key of a wrong value."""

    laws: tuple[str, ...] = _setting(tuple(LAWS))
    formulas: Mapping[str, Any] = _setting({})
    targets: tuple[str, ...] = _setting(TARGETS, _some_of(*TARGETS))
    sizes: tuple[str, ...] = _setting(SIZES, _some_of(*SIZES))
    law: str = _setting("auto")
    target: str = _setting("auto", _COLUMN)
    target_kind: str | None = _setting(None, or_null(one_of(*KINDS)))
    chance: float | None = _setting(None, or_null(_CHANCE))
    task_loss: str | None = _setting(None, or_null(_COLUMN))
    size: str = _setting("auto", one_of("auto", *SIZES))
    loss: str = _setting("least_squares", one_of("least_squares", "huber"))
    residuals: str = _setting("log", one_of("log", "linear"))
    delta: float = _setting(1e-3, POSITIVE)
    unit: str = _setting("auto", one_of("auto", "run", "cell"))
    bootstrap: int = _setting(1000, _REPLICATES)
    calibration: int = _setting(999, _REPLICATES)
    level: float = _setting(0.95, _HALF_OR_MORE)
    power: float = _setting(0.8, _HALF_OR_MORE)
    predict: tuple[float | Mapping[str, float], ...] = _setting((2.0, 10.0), _PREDICTIONS)
    test: Mapping[str, float] = _setting({}, _PARAMETERS)
    target_loss: float | None = _setting(None, or_null(POSITIVE))
    served_tokens: float | None = _setting(None, or_null(POSITIVE))
    training_flops: float | None = _setting(None, or_null(POSITIVE))
    optima: bool = _setting(False, SWITCH)
    flops_per_second: float | None = _setting(None, or_null(POSITIVE))
    price_per_hour: float | None = _setting(None, or_null(POSITIVE))

    def __post_init__(self) -> None:
        self._check_formulas()
        laws = (*LAWS, *FORMULAS, *self.formulas)
        bounded = [f"{link}_{law}" for link in LINKS for law in laws]
        laws_of_verdict = bounded if self.target_kind == "accuracy" else laws
        kinds = {"laws": _some_of(*laws), "law": one_of("auto", *laws_of_verdict)}
        kinds |= {field.name: field.metadata["kind"] for field in dataclasses.fields(self) if field.metadata["kind"]}
        for key, kind in kinds.items():
            value = getattr(self, key)
            check_kind(f"analysis.{key}", list(value) if isinstance(value, tuple) else value, kind)
        if self.residuals == "linear" and self.loss != "least_squares":
            raise ValueError("analysis.residuals=linear needs analysis.loss=least_squares: change one of them")
        if self.residuals == "linear" and self.target_kind == "accuracy":
            raise ValueError("analysis.residuals=linear: residuals of an accuracy are not logs anyway, so leave it out")
        if self.price_per_hour is not None and self.flops_per_second is None:
            raise ValueError("analysis.price_per_hour needs analysis.flops_per_second, the device's achieved speed")
        if self.served_tokens is not None and (self.target_loss is None) == (self.training_flops is None):
            raise ValueError(
                f"analysis.served_tokens={self.served_tokens:g} needs the loss to reach: give analysis.target_loss, or "
                "analysis.training_flops, the FLOPs whose best loss without serving is the target; not both"
            )
        if self.training_flops is not None and self.served_tokens is None:
            raise ValueError("analysis.training_flops needs analysis.served_tokens, the tokens to be served")
        self._check_target()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Read a plain mapping, in which a list may be a single value or "all". An unknown key is a `ValueError`."""
        names = [field.name for field in dataclasses.fields(cls)]
        lists = ("laws", "targets", "sizes")
        given = {}
        for key, value in values.items():
            if key not in names:
                similar_names = get_close_matches(key, names, n=1)
                hint = f"; did you mean {similar_names[0]}?" if similar_names else ""
                raise ValueError(f"analysis.{key} is not a setting{hint}")
            if (key in lists and value == "all") or (key in ("formulas", "test") and value is None):
                continue  # the default
            if key in ("predict", *lists):
                value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
            given[key] = value
        return cls(**given)

    def _check_target(self) -> None:
        """Check that the settings of a target agree. `slm.scaling.targets` checks the values of its column."""
        kind, target = self.target_kind, self.target
        if target in ("auto", *TARGETS) and kind is not None:
            kinds = "auto takes loss, perplexity or bits_per_byte" if target == "auto" else f"{target} has a kind"
            raise ValueError(f"analysis.target_kind={kind} needs a column of your own as analysis.target: {kinds}")
        if target not in ("auto", *TARGETS) and kind is None:
            raise ValueError(f"analysis.target={target} needs analysis.target_kind, which must be {' or '.join(KINDS)}")
        if kind == "accuracy" and self.chance is None:
            guess = "the accuracy of guessing, as 0.25 for four choices or 0 for free answers"
            raise ValueError(f"analysis.target_kind=accuracy needs analysis.chance, {guess}")
        for key in ("chance", "task_loss"):
            if getattr(self, key) is not None and kind != "accuracy":
                raise ValueError(f"analysis.{key} needs analysis.target_kind=accuracy, and a column as analysis.target")
        if self.task_loss is not None and self.task_loss == target:
            raise ValueError(f"analysis.task_loss={target} is the target itself: give the column of the task's loss")

    def _check_formulas(self) -> None:
        if not isinstance(self.formulas, Mapping):
            raise ValueError(f"analysis.formulas={self.formulas!r} must map names to formulas: {{mine: 'E + A*N**-a'}}")
        for name, formula in self.formulas.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
                raise ValueError(f"analysis.formulas.{name}: a name must be a letter, then letters, digits or _")
            if name in (*LAWS, *FORMULAS, "auto", "all"):
                raise ValueError(f"analysis.formulas.{name} has the name of an existing law: choose another")
            from slm.scaling.formulas import check_formula  # imports sympy, which is slow and seldom needed

            check_formula(name, formula)

    @property
    def fit_loss(self) -> Loss:
        """The loss that the main fits minimise."""
        return Loss(self.delta) if self.loss == "huber" else Loss(is_on_linear_scale=self.residuals == "linear")

    @property
    def other_loss(self) -> Loss:
        """A second loss, to check whether the ranking of families depends on the loss."""
        return Loss() if self.loss == "huber" or self.residuals == "linear" else Loss(self.delta)
