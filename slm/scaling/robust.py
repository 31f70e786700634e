"""Cluster-robust standard errors, with small-sample corrections, for rows that share a run or a shape.

Rows of one shape deviate from a law together: they share the shape and the learning rate that was chosen for it. So do
checkpoints and branches of one run. The sandwich estimator with bias-reduced residuals ("CR2") and Satterthwaite's
degrees of freedom is accurate with few clusters (Bell & McCaffrey 2002; Pustejovsky & Tipton 2018, arXiv:1601.01981);
a bootstrap of clusters is not.

Axes: n rows, P coordinates.
"""

from __future__ import annotations

import numpy as np

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats

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

    `jacobian` [n, P] has the derivatives of the fitted values; rows with equal `clusters` [n] are one cluster.
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
