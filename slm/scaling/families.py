"""Test whether families share a law: fit nested models to all families together, and compare their likelihoods.

    one_law            all coordinates (parameters as they are fitted: see `slm.scaling.laws`) are shared
    efficiency         exponents and floor are shared; in each family, rho_N N and rho_D D take the place of N and D
    shared_exponents   exponents are shared; each family has its own coefficients (and floor)
    separate           nothing is shared

Models are fitted by least squares of log residuals. A test compares the likelihood ratio of two models with the ratios
for data simulated under the model that shares more, with every family's own scatter (parametric bootstrap; Davison &
Hinkley 1997, section 4.2). With few runs the chi-squared approximation rejects too often, and so does the F test if
families differ in scatter.

Axes: F families, I rows of all families, P coordinates of one family, Q free parameters, R simulated data sets.
"""

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

REFIT_STEPS = 60  # maximum; only refits along a flat valley, where the objective no longer changes, would take more
REFIT_GRID_STARTS = 3  # about this many; a refit also starts at the coordinates with which the data were simulated
MODELS = ("one_law", "efficiency", "shared_exponents", "separate")


@dataclass(frozen=True)
class Families:
    """F families with the law fitted to each, in coordinates with a common centre."""

    law: Law
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    sigmas: Floats  # scatter of each family about its own fit [F]

    @cached_property
    def pooled(self) -> Sample:
        """All rows as one sample, family after family."""
        log_y = np.concatenate([sample.log_y for sample in self.samples])
        log_x = np.concatenate([sample.log_x for sample in self.samples])
        rows = np.arange(len(log_y))
        return Sample(log_y, log_x, clusters=rows, cells=rows, is_uncentred=self.law.is_uncentred)

    @property
    def family_of_row(self) -> np.ndarray:
        """The index of each row's family [I]."""
        return np.repeat(np.arange(len(self.names)), [len(sample.log_y) for sample in self.samples])

    def blocks(self, matrices: Sequence[Floats]) -> list[Block]:
        """Return the rows of each family as a block of the solver, with the family's matrix (`sharing_matrices`)."""
        family_rows = [np.flatnonzero(self.family_of_row == f) for f in range(len(self.names))]
        centred, zero = self.pooled.centred, np.zeros(len(self.law.parameters))
        return [Block(self.law, centred[rows], rows, M, zero) for rows, M in zip(family_rows, matrices, strict=True)]

    def log_value(self, theta: Floats) -> Floats:
        """The log value [I] of each data row under the coordinates of its own family; `theta` is [F, P]."""
        values_FI = self.law.log_value(theta, self.pooled.centred)
        return values_FI[self.family_of_row, np.arange(len(self.family_of_row))]


@dataclass(frozen=True)
class JointFit:
    """A nested model fitted to all families: free parameters `phi` [Q], and coordinates `theta` [F, P]."""

    matrices: tuple[Floats, ...]  # of each family: its coordinates are matrix @ phi
    phi: Floats
    theta: Floats
    sse: float
    num_rows: int
    starts_agreeing: float  # share of the starts that reach the best objective
    converged: bool

    def criteria(self) -> Criteria:
        """AICc and BIC, assuming that all families have the same scatter."""
        deviance = self.num_rows * (np.log(2 * np.pi * self.sse / self.num_rows) + 1)
        return information_criteria(deviance, self.num_rows, len(self.phi) + 1)


def gather(fits: Mapping[str, Fit]) -> Families:
    """Gather the families to which one law was fitted separately."""
    samples = tuple(fit.sample for fit in fits.values())
    sigmas = np.array([fit.sigma for fit in fits.values()])
    return Families(next(iter(fits.values())).law, tuple(fits), samples, sigmas)


def sharing_matrices(law: Law, num_families: int, model: str) -> tuple[Floats, ...]:
    """Return one matrix [P, Q] per family, from the free parameters of `model` to the coordinates of the family."""
    names = list(law.parameters)
    floor = [] if law.floor is None else [names[law.floor]]
    exponents = list(law.exponents)
    shared_by_model = {"one_law": names, "efficiency": exponents + floor, "shared_exponents": exponents, "separate": []}
    # One column per free parameter: the index of its coordinate, and the family that owns it (None if it is shared).
    columns: list[tuple[int, int | None]] = []
    for j, name in enumerate(names):
        owners: Sequence[int | None] = [None] if name in shared_by_model[model] else range(num_families)
        columns += [(j, owner) for owner in owners]
    unit_columns = np.eye(len(names))[:, [j for j, _ in columns]]
    # The matrix of a family has zeros in the columns that belong to other families.
    return tuple(unit_columns * [owner in (None, f) for _, owner in columns] for f in range(num_families))


