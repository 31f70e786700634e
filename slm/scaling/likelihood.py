"""Likelihoods of fits: information criteria, and the test of parameters that somebody else published on these rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from slm.scaling.fitting import Fit, held_block
from slm.scaling.forms import Floats
from slm.scaling.solver import FINE, Loss, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts

Entry = dict[str, Any]


class Criteria(NamedTuple):
    """Information criteria; NaN where they are undefined."""

    aicc: float
    bic: float
    aic: float
    parameters: int


def information_criteria(deviance: float, rows: int, parameters: int) -> Criteria:
    """AICc, BIC and AIC of a model with this -2 log likelihood (Burnham & Anderson 2002, section 7.4)."""
    n, k = rows, parameters
    aic = deviance + 2 * k
    aicc = aic + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.nan
    return Criteria(float(aicc), float(deviance + k * np.log(n)), aic, k)


def criteria(fits: Sequence[Fit]) -> Criteria:
    """Information criteria of one law fitted to one or more samples, with one scatter for all.

    They compare laws on the same rows and target, by the likelihood of the loss that was minimised (see `deviance`).
    The scatter counts as a parameter, and so does the correlation of rows that belong together.
    """
    n = sum(len(fit.sample.log_y) for fit in fits)
    k = sum(len(fit.theta) for fit in fits) + 1 + (not all(fit.sample.is_independent for fit in fits))
    return information_criteria(deviance(fits), n, k)


def deviance(fits: Sequence[Fit]) -> float:
    """-2 log likelihood of the residuals at the best scatter, the same for all fits; NaN without scatter.

    Least squares: Gaussian, rows of one cluster equally correlated. Huber's loss: the density proportional to
    exp(-loss / scale), whose flat tails Laplace's also has; where rows share clusters, scaled down to the number of
    independent rows that their correlation leaves.
    """
    loss = fits[0].loss
    residuals = np.concatenate([loss.residuals(fit.residuals, fit.sample.log_y) for fit in fits])
    n = len(residuals)
    if not (residuals**2).sum() > 0:
        return np.nan
    # Clusters of different fits are different clusters.
    labels = [[family, cluster] for family, fit in enumerate(fits) for cluster in fit.sample.clusters]
    groups = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    sums, counts = np.bincount(groups, residuals), np.bincount(groups)

    def correlated(rho: float) -> float:
        """Gaussian, with correlation rho within clusters: eigenvalues 1 - rho and 1 + (m - 1) rho of each block."""
        wide = 1 + (counts - 1) * rho
        within = (residuals**2).sum() - (sums**2 / counts).sum()
        variance = (within / (1 - rho) + (sums**2 / counts / wide).sum()) / n
        logs = ((counts - 1) * np.log(1 - rho) + np.log(wide)).sum()
        return float(n * (np.log(2 * np.pi * variance) + 1) + logs)

    is_independent = len(counts) == n
    rho = 0.0 if is_independent else optimize.minimize_scalar(correlated, bounds=(0, 0.999), method="bounded").x
    if np.isinf(loss.delta):
        return correlated(rho)
    return huber_deviance(residuals, loss) / (1 + float((counts**2).sum() / n - 1) * rho)


def huber_deviance(residuals: Floats, loss: Loss) -> float:
    """-2 log likelihood of the density proportional to exp(-loss / scale), at the best scale."""
    total, delta = float(loss.value(residuals).sum()), loss.delta

    def at(log_scale: float) -> float:
        scale = np.exp(log_scale)
        middle = np.sqrt(2 * np.pi * scale) * (2 * stats.norm.cdf(delta / np.sqrt(scale)) - 1)
        tails = 2 * scale / delta * np.exp(-(delta**2) / (2 * scale))
        return float(2 * len(residuals) * np.log(middle + tails) + 2 * total / scale)

    guess = np.log(total / len(residuals))
    return float(optimize.minimize_scalar(at, bracket=(guess - 1, guess + 1)).fun)


def given_entry(fit: Fit, given: Mapping[str, float]) -> Entry | None:
    """The best fit that has the parameters `given`, and its test; None where the law lacks one of them.

    statistic: twice the difference of the largest log likelihoods, that of the free fit less that with the parameters
    held. Least squares: n log(SSE_0 / SSE_1), with the p of F (exact for laws that are straight in logs, as close as
    profile intervals for others). Huber's loss: residuals have the density proportional to exp(-loss / s), with the
    best scale s in both, and p is that of chi-squared. Rows count as independent; where they are not (`independent`),
    p is too small. `refused` says why there is no test.
    """
    if not given or not set(given) <= set(fit.law.parameters):
        return None
    spare, n = fit.degrees_of_freedom, len(fit.sample.log_y)
    head = {"given": dict(given), "df": len(given), "refused": None}
    if fit.is_exact or spare < 1:
        return head | {"refused": "there is no scatter to test against"}
    theta = _held(fit, given)
    if theta is None:
        return head | {"refused": "some of these can only be held with all other parameters: give all of them"}
    held = Fit(fit.law, fit.sample, fit.loss, theta, fit.certificate)
    loss, log_y = fit.loss, fit.sample.log_y
    if np.isinf(loss.delta):
        squares = [float((loss.residuals(one.residuals, log_y) ** 2).sum()) for one in (held, fit)]
        statistic = n * float(np.log(squares[0] / squares[1]))
        p = float(stats.f.sf(np.expm1(statistic / n) * spare / len(given), len(given), spare))
        method = "F" if fit.law.is_linear and not loss.linear else "F, approximate"
    else:
        statistic = huber_deviance(held.residuals, loss) - huber_deviance(fit.residuals, loss)
        p, method = float(stats.chi2.sf(statistic, len(given))), "chi-squared"
    return head | {
        "statistic": statistic,
        "p": p,
        "method": method,
        "likelihood": "normal" if np.isinf(loss.delta) else "proportional to exp(-loss / s)",
        "params": held.params,
        "independent": fit.sample.is_independent,
    }


def _held(fit: Fit, given: Mapping[str, float]) -> Floats | None:
    """Coordinates [P] of the best fit with parameters held; None where they are no linear function of coordinates."""
    law, sample = fit.law, fit.sample
    if set(given) == set(law.parameters):
        return law.coordinates(given, sample.refs)
    vectors = [law.functional(name, sample.refs) for name in given]
    if any(vector is None for vector in vectors):
        return None
    values = np.array([value if name in law.signed else np.log(value) for name, value in given.items()])
    block, free = held_block(law, sample, np.array(vectors), values)
    low, high = coordinate_bounds(law, sample)
    starts = np.concatenate([fit.theta[None], grid_starts(law, sample)])[:, free]
    optimum = minimise([block], sample.log_y, starts, (low[free], high[free]), loss=fit.loss, tolerance=FINE)
    return np.asarray(block.offset + block.matrix @ optimum.phi[optimum.best])
