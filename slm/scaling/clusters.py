"""Errors of fits whose rows share runs or shapes: cluster-robust standard errors, and bootstraps.

The residuals of rows of one shape are correlated, because the rows share the shape and the learning rate chosen for it.
So are the residuals of checkpoints and branches of one run. A bootstrap of clusters is inaccurate with few clusters, so
intervals use the sandwich estimator with bias-reduced residuals ("CR2") and Satterthwaite's degrees of freedom (Bell &
McCaffrey 2002; Pustejovsky & Tipton 2018, arXiv:1601.01981).

Axes: I rows, B replicates, P coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from slm.scaling.fitting import Fit, single_block
from slm.scaling.forms import Floats
from slm.scaling.solver import minimise
from slm.scaling.starts import coordinate_bounds, raise_small_terms

Kind = Literal["cluster", "wild"]
MAX_BATCH_NUMBERS = 4_000_000  # maximum size of one array [replicates, rows, parameters], to bound memory
WEBB_WEIGHTS = np.sqrt([0.5, 1.0, 1.5])
"""Used with both signs if clusters are few: weights of -1 and 1 would give too few distinct samples (Webb 2023)."""
MIN_EIGENVALUE = 1e-8
"""If an eigenvalue of a cluster's block of (identity - hat matrix) is smaller than this, the fit passes through the
data in the direction of the eigenvector, and the residuals do not show the scatter there."""


def standard_errors(fit: Fit, vector: Floats) -> tuple[float, float, float]:
    """Return the usual and the robust standard error of `vector` [P] @ coordinates, and the robust error's df.

    Callers use only the ratio of the two errors, so both are 1 if all rows are independent. All three are NaN if the
    clusters leave no scatter from which to estimate an error.
    """
    if fit.sample.is_independent:
        return 1.0, 1.0, float(fit.degrees_of_freedom)
    jacobian = fit.jacobian
    error, df = cluster_error(jacobian, fit.residuals, fit.sample.clusters, vector)
    variance = float(vector @ np.linalg.pinv(jacobian.T @ jacobian) @ vector)
    usual = fit.sigma * np.sqrt(max(variance, 0.0))
    if error > 0 and usual > 0 and df >= 1:
        return usual, error, df
    return np.nan, np.nan, np.nan


def cluster_error(jacobian: Floats, residuals: Floats, clusters: np.ndarray, vector: Floats) -> tuple[float, float]:
    """Return the robust standard error of `vector` [P] @ coordinates, and its degrees of freedom (0 if unknown).

    `jacobian` [I, P] has the derivatives of the fitted values; rows with equal `clusters` [I] are one cluster.
    """
    bread = np.linalg.pinv(jacobian.T @ jacobian)
    residual_maker = np.eye(len(jacobian)) - jacobian @ bread @ jacobian.T
    weights = jacobian @ bread @ vector  # of the rows in the estimate
    cluster_ids = np.unique(clusters, return_inverse=True)[1]
    members = [np.flatnonzero(cluster_ids == g) for g in range(int(cluster_ids.max()) + 1)]
    projected = np.zeros((len(jacobian), len(members)))
    variance = 0.0
    for g, rows in enumerate(members):
        adjusted_weights = _inverse_square_root(residual_maker[np.ix_(rows, rows)]) @ weights[rows]
        variance += float(adjusted_weights @ residuals[rows]) ** 2
        projected[:, g] = residual_maker[:, rows] @ adjusted_weights
    covariance = projected.T @ projected  # of the cluster sums, if errors were independent with variance 1
    total = float((covariance**2).sum())
    df = float(np.trace(covariance)) ** 2 / total if total > 0 else 0.0
    return float(np.sqrt(variance)), df


def scatter_df(fit: Fit) -> float:
    """Degrees of freedom of `fit.sigma`: rows minus parameters if residuals of one cluster are independent.

    If they are correlated, a cluster's rows tell less. With residuals r = M e, where e has variance 1 and correlation
    rho in a cluster, rho follows from the squares of the cluster sums of r, and the degrees of freedom of r'r are
    Satterthwaite's (1946). Unlike those of an error of the law, they do not fall to the number of clusters while
    rho is small.
    """
    clusters, jacobian, r = fit.sample.clusters, fit.jacobian, fit.residuals
    if fit.sample.is_independent or fit.degrees_of_freedom < 1 or not r.any():
        return float(fit.degrees_of_freedom)
    same = (clusters[:, None] == clusters).astype(float)
    residual_maker = np.eye(len(r)) - jacobian @ np.linalg.pinv(jacobian)
    made = residual_maker @ same
    ratio = float(r @ same @ r) / float(r @ r)
    # E r'Br = (1 - rho) tr(MB) + rho tr(MBMB), and E r'r = (1 - rho) tr(M) + rho tr(MB), where B is `same`.
    excess = ratio * np.trace(residual_maker) - np.trace(made)
    excess_if_one = (made * made.T).sum() - ratio * np.trace(made)
    rho = float(np.clip(excess / (excess + excess_if_one), 0, 1)) if excess > 0 else 0.0
    spread = (1 - rho) * residual_maker + rho * made
    return float(np.trace(spread) ** 2 / (spread * spread.T).sum())


def _inverse_square_root(block: Floats) -> Floats:
    """Return the symmetric inverse square root, with 0 for directions in which the fit passes through the data."""
    values, vectors = np.linalg.eigh(block)
    scale = np.where(values > MIN_EIGENVALUE, 1 / np.sqrt(np.maximum(values, MIN_EIGENVALUE)), 0.0)
    return np.asarray((vectors * scale) @ vectors.T)


@dataclass(frozen=True)
class Ensemble:
    """Coordinates [B, P] of the refits that converged; `failed` is the share of replicates without such a refit."""

    theta: Floats
    failed: float


def bootstrap(fit: Fit, kind: Kind, replicates: int, rng: np.random.Generator) -> Ensemble:
    """Refit the law to `replicates` resampled data sets: see `bootstraps`."""
    return bootstraps(fit, [kind], replicates, rng)[kind]


def bootstraps(fit: Fit, kinds: Sequence[Kind], replicates: int, rng: np.random.Generator) -> dict[str, Ensemble]:
    """Refit the law to `replicates` resampled data sets of each kind, all in one minimisation.

    `kind="cluster"` draws whole clusters with replacement (Field & Welsh 2007). `kind="wild"` multiplies each residual
    by sqrt(n / (n - P)) and a random factor per cluster (Wu 1986; Cameron, Gelbach & Miller 2008).
    """
    drawn = [_draw(fit, kind, replicates, rng) for kind in kinds]
    log_y, weights = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    theta, converged = refit(fit, log_y, weights, np.repeat(fit.theta[None], len(log_y), axis=0))
    ends = np.cumsum([len(targets) for targets, _ in drawn])[:-1]
    refits = zip(kinds, np.split(theta, ends), np.split(converged, ends), strict=True)
    return {kind: Ensemble(refit[is_good], 1 - is_good.sum() / replicates) for kind, refit, is_good in refits}


def _draw(fit: Fit, kind: Kind, replicates: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return targets and weights [B, I] of data sets that have enough points for the law."""
    sample = fit.sample
    if kind == "cluster":
        weights = _cluster_weights(sample.clusters, replicates, rng)
        weights = weights[_count_distinct_points(weights, sample.log_x) > len(fit.theta)]
        return np.repeat(sample.log_y[None], len(weights), axis=0), weights
    scaled_residuals = fit.residuals * np.sqrt(len(sample.log_y) / max(fit.degrees_of_freedom, 1))
    log_y = sample.log_y - fit.residuals + scaled_residuals * _wild_factors(sample.clusters, replicates, rng)
    return log_y, np.ones_like(log_y)


