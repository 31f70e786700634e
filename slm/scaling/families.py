"""Do families share a law? Nested models of all families at once, and likelihood ratios with calibrated p-values.

    one_law            all coordinates are shared
    efficiency         exponents and floor are shared; each family uses N and D as if they were rho_N N and rho_D D
    shared_exponents   exponents are shared; each family has its own coefficients (and floor)
    separate           nothing is shared

Fits are least squares of log residuals. With few runs the chi-squared approximation rejects too often, and so does F
if families differ in scatter, so each ratio is compared with its distribution under the restricted model, simulated
with every family's own scatter (parametric bootstrap; Davison & Hinkley 1997, section 4.2).

Axes as in `slm.scaling.solver`; F families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from slm.scaling.clusters import cluster_error
from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.laws import Law
from slm.scaling.likelihood import Criteria, information_criteria
from slm.scaling.sample import Sample
from slm.scaling.solver import FINE_TOLERANCE, Block, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts, raise_small_terms

REFIT_STEPS = 60
"""Enough for all refits but those along a flat valley, where the objective no longer changes."""
GRID_REFITS = 3
"""Starts of the grid from which simulated data are fitted too."""
MODELS = ("one_law", "efficiency", "shared_exponents", "separate")


@dataclass(frozen=True)
class Families:
    """F families with the law fitted to each, in coordinates with a common centre."""

    law: Law
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    sigmas: Floats
    """Scatter of each family about its own fit [F]."""

    @cached_property
    def pooled(self) -> Sample:
        """All rows as one sample, family after family."""
        log_y, log_x = (np.concatenate([getattr(s, name) for s in self.samples]) for name in ("log_y", "log_x"))
        rows = np.arange(len(log_y))
        return Sample(log_y, log_x, rows, rows, self.law.is_uncentred)

    @property
    def family(self) -> np.ndarray:
        """The family of each row [n]."""
        return np.repeat(np.arange(len(self.names)), [len(sample.log_y) for sample in self.samples])

    def blocks(self, matrices: Sequence[Floats]) -> list[Block]:
        """One block a family."""
        zero = np.zeros(len(self.law.parameters))
        rows = [np.flatnonzero(self.family == f) for f in range(len(self.names))]
        return [Block(self.law, self.pooled.centred[own], own, M, zero) for own, M in zip(rows, matrices, strict=True)]

    def fitted(self, theta: Floats) -> Floats:
        """Log values [n] of all rows at coordinates [F, P]."""
        values = self.law.log_value(theta, self.pooled.centred)
        return values[self.family, np.arange(len(self.family))]


@dataclass(frozen=True)
class JointFit:
    """A nested model fitted to all families: free parameters [Q], coordinates [F, P]."""

    matrices: tuple[Floats, ...]
    phi: Floats
    theta: Floats
    sse: float
    rows: int
    starts_agreeing: float
    converged: bool

    def criteria(self) -> Criteria:
        """AICc and BIC, with one scatter for all families."""
        deviance = self.rows * (np.log(2 * np.pi * self.sse / self.rows) + 1)
        return information_criteria(deviance, self.rows, len(self.phi) + 1)


def gather(fits: Mapping[str, Fit]) -> Families:
    """Families of separately fitted samples of one law."""
    samples, sigmas = tuple(fit.sample for fit in fits.values()), np.array([fit.sigma for fit in fits.values()])
    return Families(next(iter(fits.values())).law, tuple(fits), samples, sigmas)


def sharing(law: Law, families: int, model: str) -> tuple[Floats, ...]:
    """Matrices [P, Q] from the free parameters of a model of `MODELS` to each family's coordinates."""
    names = list(law.parameters)
    floor = [] if law.floor is None else [names[law.floor]]
    shared_by_model = dict(zip(MODELS, (names, [*law.exponents, *floor], law.exponents, []), strict=True))
    shared = shared_by_model[model]
    # A column for each free parameter: which coordinate it is, and of which family (None: of all).
    columns = [(j, f) for j, name in enumerate(names) for f in ([None] if name in shared else range(families))]
    units = np.eye(len(names))[:, [j for j, _ in columns]]
    return tuple(units * [owner in (None, f) for _, owner in columns] for f in range(families))


