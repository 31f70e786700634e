"""Cluster-robust errors where they have a closed form."""

import numpy as np
import pytest

from slm.scaling.robust import cluster_error
from tests.seeds import generator


@pytest.mark.parametrize("rows", [1, 4])
def test_the_error_of_a_mean_is_that_of_the_means_of_equally_large_clusters(rows: int) -> None:
    """With one cluster, one value: the textbook's s / sqrt(G) with G - 1 degrees of freedom (Bell & McCaffrey 2002)."""
    rng = generator()
    clusters = np.repeat(np.arange(7), rows)
    y = rng.normal(size=7)[clusters] + 0.3 * rng.normal(size=7 * rows)
    error, df = cluster_error(np.ones((len(y), 1)), y - y.mean(), clusters, np.ones(1))
    means = y.reshape(7, rows).mean(axis=1)
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(7))
    assert df == pytest.approx(6)


def test_clusters_of_one_row_are_the_heteroscedastic_estimator_hc2() -> None:
    """MacKinnon & White 1985: squared residuals over 1 - leverage."""
    rng = generator(1)
    X = np.stack([np.ones(12), rng.normal(size=12)], axis=1)
    y = X @ [1.0, 2.0] + rng.normal(size=12) * (1 + np.abs(X[:, 1]))
    bread = np.linalg.inv(X.T @ X)
    residuals = y - X @ bread @ X.T @ y
    leverage = np.einsum("ij,jk,ik->i", X, bread, X)
    meat = (X.T * (residuals**2 / (1 - leverage))) @ X
    error, _ = cluster_error(X, residuals, np.arange(12), np.array([0.0, 1.0]))
    assert error == pytest.approx(np.sqrt((bread @ meat @ bread)[1, 1]))


def test_its_degrees_of_freedom_are_those_of_the_variance_that_is_estimated() -> None:
    """Satterthwaite's: twice the squared mean over the variance of the estimate, by simulation of independent noise."""
    rng = generator(2)
    clusters = np.repeat(np.arange(6), [2, 3, 4, 5, 2, 6])
    X = np.stack([np.ones(len(clusters)), rng.normal(size=6)[clusters]], axis=1)
    residual_maker = np.eye(len(X)) - X @ np.linalg.pinv(X)
    found = [
        cluster_error(X, residual_maker @ rng.normal(size=len(X)), clusters, np.array([0.0, 1.0])) for _ in range(4000)
    ]
    squares = np.array([error**2 for error, _ in found])
    assert found[0][1] == pytest.approx(2 * squares.mean() ** 2 / squares.var(), rel=0.1)
    truth = np.linalg.inv(X.T @ X)[1, 1]
    assert squares.mean() == pytest.approx(truth, rel=0.05)  # and it is unbiased for such noise
