"""Bootstraps of a fit: refits of resampled data, all in one batch and warm-started at the estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from slm.scaling.fitting import Fit, single_block
from slm.scaling.forms import Floats
from slm.scaling.solver import minimise
from slm.scaling.starts import coordinate_bounds, off_plateau

Kind = Literal["cluster", "wild", "parametric"]
CHUNK = 4_000_000
"""Numbers in one array of a batch (replicates x rows x parameters), to bound memory."""
WEBB = np.sqrt([0.5, 1.0, 1.5])
"""Six-point weights (with both signs): with few clusters two points give too few distinct samples (Webb 2023)."""


@dataclass(frozen=True)
class Ensemble:
    """Refits: coordinates [B, P], residual scale [B]. `failed` is the share that could not be refitted, left out."""

    kind: Kind
    theta: Floats
    sigma: Floats
    failed: float


def bootstrap(fit: Fit, kind: Kind, replicates: int, rng: np.random.Generator) -> Ensemble:
    """Refit `replicates` resampled data sets.

    cluster: clusters drawn with replacement (Field & Welsh 2007). wild: residuals kept in place, times random signs
    and sizes that a cluster shares (Wu 1986; Cameron, Gelbach & Miller 2008), after scaling up by sqrt(n / (n - P)).
    parametric: Gaussian noise of the estimated scale about the law, used where intervals are studentised.
    """
    sample = fit.sample
    n, P = len(sample.log_y), len(fit.theta)
    start = np.repeat(fit.theta[None], replicates, axis=0)
    log_y, weights = sample.log_y, None
    if kind == "cluster":
        weights = _cluster_weights(sample.clusters, replicates, rng)
        enough = _distinct(weights, sample.log_x) > P
        weights, start = weights[enough], start[enough]
        if not enough.any():
            return Ensemble(kind, start, np.empty(0), 1.0)
    elif kind == "wild":
        scaled = fit.residuals * np.sqrt(n / max(fit.degrees_of_freedom, 1))
        log_y = sample.log_y - fit.residuals + scaled * _wild_factors(sample.clusters, replicates, rng)
    else:
        log_y = sample.log_y - fit.residuals + fit.sigma * rng.standard_normal((replicates, n))
    theta, sse, converged = refit(fit, log_y, weights, start)
    sigma = np.sqrt(sse / max(fit.degrees_of_freedom, 1))
    return Ensemble(kind, theta[converged], sigma[converged], 1 - converged.sum() / replicates)


def refit(fit: Fit, log_y: Floats, weights: Floats | None, start: Floats) -> tuple[Floats, Floats, np.ndarray]:
    """Coordinates [B, P], weighted sums of squares [B] and convergence of refits, in chunks of bounded memory."""
    low, high = coordinate_bounds(fit.law, fit.sample)
    start = off_plateau(fit.law, fit.sample, start)
    x_IV, block = fit.sample.centred, single_block(fit.law, fit.sample)
    size = max(1, CHUNK // (len(x_IV) * len(fit.theta)))
    thetas, sums, done = [], [], []
    for at in range(0, len(start), size):
        part = slice(at, at + size)
        y = log_y if log_y.ndim == 1 else log_y[part]
        w = None if weights is None else weights[part]
        optimum = minimise([block], y, start[part], (low, high), loss=fit.loss, weights=w)
        squares = (y - fit.law.log_value(optimum.phi, x_IV)) ** 2
        thetas.append(optimum.phi)
        sums.append((squares if w is None else w * squares).sum(axis=1))
        done.append(optimum.converged)
    return np.concatenate(thetas), np.concatenate(sums), np.concatenate(done)


def _cluster_weights(clusters: np.ndarray, replicates: int, rng: np.random.Generator) -> Floats:
    """How often each row is drawn [B, I], when whole clusters are drawn."""
    present, inverse = np.unique(clusters, return_inverse=True)
    drawn = rng.multinomial(len(present), np.full(len(present), 1 / len(present)), size=replicates)
    return drawn[:, inverse].astype(float)


def _distinct(weights: Floats, log_x: Floats) -> np.ndarray:
    """Number of distinct points in the space of variables that each replicate holds."""
    points, inverse = np.unique(log_x, axis=0, return_inverse=True)
    is_at_point = inverse.reshape(-1, 1) == np.arange(len(points))
    return np.asarray((weights @ is_at_point > 0).sum(axis=1))


def _wild_factors(clusters: np.ndarray, replicates: int, rng: np.random.Generator) -> Floats:
    names, inverse = np.unique(clusters, return_inverse=True)
    points = np.r_[-WEBB, WEBB] if len(names) < 12 else np.array([-1.0, 1.0])
    return rng.choice(points, size=(replicates, len(names)))[:, inverse]
