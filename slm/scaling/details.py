"""What is worth computing for the fits that a report is about: curves, predictions, gain, extrapolation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from slm.scaling.fitting import Fit, fit_sample, refusal
from slm.scaling.forms import Floats
from slm.scaling.intervals import MOST_FAILED, Uncertainty
from slm.scaling.likelihood import given_entry
from slm.scaling.prediction import band, band_kind, doubling
from slm.scaling.resample import Ensemble, bootstrap
from slm.scaling.sample import Sample
from slm.scaling.settings import Settings

Entry = dict[str, Any]
CURVE_POINTS = 60
BAND_POINTS = 12
"""Points of a curve at which its band is computed; between them it is interpolated."""
FEWEST_REFITS = 100
"""Fewest refits for which a band is drawn."""
MOST_HELD_OUT = 3
"""Most sizes that are held out at once."""
MOST_SIZES = 24
"""Most sizes for which the gain of doubling is computed."""
NEAR_TWO = 1.1
"""Sizes whose ratio is within this factor of 2 count as a doubling that was measured."""


def details(
    found: Fit, of: Uncertainty, settings: Settings, rng: np.random.Generator, middle: Floats, run_sigma: float
) -> Entry:
    """Keys of an entry: profiles, points, curve, predictions, doubling, test, extrapolation, without_smallest.

    `middle` [V] is where log variables other than the first are held, the same for all families; `run_sigma` is the
    scatter of one further run.
    """
    if found.is_exact:
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
        "curve": _curve(found, ensemble, settings, middle, run_sigma) if usable else None,
        **(_predictions(found, ensemble, settings, middle, run_sigma) if usable else {"predictions": []}),
        "doubling": _doubling(found, ensemble, settings, middle) if usable and found.law.variables[0] == "N" else None,
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


def _curve(found: Fit, ensemble: Ensemble | None, settings: Settings, middle: Floats, run_sigma: float) -> Entry:
    """The law along its first variable, its band and the prediction band, a little beyond the data."""
    x = found.sample.log_x[:, 0]
    start, stop = x.min() - 0.3, x.max() + 1.2
    log_x = _along_first(middle, np.linspace(start, stop, CURVE_POINTS))
    centre = found.log_value(log_x)
    held = dict(zip(found.law.variables[1:], np.exp(log_x[0, 1:]).tolist(), strict=True))
    nodes = _along_first(middle, np.linspace(start, stop, BAND_POINTS))
    columns = {"centre": centre}
    law = band(found, nodes, ensemble, level=settings.level)
    for prefix, one in (("", law), ("run_", law.of_run(run_sigma))):
        for name, end in (("low", one.low), ("high", one.high)):
            columns[prefix + name] = centre + _between(nodes[:, 0], end - one.centre, log_x[:, 0])
    return {
        "variable": found.law.variables[0],
        "held": held,
        "x": np.exp(log_x[:, 0]).tolist(),
        **{name: np.exp(values).tolist() for name, values in columns.items()},
    }


def _between(nodes: Floats, reach: Floats, at: Floats) -> Floats:
    """A band's reach between the points at which it is known; NaN everywhere where it is not known at some."""
    return np.asarray(PchipInterpolator(nodes, reach)(at)) if np.isfinite(reach).all() else np.full(len(at), np.nan)


def _predictions(found: Fit, ensemble: Ensemble | None, settings: Settings, middle: Floats, run_sigma: float) -> Entry:
    """The result of one more run at multiples of the largest size, others at their medians, and at stated points.

    `stated` says which a row is, `beyond` of each variable by what factor it is beyond the rows of the fit (1 within),
    `ignored` what a point gives that is no variable of the law; `not_predicted` has the points that lack a variable.
    """
    variables, log_x_IV = found.law.variables, found.sample.log_x
    times = [one for one in settings.predict if not isinstance(one, Mapping)]
    points = [one for one in settings.predict if isinstance(one, Mapping)]
    whole = [point for point in points if set(variables) <= set(point)]
    stated = np.log([[point[v] for v in variables] for point in whole]).reshape(-1, len(variables))
    multiples = _along_first(middle, log_x_IV[:, 0].max() + np.log(np.array(times, float)))
    log_x = np.concatenate([multiples, stated])
    rows = predictions_at(found, log_x, ensemble, run_sigma, settings.level) if len(log_x) else []
    factors = np.exp(np.maximum(0, np.maximum(log_x - log_x_IV.max(axis=0), log_x_IV.min(axis=0) - log_x)))
    for row, beyond, point in zip(rows, factors, [{}] * len(times) + whole, strict=True):
        row["beyond"] = dict(zip(variables, beyond.tolist(), strict=True))
        row["stated"] = bool(point)
        row["ignored"] = [name for name in point if name not in variables]
    lacking = [(point, [v for v in variables if v not in point]) for point in points]
    return {
        "predictions": rows,
        "not_predicted": [{"point": dict(point), "lacks": lacks} for point, lacks in lacking if lacks],
    }


def predictions_at(found: Fit, log_x: Floats, ensemble: Ensemble | None, run_sigma: float, level: float) -> list[Entry]:
    """Predicted result of one more run at each row of log variables [M, V], with its prediction interval."""
    run = band(found, log_x, ensemble, level=level).of_run(run_sigma)
    return [
        {
            **dict(zip(found.law.variables, np.exp(x).tolist(), strict=True)),
            "value": float(np.exp(run.centre[i])),
            "low": float(np.exp(run.low[i])),
            "high": float(np.exp(run.high[i])),
        }
        for i, x in enumerate(log_x)
    ]


