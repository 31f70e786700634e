"""Fit one law to one sample, and certify it: what was reached, from how many starts, and whether it means anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

from slm.scaling.forms import Floats
from slm.scaling.laws import Law, get_law
from slm.scaling.sample import HasFrame, Sample, Unit, take_sample
from slm.scaling.solver import FINE, Block, Loss, Optimum, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts

ROUNDING = 1e-9
"""A scatter of log targets below this is that of numbers as they are written, not of runs."""
AGREEMENT = 1e-6
"""Two starts agree if their objectives differ by less than this, relatively."""


@dataclass(frozen=True)
class Certificate:
    """What a fit's numbers rest on."""

    objective: float
    """Sum of losses of the log residuals."""
    starts: int
    starts_agreeing: float
    """Share of starts that reach the objective."""
    gradient_norm: float
    """Of the objective at the optimum, in units of the data (0 is exact)."""
    condition_number: float
    """Of the curvature, after scaling its diagonal to 1."""
    converged: bool
    at_bound: tuple[str, ...]
    """Parameters that ended at a bound, so that their value is the bound's."""


@dataclass(frozen=True)
class Fit:
    """A law fitted to a sample by `loss`. Estimates are valid for the range of the sample."""

    law: Law
    sample: Sample
    loss: Loss
    theta: Floats
    """[P], coordinates (see `slm.scaling.laws`)."""
    certificate: Certificate

    @property
    def params(self) -> dict[str, float]:
        """The parameters as quoted."""
        quoted = self.law.canonical(self.theta[None], self.sample.refs)[0]
        return dict(zip(self.law.parameters, quoted.tolist(), strict=True))

    @property
    def degrees_of_freedom(self) -> int:
        """Rows less parameters."""
        return len(self.sample.log_y) - len(self.theta)

    @property
    def residuals(self) -> Floats:
        """log y - log L [I]."""
        return self.sample.log_y - self.law.log_value(self.theta[None], self.sample.centred)[0]

    @property
    def sse(self) -> float:
        """Sum of squared log residuals."""
        return float((self.residuals**2).sum())

    @property
    def sigma(self) -> float:
        """Standard deviation of a row's log target about the law, NaN without degrees of freedom."""
        df = self.degrees_of_freedom
        return float(np.sqrt(self.sse / df)) if df > 0 else np.nan

    @property
    def exact(self) -> bool:
        """Whether all rows lie on the law to rounding, so that there is no scatter to infer anything from."""
        return bool(np.sqrt(self.sse / len(self.sample.log_y)) < ROUNDING)

    @property
    def r2(self) -> float:
        """Share of the variance of the log target that the law explains."""
        spread = float(((self.sample.log_y - self.sample.log_y.mean()) ** 2).sum())
        return 1 - self.sse / spread if spread > 0 else np.nan

    @property
    def jacobian(self) -> Floats:
        """Derivatives of the fitted log values [I, P]; zero along coordinates that ended at a bound."""
        free = np.array([name not in self.certificate.at_bound for name in self.law.parameters])
        return np.asarray(self.law.derivatives(self.theta[None], self.sample.centred)[1][0].T * free)

    @property
    def covariance(self) -> Floats:
        """sigma^2 times the inverse curvature of the squared loss [P, P]: exact for linear laws, else the delta method.

        Coordinates at a bound have none (NaN). Where the curvature is not positive, as it may be away from the least
        squares, its first-order part stands in.
        """
        free = np.array([name not in self.certificate.at_bound for name in self.law.parameters])
        _, jacobian, curvature = self.law.derivatives(self.theta[None], self.sample.centred)
        first = (jacobian[0] @ jacobian[0].T)[np.ix_(free, free)]
        hessian = first - curvature(self.residuals[None])[0][np.ix_(free, free)]
        if free.any() and np.linalg.eigvalsh(hessian)[0] <= 0:
            hessian = first
        covariance = np.full((len(free), len(free)), np.nan)
        covariance[np.ix_(free, free)] = self.sigma**2 * np.linalg.pinv(hessian, hermitian=True)
        return covariance

    def log_value(self, log_x: Floats) -> Floats:
        """log L at log variables [M, V], not centred."""
        return self.law.log_value(self.theta[None], log_x - self.sample.refs)[0]

    def information_criteria(self) -> tuple[float, float]:
        """AICc and BIC (Burnham & Anderson 2002, section 7.4); NaN where undefined. See `criteria`."""
        return criteria([self])


