"""Pool exponents in a mixed-effects model: families are draws from a population, exponents are measured with error.

alpha_f = mu + u_f + e_f, u_f ~ N(0, tau^2), e_f ~ N(0, se_f^2). tau^2 is estimated by restricted maximum likelihood; mu
has the interval of Hartung & Knapp (2001), which is accurate for few families. To test tau = 0, use the joint test of
all families (`slm.scaling.compare`). With estimated errors, Cochran's Q rejects a true tau = 0 in 15 to 23% of cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from slm.scaling.forms import Floats


@dataclass(frozen=True)
class Pooled:
    """The population of families: `mean` exponent, its interval, and `tau`, the standard deviation between families."""

    mean: float
    low: float
    high: float
    tau: float
    tau_high: float  # upper end of the one-sided interval of tau, by inverting Q (Viechtbauer 2007)
    q: float  # Cochran's Q
    next_low: float  # prediction interval of the exponent of one more family
    next_high: float
    shrunken: tuple[float, ...]  # the exponent of each family, moved towards the mean


def pool(estimates: Sequence[float], errors: Sequence[float], *, level: float = 0.95) -> Pooled | None:
    """Pool exponents with their standard errors; None for fewer than two families, or if an error is unknown."""
    y, variance = np.asarray(estimates, float), np.asarray(errors, float) ** 2
    k = len(y)
    if k < 2 or not (np.isfinite(variance).all() and (variance > 0).all()):
        return None
    tau2 = _reml_tau2(y, variance)
    w = 1 / (variance + tau2)
    mean = float(w @ y / w.sum())
    error = float(np.sqrt(max(1.0, w @ (y - mean) ** 2 / (k - 1)) / w.sum()))  # at least that of the model itself
    half_width = float(stats.t.ppf(0.5 + level / 2, k - 1)) * error
    next_half_width = float(stats.t.ppf(0.5 + level / 2, max(k - 2, 1)) * np.sqrt(tau2 + error**2))
    shrunken = mean + tau2 / (tau2 + variance) * (y - mean)
    low, high = mean - half_width, mean + half_width
    next_low, next_high = mean - next_half_width, mean + next_half_width
    tau, tau_high, q = float(np.sqrt(tau2)), _tau_high(y, variance, level), _cochran_q(y, variance, 0.0)
    return Pooled(mean, low, high, tau, tau_high, q, next_low, next_high, tuple(shrunken.tolist()))


def _cochran_q(y: Floats, variance: Floats, tau2: float) -> float:
    w = 1 / (variance + tau2)
    return float(w @ (y - w @ y / w.sum()) ** 2)


def _reml_tau2(y: Floats, variance: Floats) -> float:
    def loss(tau2: float) -> float:
        total = variance + tau2
        return float(0.5 * (np.log(total).sum() + np.log((1 / total).sum()) + _cochran_q(y, variance, tau2)))

    # The likelihood may have two peaks if errors differ much, so the local search starts at the best of a grid.
    highest = 4 * float(np.var(y)) + float(variance.max())
    grid = [0.0, *(highest * np.geomspace(1e-8, 1, 200)).tolist()]
    best_index = int(np.argmin([loss(tau2) for tau2 in grid]))
    neighbours = (grid[max(best_index - 1, 0)], grid[min(best_index + 1, len(grid) - 1)])
    refined = optimize.minimize_scalar(loss, bounds=neighbours, method="bounded", options={"xatol": 1e-9 * highest})
    return float(refined.x) if refined.fun < loss(grid[best_index]) else grid[best_index]


def _tau_high(y: Floats, variance: Floats, level: float) -> float:
    """Return the tau for which a Q as low as the observed one has the probability 1 - level."""
    target = float(stats.chi2.ppf(1 - level, len(y) - 1))
    if _cochran_q(y, variance, 0.0) <= target:
        return 0.0
    high = float(np.var(y) + variance.max())
    while _cochran_q(y, variance, high) > target:
        high *= 4
    return float(np.sqrt(optimize.brentq(lambda tau2: _cochran_q(y, variance, tau2) - target, 0, high)))
