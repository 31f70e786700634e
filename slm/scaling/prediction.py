"""Bands of a fitted law, and prediction intervals for runs that were not made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.laws import Floats
from slm.scaling.resample import Ensemble
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

    Linear laws: Student's t, exact. Others: studentised parametric bootstrap, quantiles of
    (law - refitted law [+ noise]) / refitted sigma, which for a linear law has just that t distribution.
    `ensemble` is `bootstrap(found, "parametric", ...)`; linear laws need none.
    """
    centre = found.log_value(log_x)
    if found.degrees_of_freedom < 1:
        return Band(centre, np.full_like(centre, np.nan), np.full_like(centre, np.nan))
    if is_linear(found.law):
        reach = stats.t.ppf(0.5 + level / 2, found.degrees_of_freedom) * _linear_error(found, log_x, new_run)
        return Band(centre, centre - reach, centre + reach)
    if ensemble is None:
        raise ValueError("the band of a law that is not linear needs a parametric bootstrap")
    refitted = found.law.log_value(ensemble.theta, log_x - found.sample.refs)
    error = centre - refitted
    if new_run:
        error = error + found.sigma * rng.standard_normal((len(error), 1))
    low, high = np.quantile(error / ensemble.sigma[:, None], [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return Band(centre, centre + found.sigma * low, centre + found.sigma * high)


def _linear_error(found: Fit, log_x: Floats, new_run: bool) -> Floats:
    gradient = found.law.derivatives(found.theta[None], log_x - found.sample.refs)[1][0]
    variance = np.einsum("mp,pq,mq->m", gradient, found.covariance, gradient)
    return np.sqrt(variance + new_run * found.sigma**2)
