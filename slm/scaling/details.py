"""What is worth computing for the fits that a report is about: curves, predictions, gain, extrapolation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from slm.scaling.fitting import Fit, fit_sample, refusal
from slm.scaling.forms import Floats
from slm.scaling.given import given_entry
from slm.scaling.intervals import MOST_FAILED, Uncertainty
from slm.scaling.laws import Law
from slm.scaling.prediction import band, band_kind, error_quantiles
from slm.scaling.resample import Ensemble, bootstrap
from slm.scaling.sample import Sample
from slm.scaling.settings import Settings
from slm.scaling.starts import is_linear

Entry = dict[str, Any]
CURVE_POINTS = 60
FEWEST_REFITS = 100
"""Without which there is no band."""


def details(found: Fit, of: Uncertainty, settings: Settings, rng: np.random.Generator, middle: Floats) -> Entry:
    """Keys of an entry: profiles, points, curve, predictions, marginal, test, extrapolation, without_smallest.

    `middle` [V] is where log variables other than the first are held, the same for all families.
    """
    if found.exact:
        return {"points": _points(found)}
    ensemble = ensemble_of(found, of, settings, rng)
    usable = ensemble is not None or band_kind(found) is None
    return {
        "profiles": {
            name: {"values": p.values.tolist(), "t": p.root.tolist()}
            for name, p in of.profiles.items()
            if name in found.law.exponents
        },
        "points": _points(found),
        "curve": _curve(found, ensemble, settings, rng, middle) if usable else None,
        **(_predictions(found, ensemble, settings, rng, middle) if usable else {"predictions": []}),
        "marginal": _marginal(found, ensemble, settings, rng, middle) if found.law.variables[0] == "N" else None,
        "test": given_entry(found, settings.test),
        "extrapolation": _extrapolation(found, settings, rng),
        "without_smallest": _without_smallest(found),
    }


def _points(found: Fit) -> Entry:
    sample = found.sample
    variables = zip(found.law.variables, sample.log_x.T, strict=True)
    return {
        **{v: np.exp(x).tolist() for v, x in variables},
        "value": np.exp(sample.log_y).tolist(),
        "residual": found.residuals.tolist(),
    }


def ensemble_of(found: Fit, of: Uncertainty, settings: Settings, rng: np.random.Generator) -> Ensemble | None:
    """The refits that bands rest on; None if bands need none, or too few could be made."""
    kind = band_kind(found)
    if kind is None or found.degrees_of_freedom < 1:
        return None
    drawn = of.ensembles.get(kind) or bootstrap(found, kind, max(settings.bootstrap, FEWEST_REFITS * 2), rng)
    return drawn if len(drawn.theta) >= FEWEST_REFITS and drawn.failed <= MOST_FAILED else None


def _along_first(middle: Floats, first: Floats) -> Floats:
    """Log variables [M, V] with the first at log values `first` and the others at the medians of the whole table."""
    log_x = np.repeat(middle[None], len(first), axis=0)
    log_x[:, 0] = first
    return log_x


def _curve(
    found: Fit, ensemble: Ensemble | None, settings: Settings, rng: np.random.Generator, middle: Floats
) -> Entry:
    """The law along its first variable, its band and the prediction band, a little beyond the data."""
    x = found.sample.log_x[:, 0]
    log_x = _along_first(middle, np.linspace(x.min() - 0.3, x.max() + 1.2, CURVE_POINTS))
    mean = band(found, log_x, ensemble, rng, level=settings.level)
    run = band(found, log_x, ensemble, rng, new_run=True, level=settings.level)
    held = dict(zip(found.law.variables[1:], np.exp(log_x[0, 1:]).tolist(), strict=True))
    columns = {"centre": mean.centre, "low": mean.low, "high": mean.high, "run_low": run.low, "run_high": run.high}
    return {
        "variable": found.law.variables[0],
        "held": held,
        "x": np.exp(log_x[:, 0]).tolist(),
        **{name: np.exp(values).tolist() for name, values in columns.items()},
    }


def _predictions(
    found: Fit, ensemble: Ensemble | None, settings: Settings, rng: np.random.Generator, middle: Floats
) -> Entry:
    """The result of one more run at multiples of the largest size, others at their medians, and at stated points.

    `beyond` says of each variable by what factor it is beyond the rows of the fit (1 within), `ignored` what a point
    gives that is no variable of the law; `not_predicted` has the points that lack a variable, and which.
    """
    variables, log_x_IV = found.law.variables, found.sample.log_x
    times = [one for one in settings.predict if not isinstance(one, Mapping)]
    points = [one for one in settings.predict if isinstance(one, Mapping)]
    whole = [point for point in points if set(variables) <= set(point)]
    stated = np.log([[point[v] for v in variables] for point in whole]).reshape(-1, len(variables))
    multiples = _along_first(middle, log_x_IV[:, 0].max() + np.log(np.array(times, float)))
    log_x = np.concatenate([multiples, stated])
    rows = predictions_at(found, log_x, ensemble, rng, settings.level) if len(log_x) else []
    factors = np.exp(np.maximum(0, np.maximum(log_x - log_x_IV.max(axis=0), log_x_IV.min(axis=0) - log_x)))
    for row, beyond, point in zip(rows, factors, [{}] * len(times) + whole, strict=True):
        row["beyond"] = dict(zip(variables, beyond.tolist(), strict=True))
        row["ignored"] = [name for name in point if name not in variables]
    lacking = [(point, [v for v in variables if v not in point]) for point in points]
    return {
        "predictions": rows,
        "not_predicted": [{"point": dict(point), "lacks": lacks} for point, lacks in lacking if lacks],
    }


def predictions_at(
    found: Fit, log_x: Floats, ensemble: Ensemble | None, rng: np.random.Generator, level: float
) -> list[Entry]:
    """Predicted result of one more run at each row of log variables [M, V], with its prediction interval."""
    run = band(found, log_x, ensemble, rng, new_run=True, level=level)
    return [
        {
            **dict(zip(found.law.variables, np.exp(x).tolist(), strict=True)),
            "value": float(np.exp(run.centre[i])),
            "low": float(np.exp(run.low[i])),
            "high": float(np.exp(run.high[i])),
        }
        for i, x in enumerate(log_x)
    ]


def _marginal(
    found: Fit, ensemble: Ensemble | None, settings: Settings, rng: np.random.Generator, middle: Floats
) -> Entry | None:
    """-dL/dN at sizes within the data: how much a further parameter lowers the target, with its band.

    No size is a "knee": under a power law the gain of a doubling falls by the same share everywhere.
    """
    if ensemble is None and is_linear(found.law) and found.degrees_of_freedom >= 1:
        ensemble = bootstrap(found, "parametric", max(settings.bootstrap, FEWEST_REFITS * 2), rng)
    if ensemble is None:
        return None
    x = found.sample.log_x[:, 0]
    log_x = _along_first(middle, np.linspace(x.min(), x.max(), 30))
    if (np.diff(found.log_value(log_x)) >= 0).any():  # a target that rises gains nothing
        return None
    # Not of its logarithm, which could not reach 0 where an exponent's interval does.
    gain = _gain(found.law, found.theta[None], log_x - found.sample.refs)[0]
    draws = _gain(found.law, ensemble.theta, log_x - found.sample.refs)
    low, high = error_quantiles(found, gain - draws, ensemble, None, settings.level)
    ends = {"gain": gain, "low": gain + low, "high": gain + high}
    sizes = np.exp(log_x[:, 0])
    return {"x": sizes.tolist(), **{name: (values / sizes).tolist() for name, values in ends.items()}}


def _gain(law: Law, theta: Floats, x: Floats) -> Floats:
    """-dL/dlog N, by a central difference: [R, M]."""
    step = np.zeros(x.shape[1])
    step[0] = 1e-4
    slope = (law.log_value(theta, x - step) - law.log_value(theta, x + step)) / 2e-4
    return np.asarray(slope * np.exp(law.log_value(theta, x)))


def _extrapolation(found: Fit, settings: Settings, rng: np.random.Generator) -> Entry | None:
    """Fit the runs of smaller sizes, predict every row of the largest: errors beside the in-sample scatter.

    The size is the law's first variable, and whole runs are held out. None if too few remain, or they lie on the law.
    """
    law, sample = found.law, found.sample
    first = sample.log_x[:, 0]
    largest = np.isin(sample.clusters, sample.clusters[first > first.max() - 1e-6])
    kept = _subset(sample, ~largest)
    if not len(kept.log_y) or refusal(law, kept):
        return None
    smaller = fit_sample(law, kept, loss=found.loss)
    kind = band_kind(smaller)
    ensemble = bootstrap(smaller, kind, 2 * FEWEST_REFITS, rng) if kind and not smaller.exact else None
    if smaller.exact or (kind and (ensemble is None or len(ensemble.theta) < FEWEST_REFITS)):
        return None
    run = band(smaller, sample.log_x[largest], ensemble, rng, new_run=True, level=settings.level)
    errors = run.centre - sample.log_y[largest]
    inside = (run.low <= sample.log_y[largest]) & (sample.log_y[largest] <= run.high)
    return {
        "variable": law.variables[0],
        "held_out": float(np.exp(first.max())),
        "n_rows_predicted": int(largest.sum()),
        "n_rows_fitted": len(kept.log_y),
        "error_log": float(errors.mean()),
        "rms_error_log": float(np.sqrt((errors**2).mean())),
        "in_sample_rmse_log": math.sqrt(smaller.sse / len(kept.log_y)),
        "n_inside": int(inside.sum()),
        "inside_interval": bool(inside.all()),
    }


def _without_smallest(found: Fit) -> Entry | None:
    """Exponents without the smallest size: a straight line whose slope moves is no straight line."""
    first = found.sample.log_x[:, 0]
    kept = _subset(found.sample, first > first.min() + 1e-6)
    if not len(kept.log_y) or refusal(found.law, kept):
        return None
    rest = fit_sample(found.law, kept, loss=found.loss)
    return {name: rest.params[name] for name in found.law.exponents} | {"dropped": float(np.exp(first.min()))}


def _subset(sample: Sample, rows: np.ndarray) -> Sample:
    return sample.subset(rows)
