"""Results computed only for fits that the verdict may rest on: curves, predictions, doubling, extrapolation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.interpolate import PchipInterpolator

from slm.scaling.clusters import Ensemble, bootstrap
from slm.scaling.fitting import Fit, fit_sample, refusal
from slm.scaling.forms import Floats
from slm.scaling.intervals import MAX_FAILED, Uncertainty
from slm.scaling.likelihood import Entry, parameter_test
from slm.scaling.prediction import Doubling, band, band_kind
from slm.scaling.sample import Sample
from slm.scaling.settings import Settings

CURVE_POINTS = 60
BAND_POINTS = 12
"""Points of a curve at which its band is computed; between them it is interpolated."""
MIN_REFITS = 100
"""Fewest refits for which a band is drawn."""
MAX_HELD_OUT = 3
"""Most sizes that are held out at once."""
MAX_DOUBLING_SIZES = 24
"""Most sizes for which the gain of doubling is computed."""
DOUBLING_TOLERANCE = 1.1
"""Two sizes are a measured doubling if their ratio is within this factor of 2."""
SAME_LOG_SIZE = 1e-6
"""Log sizes that differ by less than this are one size."""


def compute_details(
    fit: Fit, uncertainty: Uncertainty, settings: Settings, rng: np.random.Generator, medians: Floats, run_sigma: float
) -> Entry:
    """Keys of an entry: profiles, points, curve, predictions, doubling, test, extrapolation, without_smallest.

    `medians` [V] are those of the log variables in the whole table: a curve varies the first variable and holds the
    others there, for all families alike. `run_sigma` is the scatter of one further run in log loss.
    """
    columns = np.exp([*fit.sample.log_x.T, fit.sample.log_y]).tolist()
    points = dict(zip((*fit.law.variables, "value"), columns, strict=True)) | {"residual": fit.residuals.tolist()}
    if fit.is_exact:
        return {"points": points}
    ensemble = band_ensemble(fit, uncertainty, settings, rng)
    entry: Entry = {"points": points, "curve": None, "predictions": [], "doubling": None}
    if ensemble is not None or band_kind(fit) is None:  # a band can be computed
        entry["curve"] = _curve(fit, ensemble, settings, medians, run_sigma)
        entry |= _predictions(fit, ensemble, settings, medians, run_sigma)
        entry["doubling"] = _doubling(fit, ensemble, settings, medians) if fit.law.variables[0] == "N" else None
    return entry | {
        "profiles": {
            name: {"values": profile.values.tolist(), "t": profile.t.tolist()}
            for name, profile in uncertainty.profiles.items()
            if name in fit.law.exponents
        },
        "test": parameter_test(fit, settings.test),
        "extrapolation": _extrapolation(fit, settings, rng),
        "without_smallest": _without_smallest(fit),
    }


def band_ensemble(fit: Fit, uncertainty: Uncertainty, settings: Settings, rng: np.random.Generator) -> Ensemble | None:
    """The bootstrap refits that bands need; None if they need none (`band_kind`), or if too many refits failed."""
    kind = band_kind(fit)
    if kind is None or fit.degrees_of_freedom < 1:
        return None
    ensemble = uncertainty.ensembles.get(kind) or bootstrap(fit, kind, max(settings.bootstrap, MIN_REFITS * 2), rng)
    return ensemble if len(ensemble.theta) >= MIN_REFITS and ensemble.failed <= MAX_FAILED else None


def _vary_first(medians: Floats, first: Floats) -> Floats:
    """Log variables [M, V]: the first takes the log values `first`, the others stay at their medians."""
    log_x = np.repeat(medians[None], len(first), axis=0)
    log_x[:, 0] = first
    return log_x


def _curve(fit: Fit, ensemble: Ensemble | None, settings: Settings, medians: Floats, run_sigma: float) -> Entry:
    """The law along its first variable, its band and the prediction band, a little beyond the data."""
    x = fit.sample.log_x[:, 0]
    ends = x.min() - 0.3, x.max() + 1.2
    log_x, nodes = (_vary_first(medians, np.linspace(*ends, count)) for count in (CURVE_POINTS, BAND_POINTS))
    columns = {"centre": fit.log_value(log_x)}
    law = band(fit, nodes, ensemble, level=settings.level)
    for prefix, limits in (("", law), ("run_", law.for_run(run_sigma))):
        for name, limit in (("low", limits.low), ("high", limits.high)):
            offset = limit - limits.centre
            has_limit = np.isfinite(offset).all()  # at every node
            offset_x = PchipInterpolator(nodes[:, 0], offset)(log_x[:, 0]) if has_limit else np.nan
            columns[prefix + name] = columns["centre"] + offset_x
    return {
        "variable": fit.law.variables[0],
        "held": dict(zip(fit.law.variables[1:], np.exp(log_x[0, 1:]).tolist(), strict=True)),
        "x": np.exp(log_x[:, 0]).tolist(),
        **{name: np.exp(values).tolist() for name, values in columns.items()},
    }


def _predictions(fit: Fit, ensemble: Ensemble | None, settings: Settings, medians: Floats, run_sigma: float) -> Entry:
    """Predict one more run at multiples of the largest size (other variables at their medians), and at given points.

    In each row, `beyond` is the factor by which each variable is outside the fitted rows (1 inside), `stated` is true
    for a given point, and `ignored` names its keys that are not variables of the law. `not_predicted` has the given
    points that lack a variable of the law.
    """
    variables, low, high = fit.law.variables, fit.sample.log_x.min(axis=0), fit.sample.log_x.max(axis=0)
    factors = [factor for factor in settings.predict if not isinstance(factor, Mapping)]
    points = [dict(point) for point in settings.predict if isinstance(point, Mapping)]
    usable = [point for point in points if {*variables} <= {*point}]
    given = np.log([[point[v] for v in variables] for point in usable]).reshape(-1, len(variables))
    log_x = np.concatenate([_vary_first(medians, high[0] + np.log(np.array(factors, float))), given])
    rows = predictions_at(fit, log_x, ensemble, run_sigma, settings.level) if len(log_x) else []
    beyond = np.exp(np.maximum(0, np.maximum(log_x - high, low - log_x))).tolist()
    for row, ratios, point in zip(rows, beyond, [{}] * len(factors) + usable, strict=True):
        row["beyond"] = dict(zip(variables, ratios, strict=True))
        row |= {"stated": bool(point), "ignored": [name for name in point if name not in variables]}
    lacks = [[variable for variable in variables if variable not in point] for point in points]
    not_predicted = [{"point": point, "lacks": names} for point, names in zip(points, lacks, strict=True) if names]
    return {"predictions": rows, "not_predicted": not_predicted}


def predictions_at(fit: Fit, log_x: Floats, ensemble: Ensemble | None, run_sigma: float, level: float) -> list[Entry]:
    """Predicted result of one more run at each row of log variables [M, V], with its prediction interval."""
    run = band(fit, log_x, ensemble, level=level).for_run(run_sigma)
    columns = np.exp(np.column_stack([log_x, run.centre, run.low, run.high])).tolist()
    return [dict(zip((*fit.law.variables, "value", "low", "high"), row, strict=True)) for row in columns]


def _doubling(fit: Fit, ensemble: Ensemble | None, settings: Settings, medians: Floats) -> Entry:
    """The decrease in loss from doubling N at each size of the data: by the law, and as measured.

    `beyond` marks sizes whose double lies beyond the data, so that the gain is an extrapolation. `measured` is the
    difference between the runs of this size and of one about twice as large, scaled to a factor of 2. It is None if
    there is no such size, and for laws of several variables.
    """
    x = _distinct(fit.sample.log_x[:, 0])
    chosen = x[np.unique(np.linspace(0, len(x) - 1, MAX_DOUBLING_SIZES).round().astype(int))]
    log_x, gain_law = _vary_first(medians, chosen), Doubling(fit.law)
    gain = band(fit, log_x, ensemble, level=settings.level, curve=gain_law)
    return {
        "x": np.exp(chosen).tolist(),
        "gain": gain.centre.tolist(),
        "low": gain.low.tolist(),
        "high": gain.high.tolist(),
        "beyond": (chosen + np.log(2) > x.max() + 0.01).tolist(),
        "measured": [_measured_gain(fit.sample, x, size) if len(fit.law.variables) == 1 else None for size in chosen],
    }


def _measured_gain(sample: Sample, log_sizes: Floats, log_size: float) -> float | None:
    log_ratios = log_sizes - log_size
    double = abs(log_ratios - np.log(2)).argmin()
    if abs(log_ratios[double] - np.log(2)) > np.log(DOUBLING_TOLERANCE):
        return None
    rows = (abs(sample.log_x[:, 0] - size) < SAME_LOG_SIZE for size in (log_size, log_sizes[double]))
    small, large = (np.exp(sample.log_y[is_size].mean()) for is_size in rows)
    return float((small - large) * np.log(2) / log_ratios[double])


def _distinct(x: Floats) -> Floats:
    """Log sizes that differ by more than rounding, the smallest first."""
    x = np.sort(x)
    return x[np.append(True, np.diff(x) > SAME_LOG_SIZE)]


def _extrapolation(fit: Fit, settings: Settings, rng: np.random.Generator) -> Entry | None:
    """Fit the runs of smaller sizes and predict the larger ones, with the largest held out, the two largest, and so on.

    The size is the law's first variable, and whole runs are held out. The entry is about the largest size alone;
    `steps` has every size held out. None if too few sizes remain, or the fit to them is exact.
    """
    sample, first, sizes = fit.sample, fit.sample.log_x[:, 0], _distinct(fit.sample.log_x[:, 0])
    steps: list[Entry] = []
    entry: Entry = {}
    for count in range(1, min(MAX_HELD_OUT, len(sizes) - 1) + 1):
        is_held_out = first > sizes[-count] - SAME_LOG_SIZE
        kept = sample.subset(~np.isin(sample.clusters, sample.clusters[is_held_out]))
        if not len(kept.log_y) or refusal(fit.law, kept):
            break
        smaller = fit_sample(fit.law, kept, loss=fit.loss)
        kind = band_kind(smaller)
        if smaller.is_exact or (kind and steps):  # bootstraps are slow: only the first fit gets one
            break
        ensemble = bootstrap(smaller, kind, 2 * MIN_REFITS, rng) if kind else None
        if kind and (ensemble is None or len(ensemble.theta) < MIN_REFITS):
            break
        steps += _steps(smaller, sample.subset(is_held_out), sizes, ensemble, settings.level)
        entry = entry or {
            "variable": fit.law.variables[0],
            **{key: steps[0][key] for key in ("held_out", "error_log", "rms_error_log", "n_inside")},
            "n_rows_predicted": steps[0]["n_rows"],
            "n_rows_fitted": len(kept.log_y),
            "in_sample_rmse_log": math.sqrt(smaller.sse / len(kept.log_y)),
            "inside_interval": steps[0]["n_inside"] == steps[0]["n_rows"],
            "steps": steps,
        }
    return entry or None


def _steps(smaller: Fit, held_out: Sample, sizes: Floats, ensemble: Ensemble | None, level: float) -> list[Entry]:
    """One entry per held-out size: errors in log loss (predicted - measured), prediction intervals of single rows."""
    points, inverse = np.unique(held_out.log_x, axis=0, return_inverse=True)
    run = band(smaller, points, ensemble, level=level).for_run(smaller.sigma)
    limits = run.centre, run.low, run.high
    errors, lows, highs = (limit[inverse.reshape(-1)] - held_out.log_y for limit in limits)
    largest = smaller.sample.log_x[:, 0].max()
    steps = []
    for size in _distinct(held_out.log_x[:, 0]):
        rows = abs(held_out.log_x[:, 0] - size) < SAME_LOG_SIZE
        error, low, high = errors[rows], lows[rows], highs[rows]
        ahead = int(((sizes > largest + SAME_LOG_SIZE) & (sizes < size + SAME_LOG_SIZE)).sum())
        step = {"held_out": float(np.exp(size)), "largest_fitted": float(np.exp(largest)), "sizes_ahead": ahead}
        step |= {"error_log": float(error.mean()), "rms_error_log": float(np.sqrt((error**2).mean()))}
        step |= {"n_rows": len(error), "n_inside": int(((low <= 0) & (high >= 0)).sum())}
        steps.append(step | {"errors_log": error.tolist(), "low_log": low.tolist(), "high_log": high.tolist()})
    return steps


def _without_smallest(fit: Fit) -> Entry | None:
    """Exponents of a fit without the smallest size: they change if the law's curvature is not that of the data."""
    first = fit.sample.log_x[:, 0]
    kept = fit.sample.subset(first > first.min() + SAME_LOG_SIZE)
    if not len(kept.log_y) or refusal(fit.law, kept):
        return None
    rest = fit_sample(fit.law, kept, loss=fit.loss)
    return {name: rest.params[name] for name in fit.law.exponents} | {"dropped": float(np.exp(first.min()))}
