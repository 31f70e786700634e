"""Standard errors where rows share a run or a shape: cluster-robust, with the small-sample corrections.

Rows of one model size deviate from a law together (the shape suits the law better or worse, one learning rate was
chosen for it), and so do checkpoints and branches of one run. The sandwich estimator with bias-reduced residuals
("CR2") and Satterthwaite's degrees of freedom is right with few clusters (Bell & McCaffrey 2002; Pustejovsky & Tipton
2018, arXiv:1601.01981), where a bootstrap of clusters is too wide or too narrow.

Axes: n rows, P coordinates.
"""

from __future__ import annotations

import numpy as np

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats

SMALLEST_SPARE = 1e-8
"""A direction of a cluster with less residual freedom than this is fitted exactly and says nothing of scatter."""


def standard_errors(fit: Fit, vector: Floats) -> tuple[float, float, float]:
    """Standard errors of `vector` [P] @ coordinates, the usual one and the robust one, and its degrees of freedom.

    1 and 1 where all rows are independent; NaN where clusters leave no scatter to estimate an error from.
    """
    if fit.sample.is_independent:
        return 1.0, 1.0, float(fit.degrees_of_freedom)
    jacobian = fit.jacobian
    error, df = cluster_error(jacobian, fit.residuals, fit.sample.clusters, vector)
    variance = float(vector @ np.linalg.pinv(jacobian.T @ jacobian) @ vector)
    usual = fit.sigma * np.sqrt(max(variance, 0.0))
    return (usual, error, df) if error > 0 and usual > 0 and df >= 1 else (np.nan, np.nan, np.nan)


def cluster_error(jacobian: Floats, residuals: Floats, clusters: np.ndarray, vector: Floats) -> tuple[float, float]:
    """Standard error of `vector` @ coordinates, and its degrees of freedom: 0 where no cluster says anything of it.

    `jacobian` [n, P] is of the fitted values, `clusters` [n] says which rows belong together.
    """
    bread = np.linalg.pinv(jacobian.T @ jacobian)
    spare = np.eye(len(jacobian)) - jacobian @ bread @ jacobian.T
    weights = jacobian @ bread @ vector
    inverse = np.unique(clusters, return_inverse=True)[1]
    members = [np.flatnonzero(inverse == g) for g in range(int(inverse.max()) + 1)]
    pulls = np.zeros((len(jacobian), len(members)))
    square = 0.0
    for g, rows in enumerate(members):
        pull = _half_inverse(spare[np.ix_(rows, rows)]) @ weights[rows]
        square += float(pull @ residuals[rows]) ** 2
        pulls[:, g] = spare[:, rows] @ pull
    spread = pulls.T @ pulls
    total = float((spread**2).sum())
    return float(np.sqrt(square)), float(np.trace(spread)) ** 2 / total if total > 0 else 0.0


def _half_inverse(block: Floats) -> Floats:
    """Symmetric inverse square root, without the directions that the fit takes up."""
    values, vectors = np.linalg.eigh(block)
    scale = np.where(values > SMALLEST_SPARE, 1 / np.sqrt(np.maximum(values, SMALLEST_SPARE)), 0.0)
    return np.asarray((vectors * scale) @ vectors.T)
