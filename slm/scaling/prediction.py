"""Bands of a fitted law, and prediction intervals for runs that were not made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.intervals import has_likelihood
from slm.scaling.resample import Ensemble, Kind
from slm.scaling.starts import is_linear


@dataclass(frozen=True)
class Band:
    """Log target at each asked point [M]: estimate and interval."""

    centre: Floats
    low: Floats
    high: Floats


def band(
    found: Fit,
    log_x: Floats,
    ensemble: Ensemble | None,
    rng: np.random.Generator,
    *,
    new_run: bool = False,
    level: float = 0.95,
) -> Band:
    """Interval of log L at log variables [M, V]: of the law itself, or with `new_run` of one more run's result.

    Linear laws with independent rows, least squares: Student's t, exact. Other laws: studentised parametric bootstrap,
    quantiles of (law - refitted law [+ noise]) / refitted sigma, which for a linear law has just that t distribution.
    Rows that share runs, or Huber's loss: t on the spread of the cluster bootstrap. `ensemble` is
    `bootstrap(found, band_kind(found), ...)`; raises `ValueError` if there is none where one is needed.
    """
    centre = found.log_value(log_x)
    if found.degrees_of_freedom < 1:
        return Band(centre, np.full_like(centre, np.nan), np.full_like(centre, np.nan))
    if band_kind(found) is None:
        reach = stats.t.ppf(0.5 + level / 2, found.degrees_of_freedom) * _linear_error(found, log_x, new_run)
        return Band(centre, centre - reach, centre + reach)
    if ensemble is None:
        raise ValueError("the band of this fit needs a bootstrap: see band_kind")
    error = centre - found.law.log_value(ensemble.theta, log_x - found.sample.refs)
    low, high = error_quantiles(found, error, ensemble, rng if new_run else None, level)
    return Band(centre, centre + low, centre + high)


def band_kind(found: Fit) -> Kind | None:
    """Which bootstrap a band of this fit rests on; None if it needs none."""
    if not has_likelihood(found):
        return "cluster"
    return None if is_linear(found.law) else "parametric"


def error_quantiles(
    found: Fit, error: Floats, ensemble: Ensemble, noise: np.random.Generator | None, level: float
) -> tuple[Floats, Floats]:
    """Lower and upper end [M], about the estimate, of a quantity that is off by `error` [B, M] in the refits.

    `noise` adds the scatter of one more run.
    """
    if ensemble.kind == "parametric":
        scatter = 0.0 if noise is None else found.sigma * noise.standard_normal((len(error), 1))
        ends = np.quantile((error + scatter) / ensemble.sigma[:, None], [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return found.sigma * ends[0], found.sigma * ends[1]
    groups = len(np.unique(found.sample.clusters))
    df = max(groups - len(found.theta), 1)
    variance = error.var(axis=0, ddof=1) * groups / df + (0.0 if noise is None else found.sigma**2)
    reach = stats.t.ppf(0.5 + level / 2, df) * np.sqrt(variance)
    return -reach, reach


def _linear_error(found: Fit, log_x: Floats, new_run: bool) -> Floats:
    gradient = found.law.derivatives(found.theta[None], log_x - found.sample.refs)[1][0]
    variance = np.einsum("pm,pq,qm->m", gradient, found.covariance, gradient)
    return np.sqrt(variance + new_run * found.sigma**2)
