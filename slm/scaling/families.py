"""Do families share a law? Nested models of all families at once, and likelihood ratios with calibrated p-values.

    one_law            every coordinate shared
    efficiency         exponents and floor shared; each family uses N and D as if they were rho_N N and rho_D D
    shared_exponents   exponents shared, coefficients (and floor) each family's own
    separate           everything its own

Fits are least squares of log residuals. With few runs the chi-squared approximation rejects too often, and with
families that scatter unalike so does F, so each ratio is set against its distribution under the restricted model,
simulated with every family's own scatter (parametric bootstrap; Davison & Hinkley 1997, section 4.2).

Axes as in `slm.scaling.solver`; F families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from slm.scaling.fitting import Fit
from slm.scaling.forms import Floats
from slm.scaling.laws import Law
from slm.scaling.likelihood import Criteria, information_criteria
from slm.scaling.robust import cluster_error
from slm.scaling.sample import Sample
from slm.scaling.solver import FINE, Block, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts, off_plateau

REFIT_STEPS = 60
"""Enough for all but refits along a flat valley, whose objective has long stopped to change."""
MORE_STARTS = 3
"""Starts of a grid from which simulated data are fitted too."""
MODELS = ("one_law", "efficiency", "shared_exponents", "separate")


@dataclass(frozen=True)
class Families:
    """F families with the law fitted to each, in coordinates that are centred at the same place."""

    law: Law
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    refs: Floats
    sigmas: Floats
    """Scatter of each family about its own fit [F]."""

    @property
    def row_sigmas(self) -> Floats:
        """The family's scatter for every row [n]."""
        return np.repeat(self.sigmas, [len(sample.log_y) for sample in self.samples])

    @property
    def log_y(self) -> Floats:
        """All targets, family after family."""
        return np.concatenate([sample.log_y for sample in self.samples])

    @property
    def pooled(self) -> Sample:
        """All rows as one sample."""
        return Sample(
            self.log_y,
            np.concatenate([s.log_x for s in self.samples]),
            np.arange(len(self.log_y)),
            np.arange(len(self.log_y)),
            self.law.absolute,
        )

    def blocks(self, matrices: Sequence[Floats]) -> list[Block]:
        """One block a family."""
        ends = np.cumsum([len(s.log_y) for s in self.samples])
        zero = np.zeros(len(self.law.parameters))
        return [
            Block(self.law, s.log_x - self.refs, np.arange(end - len(s.log_y), end), matrix, zero)
            for s, end, matrix in zip(self.samples, ends, matrices, strict=True)
        ]


@dataclass(frozen=True)
class JointFit:
    """A nested model fitted to all families: free parameters [Q], coordinates [F, P]."""

    model: str
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


@dataclass(frozen=True)
class Ratio:
    """Likelihood ratio of a restricted model against a wider one.

    `p` is calibrated by simulation, or for linear laws without `replicates` from the F test, which is exact where
    families scatter alike; `p_chi2` is the approximation.
    """

    restricted: str
    wider: str
    statistic: float
    df: int
    p: float
    p_chi2: float
    replicates: int


def gather(fits: Mapping[str, Fit]) -> Families:
    """Families of separately fitted samples of one law."""
    first = next(iter(fits.values()))
    samples = tuple(fit.sample for fit in fits.values())
    sigmas = np.array([fit.sigma for fit in fits.values()])
    families = Families(first.law, tuple(fits), samples, samples[0].refs, sigmas)
    return replace(families, refs=families.pooled.refs)


def sharing(law: Law, families: int, model: str, *, shared: Sequence[str] = ()) -> tuple[Floats, ...]:
    """Matrices [P, Q] from free parameters to each family's coordinates.

    `model` is one of `MODELS`, or "share" with the names of the parameters that are `shared` (coefficients at the
    centre of the data).
    """
    names = list(law.parameters)
    common = {
        "one_law": set(names),
        "efficiency": {*law.exponents, *(() if law.floor is None else (names[law.floor],))},
        "shared_exponents": set(law.exponents),
        "separate": set(),
        "share": set(shared),
    }[model]
    matrices = [np.zeros((len(names), 0)) for _ in range(families)]
    for j, name in enumerate(names):
        unit = np.eye(len(names))[:, [j]]
        for owner in [None] if name in common else range(families):
            for f in range(families):
                matrices[f] = np.hstack([matrices[f], unit if owner in (None, f) else 0 * unit])
    return tuple(matrices)


