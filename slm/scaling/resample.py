"""Bootstraps of a fit: refits of resampled data, all in one batch and warm-started at the estimate."""

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
