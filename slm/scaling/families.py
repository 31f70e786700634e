"""Do families share a law? Nested models of all families at once, and likelihood ratios with calibrated p-values.

    one_law            every coordinate shared
    efficiency         exponents and floor shared; each family uses N and D as if they were rho_N N and rho_D D
    shared_exponents   exponents shared, coefficients (and floor) each family's own
    separate           everything its own

Scatter is taken to be Gaussian in the log target, with one variance for all families. With few runs the chi-squared
approximation rejects too often, so each ratio is set against its distribution under the restricted model, simulated
(parametric bootstrap; Davison & Hinkley 1997, section 4.2).

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
from slm.scaling.sample import Sample
from slm.scaling.solver import FINE, Block, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts, is_linear, off_plateau

REFIT_STEPS = 60
"""Enough for all but refits along a flat valley, whose objective has long stopped to change."""
MODELS = ("one_law", "efficiency", "shared_exponents", "separate")


@dataclass(frozen=True)
class Families:
    """F families with the law fitted to each, in coordinates that are centred at the same place."""

    law: Law
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    refs: Floats

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

    def criteria(self) -> tuple[float, float]:
        """AICc and BIC, as `Fit.information_criteria`."""
        n, k = self.rows, len(self.phi) + 1
        deviance = n * (np.log(2 * np.pi * self.sse / n) + 1)
        aicc = deviance + 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.nan
        return float(aicc), float(deviance + k * np.log(n))


@dataclass(frozen=True)
class Ratio:
    """Likelihood ratio of a restricted model against a wider one.

    `p` is exact for linear laws (F test, `replicates` 0), else calibrated by simulation; `p_chi2` is the approximation.
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
    refs = np.concatenate([s.log_x for s in samples]).mean(axis=0)
    return Families(first.law, tuple(fits), samples, refs)


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
    """Test `restricted` against `wider`: n log(SSE_r / SSE_w), calibrated by data simulated under `restricted`."""
    n = restricted.rows
    df = len(wider.phi) - len(restricted.phi)
    statistic = max(0.0, n * float(np.log(restricted.sse / wider.sse)))
    p_chi2 = float(stats.chi2.sf(statistic, df))
    if is_linear(families.law):  # the ratio is a function of F, whose distribution is known
        spare = n - len(wider.phi)
        p = float(stats.f.sf(np.expm1(statistic / n) * spare / df, df, spare))
        return Ratio(restricted.model, wider.model, statistic, df, p, p_chi2, 0)
    blocks = families.blocks(restricted.matrices)
    fitted = np.concatenate(
        [b.law.log_value(b.theta(restricted.phi[None], np.zeros(1, int)), b.x_IV)[0] for b in blocks]
    )
    sigma = np.sqrt(restricted.sse / max(n - len(restricted.phi), 1))
    log_y = fitted + sigma * rng.standard_normal((replicates, n))
    one = _refit(families, restricted.matrices, log_y, restricted.theta)
    two = _refit(families, wider.matrices, log_y, restricted.theta)
    simulated = n * np.log(np.maximum(one, two) / two)
    p = (1 + int((simulated >= statistic * (1 - 1e-9)).sum())) / (replicates + 1)
    return Ratio(restricted.model, wider.model, statistic, df, p, p_chi2, replicates)


def _refit(families: Families, matrices: Sequence[Floats], log_y: Floats, theta: Floats) -> Floats:
    """Least sums of squares [B] of targets [B, I], from the coordinates [F, P] under which they were simulated.

    Families that share nothing are fitted apart, which is the same and much quicker.
    """
    low, high = _bounds(families, matrices)
    theta = off_plateau(families.law, families.pooled, theta)
    total = np.zeros(len(log_y))
    used = np.stack([matrix.any(axis=0) for matrix in matrices])
    blocks = families.blocks(matrices)
    apart = (used.sum(axis=0) == 1).all()
    for group in ([f] for f in range(len(blocks))) if apart else [range(len(blocks))]:
        columns = used[list(group)].any(axis=0)
        own = [replace(blocks[f], matrix=blocks[f].matrix[:, columns]) for f in group]
        start = np.linalg.pinv(np.vstack([b.matrix for b in own])) @ theta[list(group)].ravel()
        many = np.repeat(start[None], len(log_y), axis=0)
        bounds = low[columns], high[columns]
        total += 2 * minimise(own, log_y, many, bounds, tolerance=1e-6, max_steps=REFIT_STEPS).objective
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


def efficiency_factors(
    families: Families, joint: JointFit, replicates: int, rng: np.random.Generator, *, level: float = 0.95
) -> list[Factor]:
    """rho_N and rho_D of every family against the first, under the `efficiency` model.

    L = E + A / (rho N)^alpha has coefficient A rho^-alpha, so log rho is the difference of log coefficients over the
    exponent. The interval is +- t times the standard deviation over a parametric bootstrap of the joint model.
    """
    law, n = families.law, joint.rows
    df = n - len(joint.phi)
    if df < 1:
        return []
    sigma = np.sqrt(joint.sse / df)
    blocks = families.blocks(joint.matrices)
    fitted = np.concatenate([b.law.log_value(b.theta(joint.phi[None], np.zeros(1, int)), b.x_IV)[0] for b in blocks])
    many = np.repeat(joint.phi[None], replicates, axis=0)
    log_y = fitted + sigma * rng.standard_normal((replicates, n))
    draws = minimise(blocks, log_y, many, _bounds(families, joint.matrices), tolerance=1e-6).phi
    reach = stats.t.ppf(0.5 + level / 2, df)
    names = list(law.parameters)
    coefficients = [j for j, name in enumerate(names) if name not in law.exponents and j != law.floor]
    found = []
    for v, (variable, j) in enumerate(zip(law.variables, coefficients, strict=True)):
        k = None if law.name == "kaplan_joint" and variable == "D" else len(names) - len(law.exponents) + v
        for f in range(1, len(families.names)):
            theta = [np.concatenate([[joint.theta[g]], draws @ joint.matrices[g].T]) for g in (0, f)]
            log_rho = (theta[0][:, j] - theta[1][:, j]) / (1.0 if k is None else theta[0][:, k])
            centre, spread = log_rho[0], reach * log_rho[1:].std(ddof=1)
            with np.errstate(over="ignore"):
                ends = np.exp([centre, centre - spread, centre + spread])
            found.append(Factor(families.names[f], families.names[0], variable, *map(float, ends)))
    return found