def fit_joint(families: Families, model: str, *, shared: Sequence[str] = (), log_y: Floats | None = None) -> JointFit:
    """Fit a nested model from a grid of starts by least squares."""
    law, F = families.law, len(families.names)
    matrices = sharing(law, F, model, shared=shared)
    targets = families.log_y if log_y is None else log_y
    starts = _starts(families, matrices)
    bounds = _bounds(families, matrices)
    optimum = minimise(families.blocks(matrices), targets, starts, bounds, tolerance=FINE)
    best = optimum.best
    theta = np.stack([M @ optimum.phi[best] for M in matrices])
    agreeing = (optimum.objective <= optimum.objective[best] * (1 + 1e-6)).mean()
    return JointFit(
        model,
        matrices,
        optimum.phi[best],
        theta,
        2 * float(optimum.objective[best]),
        len(targets),
        float(agreeing),
        bool(optimum.converged[best]),
    )


def likelihood_ratio(
    families: Families, restricted: JointFit, wider: JointFit, replicates: int, rng: np.random.Generator
) -> Ratio:
    """Test `restricted` against `wider`: n log(SSE_r / SSE_w), calibrated by data simulated under `restricted`.

    Simulated data are fitted from several starts, as the observed are: from one alone, the wider model often stops
    short of its optimum, and the test rejects too often.
    """
    n = restricted.rows
    df = len(wider.phi) - len(restricted.phi)
    statistic = max(0.0, n * float(np.log(restricted.sse / wider.sse)))
    p_chi2 = float(stats.chi2.sf(statistic, df))
    if families.law.is_linear and not replicates:  # the ratio is a function of F
        spare = n - len(wider.phi)
        p = float(stats.f.sf(np.expm1(statistic / n) * spare / df, df, spare))
        return Ratio(restricted.model, wider.model, statistic, df, p, p_chi2, 0)
    blocks = families.blocks(restricted.matrices)
    fitted = np.concatenate(
        [b.law.log_value(b.theta(restricted.phi[None], np.zeros(1, int)), b.x_IV)[0] for b in blocks]
    )
    log_y = fitted + families.row_sigmas * rng.standard_normal((replicates, n))
    one = _refit(families, restricted.matrices, log_y, restricted.theta)
    two = _refit(families, wider.matrices, log_y, restricted.theta)
    simulated = n * np.log(np.maximum(one, two) / two)
    p = (1 + int((simulated >= statistic * (1 - 1e-9)).sum())) / (replicates + 1)
    return Ratio(restricted.model, wider.model, statistic, df, p, p_chi2, replicates)


