"""Curves, predictions, the gain of doubling N, and extrapolation, for the fits on which the verdict may rest."""

import math
from collections.abc import Mapping

import numpy as np
from scipy.interpolate import PchipInterpolator

from slm.scaling.clusters import Ensemble, bootstrap
from slm.scaling.fitting import Fit, fit_sample, refusal
from slm.scaling.forms import Floats
from slm.scaling.intervals import MAX_FAILED, Uncertainty
from slm.scaling.likelihood import Entry, parameter_test
from slm.scaling.prediction import Band, Doubling, band, bands, needed_bootstrap
from slm.scaling.sample import Sample
from slm.scaling.settings import Settings

CURVE_POINTS = 60
BAND_POINTS = 12  # points of a curve at which its band is computed; between them the band is interpolated
MIN_REFITS = 100  # fewest refits for which a band is drawn
MAX_HELD_OUT = 3  # largest number of sizes that an extrapolation holds out
MAX_DOUBLING_SIZES = 24  # largest number of sizes at which the gain of doubling is computed
DOUBLING_TOLERANCE = 1.1  # two sizes count as a doubling if their ratio is between 2 / 1.1 and 2 * 1.1
SAME_LOG_SIZE = 1e-6  # log sizes that differ by less than this count as the same size


def compute_details(
    fit: Fit, uncertainty: Uncertainty, settings: Settings, rng: np.random.Generator, medians: Floats, run_sigma: float
) -> Entry:
    """Return keys of an entry: profiles, points, curve, predictions, doubling, test, extrapolation, without_smallest.

    The curves of all families vary the first variable and hold the others at `medians` [variables], the medians of the
    log variables in the whole table. `run_sigma` is the standard deviation of a new run's log loss around the law.
    """
    points = dict(zip(fit.law.variables, np.exp(fit.sample.log_x.T).tolist(), strict=True))
    points |= {"value": fit.law.from_scale(fit.sample.log_y).tolist(), "residual": fit.residuals.tolist()}
    if fit.is_exact:
        return {"points": points}
    ensemble = band_ensemble(fit, uncertainty, settings, rng)
    entry: Entry = {"points": points, "curve": None, "predictions": [], "doubling": None}
    can_draw_band = needed_bootstrap(fit) is None or ensemble is not None  # no refits are needed, or enough succeeded
    if can_draw_band:
        log_sizes = fit.sample.log_x[:, 0]  # the curve reaches beyond these
        log_x = _vary_first(medians, np.linspace(log_sizes.min() - 0.3, log_sizes.max() + 1.2, CURVE_POINTS))
        predicted, point_of_row = _predicted(fit, settings, medians)
        nodes = _vary_first(medians, np.linspace(log_x[0, 0], log_x[-1, 0], BAND_POINTS))
        of_curve, of_predictions = bands(fit, [nodes, predicted], ensemble, level=settings.level)
        entry["curve"] = _curve(fit, log_x, nodes[:, 0], of_curve, run_sigma)
        entry |= _predictions(fit, settings, predicted, point_of_row, of_predictions.for_run(run_sigma))
        if fit.law.variables[0] == "N":
            entry["doubling"] = _doubling(fit, ensemble, settings, medians)
    profiles = {name: profile for name, profile in uncertainty.profiles.items() if name in fit.law.exponents}
    return entry | {
        "profiles": {name: {"values": p.values.tolist(), "t": p.t.tolist()} for name, p in profiles.items()},
        "test": parameter_test(fit, settings.test),
        "extrapolation": _extrapolation(fit, settings, rng),
        "without_smallest": _without_smallest(fit),
    }


def band_ensemble(fit: Fit, uncertainty: Uncertainty, settings: Settings, rng: np.random.Generator) -> Ensemble | None:
    """Return the bootstrap refits for bands of this fit; None if bands need no refits, or too many refits failed."""
    kind = needed_bootstrap(fit)
    if kind is None or fit.degrees_of_freedom < 1:
        return None
    ensemble = uncertainty.ensembles.get(kind) or bootstrap(fit, kind, max(settings.bootstrap, MIN_REFITS * 2), rng)
    return ensemble if len(ensemble.theta) >= MIN_REFITS and ensemble.failed <= MAX_FAILED else None


def _vary_first(medians: Floats, first: Floats) -> Floats:
    """Return log variables [points, variables]: the first column is `first`, the other columns are `medians`."""
    log_x = np.repeat(medians[None], len(first), axis=0)
    log_x[:, 0] = first
    return log_x


