"""A model of what a shape costs on a device (seconds or joules per token, bytes), fitted to measured shapes.

Notable: a cost is a sum of terms that cannot be negative: so much for each block that is used, each parameter that is
read, and so on. Errors are relative. There are never more terms than the number of shapes minus 3, so that the scatter
about the model can be estimated. The interval of a new shape is from Student's t in the log of the cost.

Legend: n shapes, F terms, M points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from slm.scaling.forms import Floats
from slm.scaling.prediction import Band

MIN_SHAPES = 5  # with fewer, two terms would leave less than three degrees of freedom
MIN_SIGMA = 1e-6  # relative: repeated byte counts agree exactly, and intervals must not have the width of rounding
POOLING_LEVEL = 0.05  # families are pooled unless an F test rejects that they cost alike at this level
ALTERNATIONS = 15
REWEIGHTINGS = 5  # dividing by the measured cost favours rows measured too low; dividing by the fitted one does not


@dataclass(frozen=True)
class CostModel:
    """Fitted costs of `terms`. `is_pooled`: over all families, which the measurements do not tell apart."""

    terms: tuple[str, ...]
    coefficients: Floats  # [F], at least 0
    sigma: float  # scatter of single shapes in the log of the cost
    df: int
    inverse_gram: Floats  # [F, F], of the relative terms
    held_out: float  # root mean square of the log error of each shape under the model of the others
    num_shapes: int
    is_pooled: bool = False

    def cost(self, features: pd.DataFrame) -> Floats:
        """The cost [M] of shapes with these features."""
        return np.asarray(_design(features, self.terms) @ self.coefficients)

    def band(self, features: pd.DataFrame, level: float) -> Band:
        """Log cost [M] of new shapes with their prediction intervals."""
        cost = self.cost(features)
        relative = _design(features, self.terms) / cost[:, None]  # the gradient of log cost, by the coefficients
        leverage = np.einsum("mf,fg,mg->m", relative, self.inverse_gram, relative)
        t = float(stats.t.ppf(0.5 + level / 2, self.df))
        half_width = t * self.sigma * np.sqrt(1 + leverage)
        return Band(np.log(cost), np.log(cost) - half_width, np.log(cost) + half_width, np.full(len(cost), t), t)


def _design(features: pd.DataFrame, terms: Sequence[str]) -> Floats:
    return np.stack([np.ones(len(features)) if t == "constant" else features[t].to_numpy(float) for t in terms], axis=1)


def _solve(X: Floats, y: Floats) -> Floats:
    """Non-negative coefficients [F] with the least squares of relative errors."""
    scale = X.max(axis=0)  # terms differ by many powers of ten
    weights = y
    for _ in range(REWEIGHTINGS):
        coefficients = optimize.nnls(X / scale / weights[:, None], y / weights)[0]
        weights = np.maximum(X / scale @ coefficients, 1e-3 * y)
    return np.asarray(coefficients / scale)


def _choose_terms(features: pd.DataFrame, candidates: Sequence[str]) -> tuple[str, ...]:
    """The first terms that the shapes can tell apart, at most the number of shapes minus 3."""
    chosen: list[str] = []
    for term in candidates:
        if len(chosen) == len(features) - 3:
            break
        if term != "constant" and (term not in features or not (features[term] > 0).all()):
            continue
        X = _design(features, [*chosen, term])
        if np.linalg.matrix_rank(X / np.linalg.norm(X, axis=0), tol=1e-3) > len(chosen):
            chosen.append(term)
    return tuple(chosen)


def fit_costs(features: pd.DataFrame, cost: Floats, candidates: Sequence[str]) -> CostModel | None:
    """Fit the model to measured shapes, one row each; None for fewer than `MIN_SHAPES`, or if no term can be told."""
    if len(features) < MIN_SHAPES or not (terms := _choose_terms(features, candidates)):
        return None
    X = _design(features, terms)
    coefficients = _solve(X, cost)
    residuals = np.log(cost / (X @ coefficients))
    # Terms at 0 count too: in simulations, leaving them out covered 89 to 95% in place of 95%.
    df = len(cost) - len(terms)
    relative = X / (X @ coefficients)[:, None]
    inverse_gram = np.asarray(np.linalg.pinv(relative.T @ relative), dtype=float)
    held_out = []
    for row in range(len(cost)):
        others = np.arange(len(cost)) != row
        predicted = float(X[row] @ _solve(X[others], cost[others]))
        held_out.append(np.log(cost[row] / predicted) if predicted > 0 else np.inf)
    sigma = max(float(np.sqrt((residuals**2).sum() / df)), MIN_SIGMA)
    rms = float(np.sqrt(np.mean(np.square(held_out))))
    return CostModel(terms, coefficients, sigma, df, inverse_gram, rms, len(cost))


def costs_by_family(frame: pd.DataFrame, cost: Floats, candidates: Sequence[str]) -> Mapping[str, CostModel | str]:
    """Family -> its model, or why there is none. `frame` has `family` and the features of each measured shape.

    A family with fewer than `MIN_SHAPES` has the model of all families, unless these differ.
    """
    families = frame["family"].to_numpy()
    pooled = fit_costs(frame, cost, candidates)
    p = _p_of_equal_families(_design(frame, pooled.terms), cost, pooled, families) if pooled else 1.0
    models: dict[str, CostModel | str] = {}
    for family in dict.fromkeys(families):
        rows = families == family
        own = fit_costs(frame[rows], cost[rows], candidates)
        if own is not None:
            models[family] = own
        elif pooled is None:
            models[family] = f"{len(frame)} shapes were measured, and a model needs {MIN_SHAPES}"
        elif p < POOLING_LEVEL:
            reason = f"the families cost differently (p = {p:.2g}), and {int(rows.sum())} shapes of its own are too few"
            models[family] = f"{reason}: a model needs {MIN_SHAPES}"
        else:
            models[family] = CostModel(**{**vars(pooled), "is_pooled": len(set(families)) > 1})
    return models


def _p_of_equal_families(X: Floats, cost: Floats, pooled: CostModel, families: np.ndarray) -> float:
    """The p-value of an F test of the pooled model against one in which each family has its own factor on all costs."""
    names, family = np.unique(families, return_inverse=True)
    df_between, df = len(names) - 1, pooled.df - (len(names) - 1)
    if df_between < 1 or df < 1:
        return 1.0
    offsets = np.zeros(len(names))
    for _ in range(ALTERNATIONS):  # fit the terms for given factors, then the factors
        logs = np.log(cost / (X @ _solve(X, cost / np.exp(offsets[family]))))
        offsets = np.bincount(family, logs) / np.bincount(family)
        offsets -= offsets.mean()
    sse = max(float(((logs - (np.bincount(family, logs) / np.bincount(family))[family]) ** 2).sum()), MIN_SIGMA**2)
    sse_pooled = pooled.sigma**2 * pooled.df
    return float(stats.f.sf(max(sse_pooled / sse - 1, 0) * df / df_between, df_between, df))