def fit_joint(families: Families, model: str) -> JointFit:
    """Fit a nested model from a grid of starts by least squares."""
    matrices, log_y = sharing(families.law, len(families.names), model), families.pooled.log_y
    starts, bounds = _starts(families, matrices), _bounds(families, matrices)
    optimum = minimise(families.blocks(matrices), log_y, starts, bounds, tolerance=FINE_TOLERANCE)
    phi, objective = optimum.phi[optimum.best], float(optimum.objective[optimum.best])
    theta = np.stack([M @ phi for M in matrices])
    agreeing = float((optimum.objective <= objective * (1 + 1e-6)).mean())
    return JointFit(matrices, phi, theta, 2 * objective, len(log_y), agreeing, bool(optimum.converged[optimum.best]))


def likelihood_ratio(
    families: Families, restricted: JointFit, wider: JointFit, replicates: int, rng: np.random.Generator
) -> dict[str, float]:
    """Test `restricted` against `wider` by n log(SSE_r / SSE_w): `statistic`, `df`, `p`, `p_chi2` and `replicates`.

    `p` is calibrated by data simulated under `restricted`. They are fitted from several starts, as the observed data
    are: from one start, the wider model often stops short of its optimum, and the test rejects too often. For linear
    laws without `replicates`, `p` is that of the F test, which is exact if families scatter equally. `p_chi2` is the
    approximation.
    """
    n, df = restricted.rows, len(wider.phi) - len(restricted.phi)
    statistic = max(0.0, n * float(np.log(restricted.sse / wider.sse)))
    if families.law.is_linear and not replicates:  # the ratio is a function of F
        spare = n - len(wider.phi)
        p = float(stats.f.sf(np.expm1(statistic / n) * spare / df, df, spare))
    else:
        noise = families.sigmas[families.family] * rng.standard_normal((replicates, n))
        log_y = families.fitted(restricted.theta) + noise
        sse_r, sse_w = (_refit(families, m.matrices, log_y, restricted.theta) for m in (restricted, wider))
        simulated = n * np.log(np.maximum(sse_r, sse_w) / sse_w)
        p = (1 + int((simulated >= statistic * (1 - 1e-9)).sum())) / (replicates + 1)
    p_chi2 = float(stats.chi2.sf(statistic, df))
    return {"statistic": statistic, "df": df, "p": p, "p_chi2": p_chi2, "replicates": replicates}