def _curve(fit: Fit, log_x: Floats, nodes: Floats, law_band: Band, run_sigma: float) -> Entry:
    """Compute the law's curve, its confidence band (`low`, `high`) and a new run's prediction band (`run_low`, ...).

    `law_band` is the band at the log sizes `nodes`, between which it is interpolated.
    """
    columns = {"centre": fit.log_value(log_x)}
    for prefix, limits in (("", law_band), ("run_", law_band.for_run(run_sigma))):
        for name, limit in (("low", limits.low), ("high", limits.high)):
            columns[prefix + name] = np.full(CURVE_POINTS, np.nan)
            offset = limit - limits.centre
            if np.isfinite(offset).all():
                columns[prefix + name] = columns["centre"] + PchipInterpolator(nodes, offset)(log_x[:, 0])
    return {
        "variable": fit.law.variables[0],
        "held": dict(zip(fit.law.variables[1:], np.exp(log_x[0, 1:]).tolist(), strict=True)),
        "x": np.exp(log_x[:, 0]).tolist(),
        **{name: fit.law.from_scale(values).tolist() for name, values in columns.items()},
    }


def _predicted(fit: Fit, settings: Settings, medians: Floats) -> tuple[Floats, list[dict[str, float]]]:
    """Return log variables [points, variables] to predict at, and the user's point of each row ({} for a multiple).

    These are multiples of the largest size (other variables at medians), and the user's points with all variables.
    """
    variables = fit.law.variables
    factors = [item for item in settings.predict if not isinstance(item, Mapping)]
    points = [dict(item) for item in settings.predict if isinstance(item, Mapping) and set(variables) <= set(item)]
    log_points = np.log([[point[v] for v in variables] for point in points]).reshape(-1, len(variables))
    log_multiples = _vary_first(medians, fit.sample.log_x[:, 0].max() + np.log(np.array(factors, float)))
    return np.concatenate([log_multiples, log_points]), [{}] * len(factors) + points


def _predictions(
    fit: Fit, settings: Settings, log_x: Floats, point_of_row: list[dict[str, float]], interval: Band
) -> Entry:
    """Predict a new run at the points of `_predicted`, where it has this prediction interval.

    In each row of `predictions`, `stated` is true for the user's points, false for multiples; `beyond` has the factor
    by which each variable is outside the fitted rows (1 if it is inside); `ignored` has the keys of a user's point that
    are not variables of the law. `not_predicted` has the user's points that lack a variable of the law.
    """
    variables = fit.law.variables
    low, high = fit.sample.log_x.min(axis=0), fit.sample.log_x.max(axis=0)
    rows = _prediction_rows(fit, log_x, interval)
    beyond = np.exp(np.maximum(0, np.maximum(log_x - high, low - log_x))).tolist()
    for row, ratios, point in zip(rows, beyond, point_of_row, strict=True):
        row["beyond"] = dict(zip(variables, ratios, strict=True))
        row |= {"stated": bool(point), "ignored": [name for name in point if name not in variables]}
    not_predicted = []
    for point in (dict(item) for item in settings.predict if isinstance(item, Mapping)):
        if missing := [variable for variable in variables if variable not in point]:
            not_predicted.append({"point": point, "lacks": missing})
    return {"predictions": rows, "not_predicted": not_predicted}


def predictions_at(fit: Fit, log_x: Floats, ensemble: Ensemble | None, run_sigma: float, level: float) -> list[Entry]:
    """Predict the result of a new run at log variables [points, variables], with a prediction interval."""
    return _prediction_rows(fit, log_x, band(fit, log_x, ensemble, level=level).for_run(run_sigma))


def _prediction_rows(fit: Fit, log_x: Floats, interval: Band) -> list[Entry]:
    values = fit.law.from_scale(np.column_stack([interval.centre, interval.low, interval.high]))
    rows = np.column_stack([np.exp(log_x), values]).tolist()
    return [dict(zip((*fit.law.variables, "value", "low", "high"), row, strict=True)) for row in rows]


def _doubling(fit: Fit, ensemble: Ensemble | None, settings: Settings, medians: Floats) -> Entry:
    """Compute how much doubling N lowers the loss at each measured size: according to the law, and as measured.

    `beyond` is true if twice the size is above all measured sizes: there the law's gain is an extrapolation. `measured`
    is the decrease from the mean loss at this size to the mean loss at a size about twice as large, rescaled to an
    exact doubling. `measured` is None if no size is about twice as large, and for laws of several variables.
    """
    log_size_of_row = fit.sample.log_x[:, 0]
    log_sizes = _distinct(log_size_of_row)
    means = [fit.sample.log_y[abs(log_size_of_row - size) < SAME_LOG_SIZE].mean() for size in log_sizes]
    indices = np.unique(np.linspace(0, len(log_sizes) - 1, MAX_DOUBLING_SIZES).round().astype(int))
    chosen_sizes = log_sizes[indices]
    gain = band(fit, _vary_first(medians, chosen_sizes), ensemble, level=settings.level, curve=Doubling(fit.law))
    measured: list[float | None] = [None] * len(indices)
    if len(fit.law.variables) == 1:
        measured = [_measured_gain(log_sizes, fit.law.from_scale(np.array(means)), index) for index in indices]
    return {
        "x": np.exp(chosen_sizes).tolist(),
        "gain": gain.centre.tolist(),
        "low": gain.low.tolist(),
        "high": gain.high.tolist(),
        "beyond": (chosen_sizes + np.log(2) > log_sizes.max() + 0.01).tolist(),
        "measured": measured,
    }