def fit_joint(families: Families, model: str) -> JointFit:
    """Fit a nested model from a grid of starts by least squares."""
    matrices = sharing_matrices(families.law, len(families.names), model)
    log_y = families.pooled.log_y
    starts, bounds = _starts(families, matrices), _bounds(families, matrices)
    optimum = minimise(families.blocks(matrices), log_y, starts, bounds, tolerance=FINE_TOLERANCE)
    phi, objective = optimum.phi[optimum.best], float(optimum.objective[optimum.best])
    theta = np.stack([M @ phi for M in matrices])
    agreeing = float((optimum.objective <= objective * (1 + 1e-6)).mean())
    converged = bool(optimum.converged[optimum.best])
    return JointFit(matrices, phi, theta, 2 * objective, len(log_y), starts_agreeing=agreeing, converged=converged)


def likelihood_ratio(
    families: Families, restricted: JointFit, wider: JointFit, replicates: int, rng: np.random.Generator
) -> dict[str, float]:
    """Test `restricted` against `wider`. The `statistic` is n log(SSE_r / SSE_w), with SSE_w of the wider model.

    `replicates` data sets are simulated under `restricted`. `p` is the share of data sets, counting the observed one,
    whose statistic is at least as large as the observed statistic. For linear laws and 0 replicates, `p` is from the F
    test, which is exact if families have equal scatter. `p_chi2` is the chi-squared approximation.
    """
    n, df = restricted.num_rows, len(wider.phi) - len(restricted.phi)
    statistic = max(0.0, n * float(np.log(restricted.sse / wider.sse)))
    if families.law.is_linear and not replicates:
        residual_df = n - len(wider.phi)
        F = np.expm1(statistic / n) * residual_df / df
        p = float(stats.f.sf(F, df, residual_df))
    else:
        noise = families.sigmas[families.family_of_row] * rng.standard_normal((replicates, n))
        log_y = families.log_value(restricted.theta) + noise
        sse_r = _refit(families, restricted.matrices, log_y, restricted.theta)
        sse_w = _refit(families, wider.matrices, log_y, restricted.theta)
        simulated = n * np.log(np.maximum(sse_r, sse_w) / sse_w)
        p = (1 + int((simulated >= statistic * (1 - 1e-9)).sum())) / (replicates + 1)
    p_chi2 = float(stats.chi2.sf(statistic, df))
    return {"statistic": statistic, "df": df, "p": p, "p_chi2": p_chi2, "replicates": replicates}