def criteria(fits: Sequence[Fit]) -> tuple[float, float]:
    """AICc and BIC of one law fitted to one or more samples, with one scatter for all; NaN where undefined.

    They compare laws on the same rows and target, by the likelihood of the loss that was minimised (see `deviance`).
    The scatter counts as a parameter, and so does the correlation of rows that belong together.
    """
    n = sum(len(fit.sample.log_y) for fit in fits)
    k = sum(len(fit.theta) for fit in fits) + 1 + (not all(fit.sample.independent for fit in fits))
    least = deviance(fits)
    aicc = least + 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.nan
    return float(aicc), float(least + k * np.log(n))


def deviance(fits: Sequence[Fit]) -> float:
    """-2 log likelihood of the residuals at the best scatter, the same for all fits; NaN without scatter.

    Least squares: Gaussian, rows of one cluster equally correlated. Huber's loss: the density proportional to
    exp(-loss / scale), whose flat tails Laplace's also has; where rows share clusters, scaled down to the number of
    independent rows that their correlation leaves.
    """
    loss = fits[0].loss
    residuals = np.concatenate([loss.residuals(fit.residuals, fit.sample.log_y) for fit in fits])
    n = len(residuals)
    if not (residuals**2).sum() > 0:
        return np.nan
    clusters, offset = [], 0
    for fit in fits:
        clusters.append(np.unique(fit.sample.clusters, return_inverse=True)[1] + offset)
        offset = int(clusters[-1].max()) + 1
    groups = np.concatenate(clusters)
    sums, counts = np.bincount(groups, residuals), np.bincount(groups)

    def correlated(rho: float) -> float:
        """Gaussian, with correlation rho within clusters: eigenvalues 1 - rho and 1 + (m - 1) rho of each block."""
        wide = 1 + (counts - 1) * rho
        within = (residuals**2).sum() - (sums**2 / counts).sum()
        variance = (within / (1 - rho) + (sums**2 / counts / wide).sum()) / n
        logs = ((counts - 1) * np.log(1 - rho) + np.log(wide)).sum()
        return float(n * (np.log(2 * np.pi * variance) + 1) + logs)

    independent = len(counts) == n
    rho = 0.0 if independent else optimize.minimize_scalar(correlated, bounds=(0, 0.999), method="bounded").x
    if np.isinf(loss.delta):
        return correlated(rho)
    return huber_deviance(residuals, loss) / (1 + float((counts**2).sum() / n - 1) * rho)


def huber_deviance(residuals: Floats, loss: Loss) -> float:
    """-2 log likelihood of the density proportional to exp(-loss / scale), at the best scale."""
    total, delta = float(loss.value(residuals).sum()), loss.delta

    def at(log_scale: float) -> float:
        scale = np.exp(log_scale)
        middle = np.sqrt(2 * np.pi * scale) * (2 * stats.norm.cdf(delta / np.sqrt(scale)) - 1)
        tails = 2 * scale / delta * np.exp(-(delta**2) / (2 * scale))
        return float(2 * len(residuals) * np.log(middle + tails) + 2 * total / scale)

    guess = np.log(total / len(residuals))
    return float(optimize.minimize_scalar(at, bracket=(guess - 1, guess + 1)).fun)


def single_block(law: Law, sample: Sample) -> Block:
    """All rows, all coordinates free."""
    P = len(law.parameters)
    return Block(law, sample.centred, np.arange(len(sample.log_y)), np.eye(P), np.zeros(P))


def refusal(law: Law, sample: Sample) -> str | None:
    """Why the law cannot be fitted to the sample at all, in words; None if it can."""
    P = len(law.parameters)
    for name, values in zip(law.variables, sample.log_x.T, strict=True):
        if np.ptp(values) < 1e-9:
            return f"not fitted: {name} has one value in all rows"
    if sample.points <= P:
        return (
            f"not fitted: {sample.points} distinct sizes for {P} parameters leave nothing to estimate the scatter from"
        )
    design = np.column_stack([np.ones(len(sample.log_x)), sample.centred / sample.centred.std(axis=0)])
    if len(law.variables) > 1 and np.linalg.svd(design, compute_uv=False)[-1] < 1e-3 * np.sqrt(len(design)):
        names = " and ".join(law.variables)
        return f"not fitted: {names} change in step with each other, so their effects cannot be told apart"
    return None


