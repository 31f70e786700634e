"""Errors of fits whose rows share runs or shapes: cluster-robust standard errors, and bootstraps.

Rows of one shape deviate from a law together: they share the shape and the learning rate that was chosen for it. So do
checkpoints and branches of one run. The sandwich estimator with bias-reduced residuals ("CR2") and Satterthwaite's
degrees of freedom is accurate with few clusters (Bell & McCaffrey 2002; Pustejovsky & Tipton 2018, arXiv:1601.01981);
a bootstrap of clusters is not.

Bootstrap samples are refitted in one batch, warm-started at the estimate.

Axes: I rows, B replicates, P coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from slm.scaling.fitting import Fit, single_block
from slm.scaling.forms import Floats
from slm.scaling.solver import minimise
from slm.scaling.starts import coordinate_bounds, raise_small_terms

Kind = Literal["cluster", "wild"]
MAX_BATCH_NUMBERS = 4_000_000
"""Most numbers in one array of a batch (replicates x rows x parameters), to bound memory."""
WEBB_WEIGHTS = np.sqrt([0.5, 1.0, 1.5])
"""Used with both signs. With few clusters, weights of -1 and 1 give too few distinct samples (Webb 2023)."""
MIN_EIGENVALUE = 1e-8
"""Where an eigenvalue of a cluster's block of I - hat matrix is smaller, the fit passes through the data in that
direction, and residuals say nothing about scatter."""


def standard_errors(fit: Fit, vector: Floats) -> tuple[float, float, float]:
    """The usual and the robust standard error of `vector` [P] @ coordinates, and degrees of freedom of the robust one.

    Only the ratio of the errors is used, so both are 1 if all rows are independent. All three are NaN if the clusters
    leave no scatter from which to estimate an error.
    """
    if fit.sample.is_independent:
        return 1.0, 1.0, float(fit.degrees_of_freedom)
    jacobian = fit.jacobian
    error, df = cluster_error(jacobian, fit.residuals, fit.sample.clusters, vector)
    variance = float(vector @ np.linalg.pinv(jacobian.T @ jacobian) @ vector)
    usual = fit.sigma * np.sqrt(max(variance, 0.0))
    return (usual, error, df) if error > 0 and usual > 0 and df >= 1 else (np.nan, np.nan, np.nan)


def cluster_error(jacobian: Floats, residuals: Floats, clusters: np.ndarray, vector: Floats) -> tuple[float, float]:
    """Standard error of `vector` [P] @ coordinates, and its degrees of freedom: 0 if no cluster informs it.

    `jacobian` [I, P] has the derivatives of the fitted values; rows with equal `clusters` [I] are one cluster.
    """
    bread = np.linalg.pinv(jacobian.T @ jacobian)
    residual_maker = np.eye(len(jacobian)) - jacobian @ bread @ jacobian.T
    weights = jacobian @ bread @ vector
    cluster_ids = np.unique(clusters, return_inverse=True)[1]
    members = [np.flatnonzero(cluster_ids == g) for g in range(int(cluster_ids.max()) + 1)]
    projected = np.zeros((len(jacobian), len(members)))
    variance = 0.0
    for g, rows in enumerate(members):
        adjusted = _inverse_square_root(residual_maker[np.ix_(rows, rows)]) @ weights[rows]
        variance += float(adjusted @ residuals[rows]) ** 2
        projected[:, g] = residual_maker[:, rows] @ adjusted
    covariance = projected.T @ projected  # of the cluster sums, if errors were independent with variance 1
    total = float((covariance**2).sum())
    df = float(np.trace(covariance)) ** 2 / total if total > 0 else 0.0
    return float(np.sqrt(variance)), df


def _inverse_square_root(block: Floats) -> Floats:
    """Symmetric inverse square root, with 0 for directions in which the fit passes through the data."""
    values, vectors = np.linalg.eigh(block)
    scale = np.where(values > MIN_EIGENVALUE, 1 / np.sqrt(np.maximum(values, MIN_EIGENVALUE)), 0.0)
    return np.asarray((vectors * scale) @ vectors.T)


@dataclass(frozen=True)
class Ensemble:
    """Coordinates [B, P] of the refits that converged; `failed` is the share that did not."""

    theta: Floats
    failed: float


def bootstrap(fit: Fit, kind: Kind, replicates: int, rng: np.random.Generator) -> Ensemble:
    """Refit `replicates` resampled data sets.

    cluster: clusters drawn with replacement (Field & Welsh 2007). wild: residuals kept in place, times random signs
    and sizes that a cluster shares (Wu 1986; Cameron, Gelbach & Miller 2008), after scaling up by sqrt(n / (n - P)).
    """
    sample = fit.sample
    start = np.repeat(fit.theta[None], replicates, axis=0)
    log_y, weights = sample.log_y, None
    if kind == "cluster":
        weights = _cluster_weights(sample.clusters, replicates, rng)
        has_enough_points = _distinct_points(weights, sample.log_x) > len(fit.theta)
        weights, start = weights[has_enough_points], start[has_enough_points]
        if not has_enough_points.any():
            return Ensemble(start, 1.0)
    else:
        scaled = fit.residuals * np.sqrt(len(sample.log_y) / max(fit.degrees_of_freedom, 1))
        log_y = sample.log_y - fit.residuals + scaled * _wild_factors(sample.clusters, replicates, rng)
    theta, converged = refit(fit, log_y, weights, start)
    return Ensemble(theta[converged], 1 - converged.sum() / replicates)


def refit(fit: Fit, log_y: Floats, weights: Floats | None, start: Floats) -> tuple[Floats, np.ndarray]:
    """Coordinates [B, P] of refits, and whether each converged [B], in batches of bounded memory."""
    bounds = coordinate_bounds(fit.law, fit.sample)
    start = raise_small_terms(fit.law, fit.sample, start)
    block = single_block(fit.law, fit.sample)
    size = max(1, MAX_BATCH_NUMBERS // (len(block.rows) * len(fit.theta)))
    optima = []
    for first in range(0, len(start), size):
        part = slice(first, first + size)
        y = log_y if log_y.ndim == 1 else log_y[part]
        w = None if weights is None else weights[part]
        optima.append(minimise([block], y, start[part], bounds, loss=fit.loss, weights=w))
    return np.concatenate([optimum.phi for optimum in optima]), np.concatenate([o.converged for o in optima])


def _cluster_weights(clusters: np.ndarray, replicates: int, rng: np.random.Generator) -> Floats:
    """How often each row is drawn [B, I] if whole clusters are drawn."""
    names, inverse = np.unique(clusters, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    return drawn[:, inverse].astype(float)


def _distinct_points(weights: Floats, log_x: Floats) -> np.ndarray:
    """Number [B] of distinct points in the space of variables that each replicate has."""
    points, inverse = np.unique(log_x, axis=0, return_inverse=True)
    is_at_point = inverse.reshape(-1, 1) == np.arange(len(points))
    return np.asarray((weights @ is_at_point > 0).sum(axis=1))


def _wild_factors(clusters: np.ndarray, replicates: int, rng: np.random.Generator) -> Floats:
    names, inverse = np.unique(clusters, return_inverse=True)
    points = np.r_[-WEBB_WEIGHTS, WEBB_WEIGHTS] if len(names) < 12 else np.array([-1.0, 1.0])
    return rng.choice(points, size=(replicates, len(names)))[:, inverse]