def _refit(families: Families, matrices: Sequence[Floats], log_y: Floats, theta: Floats) -> Floats:
    """Least sums of squares [B] of targets [B, I], from the coordinates [F, P] under which they were simulated.

    Laws that are not linear are also started from some of the grid. Families that share nothing are fitted one by one,
    which gives the same result and is much faster.
    """
    low, high = _bounds(families, matrices)
    theta = raise_small_terms(families.law, families.pooled, theta)
    grid = _starts(families, matrices)
    grid = grid[:0] if families.law.is_linear else grid[:: max(1, len(grid) // GRID_REFITS)]
    total, blocks = np.zeros(len(log_y)), families.blocks(matrices)
    is_used = np.stack([matrix.any(axis=0) for matrix in matrices])  # [F, Q]
    share_nothing = (is_used.sum(axis=0) == 1).all()
    for group in np.arange(len(blocks)).reshape(-1, 1 if share_nothing else len(blocks)):
        columns = is_used[group].any(axis=0)
        group_blocks = [replace(blocks[f], matrix=blocks[f].matrix[:, columns]) for f in group]
        warm = np.linalg.pinv(np.vstack([block.matrix for block in group_blocks])) @ theta[group].ravel()
        bounds = low[columns], high[columns]
        objectives = []
        for start in (warm, *grid[:, columns]):
            starts = np.repeat(start[None], len(log_y), axis=0)
            optimum = minimise(group_blocks, log_y, starts, bounds, tolerance=1e-6, max_steps=REFIT_STEPS)
            objectives.append(optimum.objective)
        total += 2 * np.min(objectives, axis=0)
    return total


def _starts(families: Families, matrices: Sequence[Floats]) -> Floats:
    """Grid starts of every family, moved to common coordinates and averaged where parameters are shared."""
    law, refs = families.law, families.pooled.refs
    moved = [law.recentred(grid_starts(law, sample), sample.refs, refs) for sample in families.samples]
    return np.concatenate(moved, axis=1) @ np.linalg.pinv(np.vstack(matrices)).T


def _bounds(families: Families, matrices: Sequence[Floats]) -> tuple[Floats, Floats]:
    low, high = coordinate_bounds(families.law, families.pooled)
    coordinate = np.argmax(np.vstack(matrices), axis=0) % len(low)
    return low[coordinate], high[coordinate]


def efficiency_factors(families: Families, joint: JointFit, *, level: float = 0.95) -> list[dict[str, Any]]:
    """rho_N and rho_D of every family against the first, under the `efficiency` model.

    A row has the `factor` on `variable` by which `family` differs from the `reference`, and its interval, `low` to
    `high`. L = E + A / (rho N)^alpha has coefficient A rho^-alpha, so log rho is the difference of log coefficients
    over the exponent. The interval is Student's t with the error that follows from every family's own scatter
    (Satterthwaite's degrees of freedom), or with the cluster-robust error if rows share runs or shapes.
    """
    law, names = families.law, list(families.law.parameters)
    if min(len(sample.log_y) for sample in families.samples) <= len(names):
        return []
    factors = []
    for coefficient, ((variable, exponent), *_) in law.powers.items():
        j = names.index(coefficient)
        k = None if law.name == "kaplan_joint" and variable == "D" else names.index(exponent)
        for f in range(1, len(families.names)):
            unit = 1.0 if k is None else joint.theta[0][k]
            log_rho = (joint.theta[0][j] - joint.theta[f][j]) / unit
            slope = joint.matrices[0][j] - joint.matrices[f][j]
            slope = (slope - (0.0 if k is None else log_rho * joint.matrices[0][k])) / unit
            error, df = _error(families, joint, slope)
            reach = stats.t.ppf(0.5 + level / 2, df) * error
            with np.errstate(over="ignore"):
                values = np.exp([log_rho, log_rho - reach, log_rho + reach]).tolist()
            row = {"family": families.names[f], "reference": families.names[0], "variable": variable}
            factors.append(row | dict(zip(("factor", "low", "high"), values, strict=True)))
    return factors


def _error(families: Families, joint: JointFit, vector: Floats) -> tuple[float, float]:
    """Standard error of `vector` @ phi and its degrees of freedom, every family with its own scatter."""
    blocks = zip(joint.theta, families.blocks(joint.matrices), strict=True)
    jacobian = np.concatenate([b.law.derivatives(theta[None], b.x_IV)[1][0].T @ b.matrix for theta, b in blocks])
    if not all(sample.is_independent for sample in families.samples):
        own = np.concatenate([sample.clusters for sample in families.samples])
        clusters = np.unique(np.stack([families.family, own]), axis=1, return_inverse=True)[1].reshape(-1)
        return cluster_error(jacobian, families.pooled.log_y - families.fitted(joint.theta), clusters, vector)
    weights = jacobian @ np.linalg.pinv(jacobian.T @ jacobian) @ vector
    squares = (weights * families.sigmas[families.family]) ** 2
    variances = np.array([squares[families.family == f].sum() for f in range(len(families.names))])
    dfs = [len(sample.log_y) - len(families.law.parameters) for sample in families.samples]
    return float(np.sqrt(variances.sum())), float(variances.sum() ** 2 / (variances**2 / dfs).sum())