def _refit(families: Families, matrices: Sequence[Floats], log_y: Floats, theta: Floats) -> Floats:
    """Least sums of squares [B] of targets [B, I], from the coordinates [F, P] under which they were simulated.

    Laws that are not linear are also started from some of the grid. Families that share nothing are fitted apart, which
    is the same and much quicker.
    """
    low, high = _bounds(families, matrices)
    theta = off_plateau(families.law, families.pooled, theta)
    grid = _starts(families, matrices)
    grid = grid[:0] if families.law.is_linear else grid[:: max(1, len(grid) // MORE_STARTS)]
    total = np.zeros(len(log_y))
    used = np.stack([matrix.any(axis=0) for matrix in matrices])
    blocks = families.blocks(matrices)
    apart = (used.sum(axis=0) == 1).all()
    for group in ([f] for f in range(len(blocks))) if apart else [range(len(blocks))]:
        columns = used[list(group)].any(axis=0)
        own = [replace(blocks[f], matrix=blocks[f].matrix[:, columns]) for f in group]
        warm = np.linalg.pinv(np.vstack([b.matrix for b in own])) @ theta[list(group)].ravel()
        bounds = low[columns], high[columns]
        reached = [
            minimise(own, log_y, many, bounds, tolerance=1e-6, max_steps=REFIT_STEPS).objective
            for start in (warm, *grid[:, columns])
            for many in [np.repeat(start[None], len(log_y), axis=0)]
        ]
        total += 2 * np.min(reached, axis=0)
    return total


def _starts(families: Families, matrices: Sequence[Floats]) -> Floats:
    """Grid starts of every family, brought to common coordinates and averaged where parameters are shared."""
    law = families.law
    own = [grid_starts(law, sample) for sample in families.samples]
    moved = [law.recentred(theta, s.refs, families.refs) for theta, s in zip(own, families.samples, strict=True)]
    stacked = np.concatenate(moved, axis=1)
    return stacked @ np.linalg.pinv(np.vstack(matrices)).T


def _bounds(families: Families, matrices: Sequence[Floats]) -> tuple[Floats, Floats]:
    low, high = coordinate_bounds(families.law, families.pooled)
    chosen = [int(np.argmax(np.vstack(matrices)[:, q])) % len(low) for q in range(matrices[0].shape[1])]
    return low[chosen], high[chosen]


@dataclass(frozen=True)
class Factor:
    """How many times the reference family's N (or D) a family is worth, with its interval."""

    family: str
    reference: str
    variable: str
    factor: float
    low: float
    high: float


def efficiency_factors(families: Families, joint: JointFit, *, level: float = 0.95) -> list[Factor]:
    """rho_N and rho_D of every family against the first, under the `efficiency` model.

    L = E + A / (rho N)^alpha has coefficient A rho^-alpha, so log rho is the difference of log coefficients over the
    exponent. The interval is t on the error that every family's own scatter leaves in that (Satterthwaite's degrees of
    freedom), or the cluster-robust error where rows share runs or shapes.
    """
    law, spare = families.law, [len(s.log_y) - len(families.law.parameters) for s in families.samples]
    if min(spare) < 1:
        return []
    blocks = families.blocks(joint.matrices)
    gradients = [law.derivatives(theta[None], b.x_IV)[1][0].T for theta, b in zip(joint.theta, blocks, strict=True)]
    jacobian = np.concatenate([one @ matrix for one, matrix in zip(gradients, joint.matrices, strict=True)])
    names = list(law.parameters)
    found = []
    for coefficient, ((variable, exponent), *_) in law.powers.items():
        j = names.index(coefficient)
        k = None if law.name == "kaplan_joint" and variable == "D" else names.index(exponent)
        for f in range(1, len(families.names)):
            unit = 1.0 if k is None else joint.theta[0][k]
            log_rho = (joint.theta[0][j] - joint.theta[f][j]) / unit
            slope = joint.matrices[0][j] - joint.matrices[f][j]
            slope = (slope - (0.0 if k is None else log_rho * joint.matrices[0][k])) / unit
            error, df = _error(families, joint, jacobian, slope, spare)
            reach = stats.t.ppf(0.5 + level / 2, df) * error
            with np.errstate(over="ignore"):
                ends = np.exp([log_rho, log_rho - reach, log_rho + reach])
            found.append(Factor(families.names[f], families.names[0], variable, *map(float, ends)))
    return found


def _error(
    families: Families, joint: JointFit, jacobian: Floats, vector: Floats, spare: Sequence[int]
) -> tuple[float, float]:
    """Standard error of `vector` @ phi and its degrees of freedom, every family with its own scatter."""
    if not all(sample.is_independent for sample in families.samples):
        fitted = [
            b.law.log_value(t[None], b.x_IV)[0]
            for t, b in zip(joint.theta, families.blocks(joint.matrices), strict=True)
        ]
        own = [np.unique(s.clusters, return_inverse=True)[1] for s in families.samples]
        shift = np.cumsum([0, *(int(one.max()) + 1 for one in own)])
        clusters = np.concatenate([one + by for one, by in zip(own, shift[:-1], strict=True)])
        return cluster_error(jacobian, families.log_y - np.concatenate(fitted), clusters, vector)
    weights = jacobian @ np.linalg.pinv(jacobian.T @ jacobian) @ vector
    ends = np.cumsum([len(s.log_y) for s in families.samples])[:-1]
    parts = np.array([(part**2).sum() for part in np.split(weights * families.row_sigmas, ends)])
    return float(np.sqrt(parts.sum())), float(parts.sum() ** 2 / (parts**2 / spare).sum())