def fit_sample(law: Law, sample: Sample, *, loss: Loss = Loss()) -> Fit:  # noqa: B008 (frozen)
    """Minimise the loss of the log residuals from every start of a grid. `ValueError` where `refusal` has a reason."""
    reason = refusal(law, sample)
    if reason:
        raise ValueError(f"{law.name} {reason}")
    starts = grid_starts(law, sample)
    bounds = coordinate_bounds(law, sample)
    optimum = minimise([single_block(law, sample)], sample.log_y, starts, bounds, loss=loss, tolerance=FINE)
    return _certified(law, sample, loss, optimum, bounds)


def fit(
    table: HasFrame,
    law: str | Law,
    *,
    target: str = "loss",
    size: str = "params_total",
    loss: Loss = Loss(),  # noqa: B008
    unit: Unit = "cell",
) -> Fit:
    """Fit `law` to all rows of a results table: `fit(read_table("runs.csv"), "chinchilla").params`.

    `target` is loss (nats per token), bits_per_byte or perplexity; `size` says which column is N; `unit="run"` fits
    single runs instead of the means over seeds. Raises `ValueError` for missing columns, or a table that cannot hold
    the law.
    """
    law = get_law(law, columns=table.frame.columns) if isinstance(law, str) else law
    sample = take_sample(table, law, target, size, unit=unit)
    return fit_sample(law.at(sample.log_x), sample, loss=loss)


def _certified(law: Law, sample: Sample, loss: Loss, optimum: Optimum, bounds: tuple[Floats, Floats]) -> Fit:
    best = optimum.best
    theta, objective = optimum.phi[best], float(optimum.objective[best])
    agreeing = optimum.objective <= objective * (1 + AGREEMENT) + 1e-20
    margin = 1e-6
    stuck = (theta <= bounds[0] + margin) | (theta >= bounds[1] - margin)
    certificate = Certificate(
        objective=objective,
        starts=len(agreeing),
        starts_agreeing=float(agreeing.mean()),
        gradient_norm=float(optimum.gradient_norm[best]),
        condition_number=np.nan,
        converged=bool(optimum.converged[best]),
        at_bound=tuple(name for name, at in zip(law.parameters, stuck, strict=True) if at),
    )
    found = Fit(law, sample, loss, theta, certificate)
    return replace(found, certificate=replace(certificate, condition_number=_condition(found, ~stuck)))


def _condition(found: Fit, free: np.ndarray) -> float:
    jacobian = found.law.derivatives(found.theta[None], found.sample.centred)[1][0][free]
    length = np.linalg.norm(jacobian, axis=1, keepdims=True)
    if not (free.any() and np.isfinite(length).all() and (length > 0).all()):
        return np.inf
    singular = np.linalg.svd(jacobian / length, compute_uv=False)
    return float((singular[0] / singular[-1]) ** 2) if singular[-1] > 0 else np.inf


@dataclass(frozen=True)
class LackOfFit:
    """F test of the law against free means of the cells (Draper & Smith 1998, section 2.1)."""

    pure_sigma: float
    """Standard deviation of log targets between seeds of one cell."""
    pure_df: int
    f: float
    df: int
    p: float


def lack_of_fit(found: Fit, runs: Sample) -> LackOfFit | None:
    """Whether cells deviate from the law by more than seeds deviate from each other; None without repeated cells.

    `found` is fitted to the cells' means or to single runs, `runs` are the single runs.
    """
    cells, inverse, counts = np.unique(runs.cells, return_inverse=True, return_counts=True)
    pure_df = len(inverse) - len(cells)
    df = len(cells) - len(found.theta)
    if pure_df < 1 or df < 1:
        return None
    means = np.bincount(inverse, runs.log_y) / counts
    pure = float(((runs.log_y - means[inverse]) ** 2).sum())
    if pure <= 0 or found.exact:
        return None
    fitted = found.log_value(runs.log_x)
    f = (float(((means[inverse] - fitted) ** 2).sum()) / df) / (pure / pure_df)
    return LackOfFit(float(np.sqrt(pure / pure_df)), pure_df, float(f), df, float(stats.f.sf(f, df, pure_df)))