def _doubling(found: Fit, ensemble: Ensemble | None, settings: Settings, middle: Floats) -> Entry:
    """What doubling N gains along the law, from each size of the data; beside it what was measured.

    `beyond` says where twice the size lies beyond the data, so that the gain is an extrapolation. `measured` is the
    difference between two sizes of a ratio near 2, in proportion; None without, and for laws of several variables.
    """
    x = _distinct(found.sample.log_x[:, 0])
    chosen = x[np.unique(np.linspace(0, len(x) - 1, MOST_SIZES).round().astype(int))]
    gain = doubling(found, _along_first(middle, chosen), ensemble, level=settings.level)
    return {
        "x": np.exp(chosen).tolist(),
        "gain": gain.centre.tolist(),
        "low": gain.low.tolist(),
        "high": gain.high.tolist(),
        "beyond": (chosen + np.log(2) > x.max() + 0.01).tolist(),
        "measured": [_measured(found.sample, x, at) if len(middle) == 1 else None for at in chosen],
    }


def _measured(sample: Sample, x: Floats, at: float) -> float | None:
    steps = x - at
    other = int(np.abs(steps - np.log(2)).argmin())
    if abs(steps[other] - np.log(2)) > np.log(NEAR_TWO):
        return None
    small, large = (np.exp(sample.log_y[abs(sample.log_x[:, 0] - size) < 1e-6].mean()) for size in (at, x[other]))
    return float((small - large) * np.log(2) / steps[other])


def _distinct(x: Floats) -> Floats:
    """Sizes that differ by more than rounding, the smallest first."""
    x = np.sort(x)
    return x[np.append(True, np.diff(x) > 1e-6)]


def _extrapolation(found: Fit, settings: Settings, rng: np.random.Generator) -> Entry | None:
    """Fit the runs of smaller sizes and predict the larger ones, with the largest held out, the two largest, and so on.

    The size is the law's first variable, and whole runs are held out. The entry is about the largest size alone, its
    errors beside the in-sample scatter; `steps` has every size held out, and the intervals of its rows about what was
    measured. None if too few sizes remain, or they lie on the law.
    """
    law, sample = found.law, found.sample
    first, sizes = sample.log_x[:, 0], _distinct(sample.log_x[:, 0])
    ahead: Entry | None = None
    for count in range(1, min(MOST_HELD_OUT, len(sizes) - 1) + 1):
        cut = sizes[-count] - 1e-6
        held = np.isin(sample.clusters, sample.clusters[first > cut])
        kept = sample.subset(~held)
        if not len(kept.log_y) or refusal(law, kept):
            break
        smaller = fit_sample(law, kept, loss=found.loss)
        kind = band_kind(smaller)
        if smaller.is_exact or (kind and ahead):  # a bootstrap for the largest size alone
            break
        ensemble = bootstrap(smaller, kind, 2 * FEWEST_REFITS, rng) if kind else None
        if kind and (ensemble is None or len(ensemble.theta) < FEWEST_REFITS):
            break
        steps = _steps(smaller, sample.subset(first > cut), sizes, ensemble, settings.level)
        ahead = ahead or {"variable": law.variables[0], **_largest(smaller, steps[0]), "steps": []}
        ahead["steps"] += steps
    return ahead


def _steps(smaller: Fit, held: Sample, sizes: Floats, ensemble: Ensemble | None, level: float) -> list[Entry]:
    """One entry for each size held out: predictions less measured results, in logs, with intervals of one row."""
    points, inverse = np.unique(held.log_x, axis=0, return_inverse=True)
    run = band(smaller, points, ensemble, level=level).of_run(smaller.sigma)
    row = inverse.reshape(-1)
    error, low, high = (end[row] - held.log_y for end in (run.centre, run.low, run.high))
    largest = smaller.sample.log_x[:, 0].max()
    steps = []
    for size in _distinct(held.log_x[:, 0]):
        mine = abs(held.log_x[:, 0] - size) < 1e-6
        steps.append(
            {
                "held_out": float(np.exp(size)),
                "largest_fitted": float(np.exp(largest)),
                "sizes_ahead": int(((sizes > largest + 1e-6) & (sizes < size + 1e-6)).sum()),
                "error_log": float(error[mine].mean()),
                "rms_error_log": float(np.sqrt((error[mine] ** 2).mean())),
                "n_rows": int(mine.sum()),
                "n_inside": int(((low[mine] <= 0) & (high[mine] >= 0)).sum()),
                "errors_log": error[mine].tolist(),
                "low_log": low[mine].tolist(),
                "high_log": high[mine].tolist(),
            }
        )
    return steps


def _largest(smaller: Fit, step: Entry) -> Entry:
    return {
        "held_out": step["held_out"],
        "n_rows_predicted": step["n_rows"],
        "n_rows_fitted": len(smaller.sample.log_y),
        "error_log": step["error_log"],
        "rms_error_log": step["rms_error_log"],
        "in_sample_rmse_log": math.sqrt(smaller.sse / len(smaller.sample.log_y)),
        "n_inside": step["n_inside"],
        "inside_interval": step["n_inside"] == step["n_rows"],
    }


def _without_smallest(found: Fit) -> Entry | None:
    """Exponents without the smallest size: a straight line whose slope moves is no straight line."""
    first = found.sample.log_x[:, 0]
    kept = found.sample.subset(first > first.min() + 1e-6)
    if not len(kept.log_y) or refusal(found.law, kept):
        return None
    rest = fit_sample(found.law, kept, loss=found.loss)
    return {name: rest.params[name] for name in found.law.exponents} | {"dropped": float(np.exp(first.min()))}
