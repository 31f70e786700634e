"""Likelihoods of fits: information criteria, and a test of given parameters, such as published parameters."""

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
    """Information criteria; NaN if they are undefined."""

    aicc: float
    bic: float
    aic: float
    parameters: int  # number of parameters


def information_criteria(deviance: float, num_rows: int, num_parameters: int) -> Criteria:
    """Criteria of a model from its deviance, -2 log likelihood (Burnham & Anderson 2002, section 7.4)."""
    aic, bic = deviance + 2 * num_parameters, deviance + num_parameters * np.log(num_rows)
    denominator = num_rows - num_parameters - 1
    correction = 2 * num_parameters * (num_parameters + 1) / denominator if denominator > 0 else np.nan
    return Criteria(float(aic + correction), float(bic), aic, num_parameters)


def criteria(fits: Sequence[Fit]) -> Criteria:
    """Information criteria of one law fitted to one or more samples, with one scatter for all.

    Criteria can be compared only between fits to the same rows and target under the same loss, because the loss
    defines the likelihood (see `deviance`). The scatter and the correlation within clusters count as parameters.
    """
    num_rows = sum(len(fit.sample.log_y) for fit in fits)
    num_correlations = 0 if all(fit.sample.is_independent for fit in fits) else 1
    num_parameters = sum(len(fit.theta) for fit in fits) + 1 + num_correlations
    return information_criteria(deviance(fits), num_rows, num_parameters)


def deviance(fits: Sequence[Fit]) -> float:
    """-2 log likelihood of the residuals with the best common scatter for all fits; NaN if all residuals are 0.

    - Least squares: residuals are Gaussian, with equal correlation between the rows of one cluster.
    - Huber's loss: their density is proportional to exp(-loss / scale), with the tails of Laplace's distribution.
      If rows share clusters, this deviance is divided by the design effect of their correlation.
    """
    loss = fits[0].loss
    residuals = np.concatenate([loss.scaled_residuals(fit.residuals, fit.sample.log_y) for fit in fits])
    n = len(residuals)
    if not (residuals**2).sum() > 0:
        return np.nan
    # Clusters of different fits may have the same number, so a label is a pair of fit and number.
    labels = [[index, cluster] for index, fit in enumerate(fits) for cluster in fit.sample.clusters]
    groups = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    sums, counts = np.bincount(groups, residuals), np.bincount(groups)

    def gaussian_deviance(rho: float) -> float:
        # The correlation matrix of a cluster of m rows has the eigenvalues 1 - rho (m - 1 times) and 1 + (m - 1) rho.
        largest_eigenvalues = 1 + (counts - 1) * rho
        squares_within = (residuals**2).sum() - (sums**2 / counts).sum()
        variance = (squares_within / (1 - rho) + (sums**2 / counts / largest_eigenvalues).sum()) / n
        log_determinant = ((counts - 1) * np.log(1 - rho) + np.log(largest_eigenvalues)).sum()
        return float(n * (np.log(2 * np.pi * variance) + 1) + log_determinant)

    rho = 0.0
    if len(counts) < n:  # some rows share a cluster
        rho = optimize.minimize_scalar(gaussian_deviance, bounds=(0, 0.999), method="bounded").x
    if np.isinf(loss.delta):
        return gaussian_deviance(rho)
    design_effect = 1 + float((counts**2).sum() / n - 1) * rho
    return huber_deviance(residuals, loss) / design_effect


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

    The held fit is the best fit in which the parameters `given` are fixed; `params` are all its parameters. `statistic`
    is the deviance of the held fit minus the deviance of the free fit, each at its best scale:
    - Least squares: n log(SSE_held / SSE_free). p is from an F test, which is exact for laws that are linear in logs.
    - Huber's loss: the difference of `huber_deviance`. p is from the chi-squared distribution.
    If rows share clusters, `independent` is False, and p is too small. `refused` says why there is no test, or is None.
    """
    if not given or not set(given) <= set(fit.law.parameters):
        return None
    residual_df, n = fit.degrees_of_freedom, len(fit.sample.log_y)
    common = {"given": dict(given), "df": len(given), "refused": None}
    if fit.is_exact or residual_df < 1:
        return common | {"refused": "there is no scatter to test against"}
    theta = _held_coordinates(fit, given)
    if theta is None:
        return common | {"refused": "some of these parameters can be fixed only if all are: give all parameters"}
    held = Fit(fit.law, fit.sample, fit.loss, theta, fit.certificate)
    loss, log_y = fit.loss, fit.sample.log_y
    if np.isinf(loss.delta):
        sse_held = float((loss.scaled_residuals(held.residuals, log_y) ** 2).sum())
        sse_free = float((loss.scaled_residuals(fit.residuals, log_y) ** 2).sum())
        statistic = n * float(np.log(sse_held / sse_free))
        f = np.expm1(statistic / n) * residual_df / len(given)  # expm1(statistic / n) = SSE_held / SSE_free - 1
        p = float(stats.f.sf(f, len(given), residual_df))
        # The test is exact if the law is linear in logs and the loss squares log residuals.
        method = "F" if fit.law.is_linear and not loss.is_on_linear_scale else "F, approximate"
    else:
        statistic = huber_deviance(held.residuals, loss) - huber_deviance(fit.residuals, loss)
        p, method = float(stats.chi2.sf(statistic, len(given))), "chi-squared"
    return common | {
        "statistic": statistic,
        "p": p,
        "method": method,
        "likelihood": "normal" if np.isinf(loss.delta) else "proportional to exp(-loss / s)",
        "params": held.params,
        "independent": fit.sample.is_independent,
    }


def _held_coordinates(fit: Fit, given: Mapping[str, float]) -> Floats | None:
    """Coordinates [P] of the best fit with the parameters `given` fixed; None if `Law.projection` of one is None."""
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