def _measured_gain(log_sizes: Floats, losses: Floats, index: int) -> float | None:
    log_ratios = log_sizes - log_sizes[index]
    index_of_double = abs(log_ratios - np.log(2)).argmin()
    if abs(log_ratios[index_of_double] - np.log(2)) > np.log(DOUBLING_TOLERANCE):
        return None
    return float((losses[index] - losses[index_of_double]) * np.log(2) / log_ratios[index_of_double])


def _distinct(x: Floats) -> Floats:
    """Return the distinct log sizes in rising order. Sizes that differ only by rounding count as one."""
    x = np.sort(x)
    is_new = np.append(True, np.diff(x) > SAME_LOG_SIZE)
    return x[is_new]


def _extrapolation(fit: Fit, settings: Settings, rng: np.random.Generator) -> Entry | None:
    """Hold out the largest size, then the two largest, and so on; fit the smaller sizes and predict the larger ones.

    The size is the law's first variable. A run with any row at a held-out size is left out of the fit. `steps` has one
    item per fit and held-out size; other keys are about the first fit. None if the first fit is exact or impossible.
    """
    sample, log_size_of_row = fit.sample, fit.sample.log_x[:, 0]
    log_sizes = _distinct(log_size_of_row)
    fits: list[Fit] = []
    steps: list[Entry] = []
    for num_held_out in range(1, min(MAX_HELD_OUT, len(log_sizes) - 1) + 1):
        is_held_out = log_size_of_row > log_sizes[-num_held_out] - SAME_LOG_SIZE
        kept_sample = sample.subset(~np.isin(sample.clusters, sample.clusters[is_held_out]))
        if not len(kept_sample.log_y) or refusal(fit.law, kept_sample):
            break
        smaller_fit = fit_sample(fit.law, kept_sample, loss=fit.loss)
        kind = needed_bootstrap(smaller_fit)
        if smaller_fit.is_exact or (kind is not None and fits):  # bootstraps are slow: only the first fit gets one
            break
        ensemble = bootstrap(smaller_fit, kind, 2 * MIN_REFITS, rng) if kind else None
        if ensemble is not None and len(ensemble.theta) < MIN_REFITS:
            break
        fits.append(smaller_fit)
        steps += _steps(smaller_fit, sample.subset(is_held_out), log_sizes, ensemble, settings.level)
    if not fits:
        return None
    return {
        "variable": fit.law.variables[0],
        **{key: steps[0][key] for key in ("held_out", "error_log", "rms_error_log", "n_inside")},
        "n_rows_predicted": steps[0]["n_rows"],
        "n_rows_fitted": len(fits[0].sample.log_y),
        "in_sample_rmse_log": math.sqrt(fits[0].sse / len(fits[0].sample.log_y)),
        "inside_interval": steps[0]["n_inside"] == steps[0]["n_rows"],
        "steps": steps,
    }


def _steps(fit: Fit, held_out: Sample, log_sizes: Floats, ensemble: Ensemble | None, level: float) -> list[Entry]:
    """Return one entry per held-out size: for each row, the error of `fit` in log loss and the prediction interval."""
    points, inverse = np.unique(held_out.log_x, axis=0, return_inverse=True)
    point_of_row = inverse.reshape(-1)
    interval = band(fit, points, ensemble, level=level).for_run(fit.sigma)
    # The ends of the interval, too, are relative to the measured value.
    ends = (interval.centre, interval.low, interval.high)
    errors, low_errors, high_errors = (fit.law.difference(end[point_of_row], held_out.log_y) for end in ends)
    largest = fit.sample.log_x[:, 0].max()
    steps = []
    for size in _distinct(held_out.log_x[:, 0]):
        is_at_size = abs(held_out.log_x[:, 0] - size) < SAME_LOG_SIZE
        error, low, high = errors[is_at_size], low_errors[is_at_size], high_errors[is_at_size]
        num_ahead = int(((log_sizes > largest + SAME_LOG_SIZE) & (log_sizes < size + SAME_LOG_SIZE)).sum())
        step = {"held_out": float(np.exp(size)), "largest_fitted": float(np.exp(largest)), "sizes_ahead": num_ahead}
        step |= {"error_log": float(error.mean()), "rms_error_log": float(np.sqrt((error**2).mean()))}
        step |= {"n_rows": len(error), "n_inside": int(((low <= 0) & (high >= 0)).sum())}
        steps.append(step | {"errors_log": error.tolist(), "low_log": low.tolist(), "high_log": high.tolist()})
    return steps


def _without_smallest(fit: Fit) -> Entry | None:
    """Return the exponents of a fit without the smallest size. They change if the law has the wrong curvature."""
    log_size = fit.sample.log_x[:, 0]
    kept = fit.sample.subset(log_size > log_size.min() + SAME_LOG_SIZE)
    if not len(kept.log_y) or refusal(fit.law, kept):
        return None
    refit = fit_sample(fit.law, kept, loss=fit.loss)
    return {name: refit.params[name] for name in fit.law.exponents} | {"dropped": float(np.exp(log_size.min()))}
