"""Models from elsewhere over the laws of a table: what each family's law says of one more run of their size.

Notable: only laws in N, or in N and D, can be asked about a model of which nothing else is known, and only in a
quantity that the model was measured in; so laws are fitted anew here, by the rule of the verdict's.

Axes: M models or points of a curve, V variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.scaling.details import CURVE_POINTS, ensemble_of, predictions_at
from slm.scaling.entries import Entry, Fitted, fit_group
from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.laws import get_law, number_of
from slm.scaling.prediction import band_kind
from slm.scaling.resample import Ensemble
from slm.scaling.settings import Settings
from slm.scaling.tables import Table

PLAIN_LAW = "power"
"""What is laid over where the verdict's law is not in N alone, or in N and D."""
BEYOND_CURVES = 1.15
"""How far curves go on beyond the outermost point, as a factor of N."""


@dataclass(frozen=True)
class Model:
    """A model from elsewhere: parameters, result, and training tokens if they are known."""

    N: float
    value: float
    tokens: float | None = None


def law_to_lay_over(verdicts: str, formulas: Mapping[str, Any] | None = None, columns: Iterable[str] = ()) -> str:
    """The verdict's law if it is in N, or in N and D, else `PLAIN_LAW`."""
    variables = get_law(verdicts, formulas, columns).variables
    return verdicts if variables in (("N",), ("N", "D")) else PLAIN_LAW


def lay_over(
    table: Table, models: Sequence[Model], law: str, *, target: str, size: str, settings: Settings, seed: int
) -> list[Entry]:
    """One entry a family: `family`, `range` of N, `identified`, `refused`, `held`, `curve` and `models`.

    `models` has for each model, in their order, what the law says of one more run of its size (`value`, `low`, `high`:
    a prediction interval, None where there is none), `log_ratio` of the model to that, whether it is `inside` the
    interval, and `times_beyond`, the factor by which N is beyond the family's data (1 within). A law in N and D is
    taken at the model's own tokens; where they are not known, and for the curve, at the table's median (`held`).
    `refused` says why there is no law, and then the rest is empty.
    """
    rng = np.random.default_rng([seed, 3000, number_of(law)])
    found = get_law(law, settings.formulas, table.frame.columns)
    fitted = fit_group(table, found, target, size, settings, rng, loss=settings.fit_loss, thorough=False)
    return [_of_family(one, models, table, settings, rng) for one in fitted.values()]


def _of_family(
    one: Fitted, models: Sequence[Model], table: Table, settings: Settings, rng: np.random.Generator
) -> Entry:
    family, span = one.entry["family"], one.entry["range"]["N"]
    if one.fit is None or one.uncertainty is None:
        return {"family": family, "range": span, "refused": one.entry["notes"][0], "models": [], "curve": []}
    held = float(table.frame["tokens"].median()) if "D" in one.fit.law.variables else None
    ensemble = ensemble_of(one.fit, one.uncertainty, settings, rng)
    sizes = [*span, *(model.N for model in models)]
    grid = np.geomspace(min(sizes) / BEYOND_CURVES, max(sizes) * BEYOND_CURVES, CURVE_POINTS)
    log_x_MV = _log_x([Model(N, 1.0) for N in grid], held)
    run_sigma = one.entry["run_sigma_log"]
    said = _predicted(one.fit, _log_x(models, held), ensemble, run_sigma, settings.level)
    return {
        "family": family,
        "range": span,
        "refused": None,
        "identified": one.entry["identified"],
        "held": held,
        "curve": _predicted(one.fit, log_x_MV, ensemble, run_sigma, settings.level),
        "models": [_beside(model, law, span) for model, law in zip(models, said, strict=True)],
    }


def _log_x(models: Sequence[Model], held: float | None) -> Floats:
    """Log variables [M, V]."""
    values = [[model.N] if held is None else [model.N, model.tokens or held] for model in models]
    return np.log(np.array(values, float))


def _predicted(found: Fit, log_x_MV: Floats, ensemble: Ensemble | None, run_sigma: float, level: float) -> list[Entry]:
    """`N`, `value` and the ends of one more run's interval, None where the fit has no scatter to tell it by."""
    if not found.is_exact and (ensemble is not None or band_kind(found) is None):
        return predictions_at(found, log_x_MV, ensemble, run_sigma, level)
    values = np.exp(found.log_value(log_x_MV)).tolist()
    sizes = np.exp(log_x_MV[:, 0]).tolist()
    return [{"N": N, "value": value, "low": None, "high": None} for N, value in zip(sizes, values, strict=True)]


def _beside(model: Model, law: Entry, span: Sequence[float]) -> Entry:
    known = law["low"] is not None and np.isfinite([law["low"], law["high"]]).all()
    return {
        **{key: law[key] for key in ("value", "low", "high")},
        "log_ratio": float(np.log(model.value / law["value"])),
        "inside": bool(law["low"] <= model.value <= law["high"]) if known else None,
        "times_beyond": max(1.0, model.N / span[1], span[0] / model.N),
    }