def _refit(families: Families, matrices: Sequence[Floats], log_y: Floats, theta: Floats) -> Floats:
    """Return the least sum of squares [R] of each simulated data set, a row of `log_y` [R, I].

    Fits start at the coordinates of the simulation, `theta` [F, P]. For nonlinear laws they also start at some points
    of the grid: from one start, the wider model often stops short of its optimum, and the test rejects too often.
    Families that share nothing are fitted one by one, which gives the same result and is much faster.
    """
    low, high = _bounds(families, matrices)
    theta = raise_small_terms(families.law, families.pooled, theta)
    grid = _starts(families, matrices)
    grid_step = max(1, len(grid) // REFIT_GRID_STARTS)
    grid = grid[:0] if families.law.is_linear else grid[::grid_step]  # [:0] is empty: no grid starts
    total, blocks = np.zeros(len(log_y)), families.blocks(matrices)
    is_used_FQ = np.stack([matrix.any(axis=0) for matrix in matrices])
    share_nothing = (is_used_FQ.sum(axis=0) == 1).all()
    group_size = 1 if share_nothing else len(blocks)  # families fitted together
    for group in np.arange(len(blocks)).reshape(-1, group_size):
        is_used_Q = is_used_FQ[group].any(axis=0)
        group_blocks = [replace(blocks[f], matrix=blocks[f].matrix[:, is_used_Q]) for f in group]
        simulated_phi = np.linalg.pinv(np.vstack([block.matrix for block in group_blocks])) @ theta[group].ravel()
        bounds = low[is_used_Q], high[is_used_Q]
        objectives = []
        for start in (simulated_phi, *grid[:, is_used_Q]):
            starts = np.repeat(start[None], len(log_y), axis=0)
            optimum = minimise(group_blocks, log_y, starts, bounds, tolerance=1e-6, max_steps=REFIT_STEPS)
            objectives.append(optimum.objective)
        total += 2 * np.min(objectives, axis=0)
    return total


def _starts(families: Families, matrices: Sequence[Floats]) -> Floats:
    """Return the grid starts of every family, moved to a common centre and averaged where parameters are shared."""
    law, refs = families.law, families.pooled.refs
    moved = [law.recentred(grid_starts(law, sample), sample.refs, refs) for sample in families.samples]
    return np.concatenate(moved, axis=1) @ np.linalg.pinv(np.vstack(matrices)).T


def _bounds(families: Families, matrices: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Return the bounds of each free parameter [Q]: those of the coordinate that the parameter sets."""
    low, high = coordinate_bounds(families.law, families.pooled)
    coordinate = np.argmax(np.vstack(matrices), axis=0) % len(low)  # the stacked matrices have P rows per family
    return low[coordinate], high[coordinate]


def efficiency_factors(families: Families, joint: JointFit, *, level: float = 0.95) -> list[dict[str, Any]]:
    """Return rho_N and rho_D of every family relative to the first, under the `efficiency` model.

    Each row has the `factor` on a `variable` by which a `family` differs from the first, the `reference`, with the
    interval `low` to `high`. In L = E + A / (rho N)^alpha the coefficient is A rho^-alpha, so log rho is the difference
    between the log coefficients of two families, divided by alpha. The interval uses Student's t. Its standard error
    follows from every family's own scatter or, if rows share runs or shapes, is cluster-robust.
    """
    law, names = families.law, list(families.law.parameters)
    if min(len(sample.log_y) for sample in families.samples) <= len(names):
        return []
    factors = []
    for coefficient, powers in law.powers.items():
        variable, exponent = powers[0]  # of the term's first power, such as N^-alpha
        j, k = names.index(coefficient), names.index(exponent)
        has_exponent = not (law.name.endswith("kaplan_joint") and variable == "D")  # D_c of this law scales as D does
        for f in range(1, len(families.names)):
            alpha = joint.theta[0][k] if has_exponent else 1.0
            log_rho = (joint.theta[0][j] - joint.theta[f][j]) / alpha
            gradient_Q = joint.matrices[0][j] - joint.matrices[f][j]
            if has_exponent:
                gradient_Q = gradient_Q - log_rho * joint.matrices[0][k]
            error, df = _error(families, joint, gradient_Q / alpha)
            half_width = stats.t.ppf(0.5 + level / 2, df) * error
            with np.errstate(over="ignore"):
                values = np.exp([log_rho, log_rho - half_width, log_rho + half_width]).tolist()
            row = {"family": families.names[f], "reference": families.names[0], "variable": variable}
            factors.append(row | dict(zip(("factor", "low", "high"), values, strict=True)))
    return factors


def _error(families: Families, joint: JointFit, vector: Floats) -> tuple[float, float]:
    """Return the standard error of `vector` [Q] @ phi, and the error's degrees of freedom (Satterthwaite)."""
    jacobians = []
    for theta, block in zip(joint.theta, families.blocks(joint.matrices), strict=True):
        _, gradient, _ = block.law.derivatives(theta[None], block.x_IV)
        jacobians.append(gradient[0].T @ block.matrix)
    jacobian_IQ = np.concatenate(jacobians)
    if not all(sample.is_independent for sample in families.samples):
        # Cluster numbers repeat between families, so give each pair of family and cluster its own number.
        pairs = np.stack([families.family_of_row, np.concatenate([sample.clusters for sample in families.samples])])
        clusters = np.unique(pairs, axis=1, return_inverse=True)[1].reshape(-1)
        residuals = families.pooled.log_y - families.log_value(joint.theta)
        return cluster_error(jacobian_IQ, residuals, clusters, vector)
    weights = jacobian_IQ @ np.linalg.pinv(jacobian_IQ.T @ jacobian_IQ) @ vector
    squares = (weights * families.sigmas[families.family_of_row]) ** 2
    variances = np.array([squares[families.family_of_row == f].sum() for f in range(len(families.names))])
    dfs = [len(sample.log_y) - len(families.law.parameters) for sample in families.samples]
    return float(np.sqrt(variances.sum())), float(variances.sum() ** 2 / (variances**2 / dfs).sum())