def refit(fit: Fit, log_y: Floats, weights: Floats, start: Floats) -> tuple[Floats, np.ndarray]:
    """Return the coordinates [B, P] of refits, and whether each converged [B], in batches of bounded memory."""
    bounds = coordinate_bounds(fit.law, fit.sample)
    start = raise_small_terms(fit.law, fit.sample, start)
    block = single_block(fit.law, fit.sample)
    batch_size = max(1, MAX_BATCH_NUMBERS // (len(block.rows) * len(fit.theta)))
    theta, converged = np.empty_like(start), np.empty(len(start), dtype=bool)
    for first in range(0, len(start), batch_size):
        batch = slice(first, first + batch_size)
        optimum = minimise([block], log_y[batch], start[batch], bounds, loss=fit.loss, weights=weights[batch])
        theta[batch], converged[batch] = optimum.phi, optimum.converged
    return theta, converged


def _cluster_weights(clusters: np.ndarray, replicates: int, rng: np.random.Generator) -> Floats:
    """Return how often each row is drawn [B, I] if whole clusters are drawn."""
    ids, cluster_of_row = np.unique(clusters, return_inverse=True)
    drawn = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=replicates)
    return drawn[:, cluster_of_row].astype(float)


def _count_distinct_points(weights: Floats, log_x: Floats) -> np.ndarray:
    """Return how many distinct points in the space of variables each replicate has [B]."""
    points, inverse = np.unique(log_x, axis=0, return_inverse=True)
    is_at_point = inverse.reshape(-1, 1) == np.arange(len(points))
    return np.asarray((weights @ is_at_point > 0).sum(axis=1))


def _wild_factors(clusters: np.ndarray, replicates: int, rng: np.random.Generator) -> Floats:
    """Draw one random factor per cluster, and return the factor of each row [B, I]."""
    ids, cluster_of_row = np.unique(clusters, return_inverse=True)
    factors = np.r_[-WEBB_WEIGHTS, WEBB_WEIGHTS] if len(ids) < 12 else np.array([-1.0, 1.0])
    return rng.choice(factors, size=(replicates, len(ids)))[:, cluster_of_row]
