"""Likelihoods of fits: information criteria, and a test of given parameters, such as published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from slm.scaling.fitting import Fit, minimise_held
from slm.scaling.forms import Floats
from slm.scaling.solver import FINE_TOLERANCE, Loss
from slm.scaling.starts import grid_starts

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

    They are comparable only between fits to the same rows and target by the same loss, which defines the likelihood
    (see `deviance`). The scatter counts as a parameter, and so does the correlation within clusters.
    """
    n = sum(len(fit.sample.log_y) for fit in fits)
    k = sum(len(fit.theta) for fit in fits) + 1 + (not all(fit.sample.is_independent for fit in fits))
    return information_criteria(deviance(fits), n, k)


def deviance(fits: Sequence[Fit]) -> float:
    """-2 log likelihood of the residuals with the best common scatter for all fits; NaN if all residuals are 0.

    Least squares: Gaussian, with equal correlation between the rows of one cluster. Huber's loss: the density
    proportional to exp(-loss / scale), which has the tails of Laplace's. Where rows share clusters, this is divided by
    the design effect of their correlation, so that it counts independent rows.
    """
    loss = fits[0].loss
    residuals = np.concatenate([loss.residuals(fit.residuals, fit.sample.log_y) for fit in fits])
    n = len(residuals)
    if not (residuals**2).sum() > 0:
        return np.nan
    # Fits number their clusters independently of each other.
    labels = [[family, cluster] for family, fit in enumerate(fits) for cluster in fit.sample.clusters]
    groups = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    sums, counts = np.bincount(groups, residuals), np.bincount(groups)

    def gaussian_deviance(rho: float) -> float:
        """Deviance with correlation rho in clusters: one of m rows has eigenvalues 1 - rho and 1 + (m - 1) rho."""
        largest = 1 + (counts - 1) * rho
        within = (residuals**2).sum() - (sums**2 / counts).sum()
        variance = (within / (1 - rho) + (sums**2 / counts / largest).sum()) / n
        log_determinant = ((counts - 1) * np.log(1 - rho) + np.log(largest)).sum()
        return float(n * (np.log(2 * np.pi * variance) + 1) + log_determinant)

    is_independent = len(counts) == n
    rho = 0.0 if is_independent else optimize.minimize_scalar(gaussian_deviance, bounds=(0, 0.999), method="bounded").x
    if np.isinf(loss.delta):
        return gaussian_deviance(rho)
    return huber_deviance(residuals, loss) / (1 + float((counts**2).sum() / n - 1) * rho)


def huber_deviance(residuals: Floats, loss: Loss) -> float:
    """-2 log likelihood of the density proportional to exp(-loss / scale), at the best scale."""
    total, delta = float(loss.value(residuals).sum()), loss.delta

    def deviance_at(log_scale: float) -> float:
        scale = np.exp(log_scale)
        middle = np.sqrt(2 * np.pi * scale) * (2 * stats.norm.cdf(delta / np.sqrt(scale)) - 1)
        tails = 2 * scale / delta * np.exp(-(delta**2) / (2 * scale))
        return float(2 * len(residuals) * np.log(middle + tails) + 2 * total / scale)

    guess = np.log(total / len(residuals))
    return float(optimize.minimize_scalar(deviance_at, bracket=(guess - 1, guess + 1)).fun)


def parameter_test(fit: Fit, given: Mapping[str, float]) -> Entry | None:
    """A likelihood-ratio test of the parameters `given` against the free fit; None if the law lacks one of them.

    `params` are those of the best fit with the parameters `given`, the held fit. `statistic` is twice the log
    likelihood of the free fit less twice that of the held fit, each with its own best scale. Least squares:
    n log(SSE_held / SSE_free), with p from an F test, which is exact for laws that are linear in logs and as accurate
    as profile intervals for others. Huber's loss: see `huber_deviance`, with p from chi-squared. If rows are not
    `independent`, p is too small. `refused` is the reason if there is no test.
    """
    if not given or not set(given) <= set(fit.law.parameters):
        return None
    df, n = fit.degrees_of_freedom, len(fit.sample.log_y)
    head = {"given": dict(given), "df": len(given), "refused": None}
    if fit.is_exact or df < 1:
        return head | {"refused": "there is no scatter to test against"}
    theta = _held_coordinates(fit, given)
    if theta is None:
        return head | {"refused": "some of these can be held only together with all other parameters: give all of them"}
    held = Fit(fit.law, fit.sample, fit.loss, theta, fit.certificate)
    loss, log_y = fit.loss, fit.sample.log_y
    if np.isinf(loss.delta):
        sse_held, sse_free = (float((loss.residuals(each.residuals, log_y) ** 2).sum()) for each in (held, fit))
        statistic = n * float(np.log(sse_held / sse_free))
        p = float(stats.f.sf(np.expm1(statistic / n) * df / len(given), len(given), df))
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


def _held_coordinates(fit: Fit, given: Mapping[str, float]) -> Floats | None:
    """Coordinates [P] of the best fit with `given` held; None if one of these is not linear in the coordinates."""
    law, sample = fit.law, fit.sample
    if set(given) == set(law.parameters):
        return law.coordinates(given, sample.refs)
    vectors = [law.projection(name, sample.refs) for name in given]
    if any(vector is None for vector in vectors):
        return None
    values = np.array([value if name in law.not_logged else np.log(value) for name, value in given.items()])
    starts = np.concatenate([fit.theta[None], grid_starts(law, sample)])
    theta, objective = minimise_held(fit, np.array(vectors), values, starts, tolerance=FINE_TOLERANCE)
    return np.asarray(theta[objective.argmin()])
