"""Compare models from elsewhere with a table of runs: what each family's law predicts for a run of a model's size.

Notable: only N, perhaps D, and one result of such a model are known. So a law in N, or in N and D, is fitted here to
the table's column of this kind of result (such as bits per byte), in the same way as for the verdict.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.scaling.details import CURVE_POINTS, band_ensemble, predictions_at
from slm.scaling.entries import Entry, Fitted, Task, fit_group
from slm.scaling.laws import get_law, seed_of_law
from slm.scaling.prediction import needed_bootstrap
from slm.scaling.settings import Settings
from slm.scaling.tables import Table

FALLBACK_LAW = "power"  # used unless the variables of the verdict's law are N, or N and D
LAWS_OF_SIZE = (("N",), ("N", "D"))  # variables of laws that give a curve over N
CURVE_MARGIN = 1.15  # curves extend beyond the smallest and the largest N by this factor


@dataclass(frozen=True)
class Model:
    """A model from elsewhere: its parameters, its result `value`, and its training tokens if they are known."""

    N: float
    value: float
    tokens: float | None = None


def overlay_law(verdict_law: str, formulas: Mapping[str, Any] | None = None, columns: Iterable[str] = ()) -> str:
    """Return the verdict's law if its variables are N, or N and D; else `FALLBACK_LAW`."""
    variables = get_law(verdict_law, formulas, columns).variables
    return verdict_law if variables in LAWS_OF_SIZE else FALLBACK_LAW


def overlay_models(
    table: Table, models: Sequence[Model], law: str, *, target: str, size: str, settings: Settings, seed: int
) -> list[Entry]:
    """Return one entry per family: `family`, `range` of N, `identified`, `refused`, `held`, `curve` and `models`.

    For a law in N and D, `held` is the table's median of tokens: used for the curve, and for models of unknown tokens.
    `refused` says why there is no law; `models` and `curve` are then empty. `models` has per model, in order:
    - `value`, `low`, `high`: the law's prediction for a new run of this size, with its interval (None: no interval);
    - `log_ratio`: log of the model's result divided by `value`; `inside`: whether the result is in the interval;
    - `times_beyond`: the factor by which N is outside the family's sizes (1 if it is inside).
    """
    rng = np.random.default_rng([seed, 3000, seed_of_law(law)])
    task = Task(get_law(law, settings.formulas, table.frame.columns), target, size, settings.fit_loss)
    fitted = fit_group(table, task, settings, rng, thorough=False)
    return [_family_entry(result, models, table, settings, rng) for result in fitted.values()]


def _family_entry(
    result: Fitted, models: Sequence[Model], table: Table, settings: Settings, rng: np.random.Generator
) -> Entry:
    family, span, fit = result.entry["family"], result.entry["range"]["N"], result.fit
    if fit is None or result.uncertainty is None:
        return {"family": family, "range": span, "refused": result.entry["notes"][0], "models": [], "curve": []}
    held = float(table.frame["tokens"].median()) if "D" in fit.law.variables else None
    ensemble = band_ensemble(fit, result.uncertainty, settings, rng)
    has_interval = not fit.is_exact and (needed_bootstrap(fit) is None or ensemble is not None)

    def predict(points: Sequence[Model]) -> list[Entry]:
        """Return `N`, and `value`, `low` and `high` for a new run; `low` and `high` are None without an interval."""
        columns = [[point.N for point in points]]
        if held is not None:
            columns.append([point.tokens or held for point in points])
        log_x_MV = np.log(np.stack([np.array(column, float) for column in columns], axis=1))  # M points, V variables
        if has_interval:
            return predictions_at(fit, log_x_MV, ensemble, result.entry["run_sigma_log"], settings.level)
        rows = np.exp([log_x_MV[:, 0], fit.log_value(log_x_MV)]).T.tolist()
        return [{"N": N, "value": value, "low": None, "high": None} for N, value in rows]

    sizes = [*span, *(model.N for model in models)]
    grid = np.geomspace(min(sizes) / CURVE_MARGIN, max(sizes) * CURVE_MARGIN, CURVE_POINTS)
    return {
        "family": family,
        "range": span,
        "refused": None,
        "identified": result.entry["identified"],
        "held": held,
        "models": [_model_entry(model, row, span) for model, row in zip(models, predict(models), strict=True)],
        "curve": predict([Model(N, value=1.0) for N in grid]),
    }


def _model_entry(model: Model, prediction: Entry, span: Sequence[float]) -> Entry:
    low, high = prediction["low"], prediction["high"]
    has_ends = low is not None and np.isfinite([low, high]).all()
    return {
        **{key: prediction[key] for key in ("value", "low", "high")},
        "log_ratio": float(np.log(model.value / prediction["value"])),
        "inside": bool(low <= model.value <= high) if has_ends else None,
        "times_beyond": max(1.0, model.N / span[1], span[0] / model.N),
    }
