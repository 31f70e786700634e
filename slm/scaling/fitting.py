"""Fit one law to one sample, with a certificate of the search: how many starts agree, and how well it converged."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from slm.scaling.forms import Floats, Law
from slm.scaling.laws import get_law
from slm.scaling.sample import Sample, Unit, take_sample
from slm.scaling.solver import FINE_TOLERANCE, Block, Loss, minimise
from slm.scaling.starts import coordinate_bounds, grid_starts
from slm.scaling.tables import Table

PATIENCE_OF_FITS = 60
"""A fit from many starts is given up for starts that take this many steps more than another: they follow a valley."""
ROUNDING = 1e-9  # a smaller scatter of log targets is rounding error, not noise of runs
SAME_RESULT = 1e-4  # results that differ by less, in logs, show rounding or one run: seeds of a run differ by over 0.1%
AGREEMENT = 1e-6  # a start reaches the best objective if the relative difference is at most this
BOUND_MARGIN = 1e-6  # a coordinate ended at a bound if its distance from the bound is at most this


@dataclass(frozen=True)
class Certificate:
    """How reliable the optimum of a fit is."""

    objective: float  # sum of the losses of the log residuals
    starts: int  # number of starts
    starts_agreeing: float  # share of starts that reach this objective
    gradient_norm: float  # of the objective at the optimum, scaled to the data (0 is exact)
    condition_number: float  # of the curvature, after scaling its diagonal to 1
    converged: bool
    at_bound: tuple[str, ...]  # parameters that ended at a bound of the search


@dataclass(frozen=True)
class Fit:
    """A law fitted to a sample under `loss`. It holds over the range of the sample."""

    law: Law
    sample: Sample
    loss: Loss
    theta: Floats  # coordinates [P] (see `slm.scaling.forms.Law`)
    certificate: Certificate

    @property
    def params(self) -> dict[str, float]:
        """The parameters as papers quote them."""
        quoted = self.law.canonical(self.theta[None], self.sample.refs)[0]
        return dict(zip(self.law.parameters, quoted.tolist(), strict=True))

    @property
    def degrees_of_freedom(self) -> int:
        """Rows minus parameters."""
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
        """Standard deviation of log targets around the law; NaN without degrees of freedom."""
        df = self.degrees_of_freedom
        return float(np.sqrt(self.sse / df)) if df > 0 else np.nan

    @property
    def is_exact(self) -> bool:
        """Whether all rows lie on the law up to rounding error, so that there is no scatter to compute intervals."""
        return bool(np.sqrt(self.sse / len(self.sample.log_y)) < ROUNDING)

    @property
    def r2(self) -> float:
        """Share of the variance of the log target that the law explains."""
        spread = float(((self.sample.log_y - self.sample.log_y.mean()) ** 2).sum())
        return 1 - self.sse / spread if spread > 0 else np.nan

    @property
    def is_free(self) -> np.ndarray:
        """Whether each coordinate [P] ended inside its bounds."""
        return np.array([name not in self.certificate.at_bound for name in self.law.parameters])

    @property
    def jacobian(self) -> Floats:
        """Derivatives of the fitted log values [I, P]; zero along coordinates that ended at a bound."""
        _, gradient_RPI, _ = self.law.derivatives(self.theta[None], self.sample.centred)
        return np.asarray(gradient_RPI[0].T * self.is_free)

    @property
    def covariance(self) -> Floats:
        """Covariance of the coordinates [P, P]: sigma^2 times the inverse curvature of the squared loss.

        It is exact for linear laws, approximate (delta method) for others, and NaN for coordinates at a bound. If the
        curvature is not positive, as it may be away from the optimum, only its first-order part is used.
        """
        free = np.ix_(self.is_free, self.is_free)
        _, gradient_RPI, curvature = self.law.derivatives(self.theta[None], self.sample.centred)
        first_order = (gradient_RPI[0] @ gradient_RPI[0].T)[free]
        residuals = self.residuals[None]
        hessian = curvature(-residuals, np.ones_like(residuals))[0][free]
        if len(hessian) and np.linalg.eigvalsh(hessian)[0] <= 0:
            hessian = first_order
        covariance = np.full((len(self.theta), len(self.theta)), np.nan)
        covariance[free] = self.sigma**2 * np.linalg.pinv(hessian, hermitian=True)
        return covariance

    def log_value(self, log_x: Floats) -> Floats:
        """log L at log variables [M, V], not centred."""
        return self.law.log_value(self.theta[None], log_x - self.sample.refs)[0]


def single_block(law: Law, sample: Sample) -> Block:
    """A block of all rows, with all coordinates as free parameters."""
    P = len(law.parameters)
    return Block(law, sample.centred, np.arange(len(sample.log_y)), np.eye(P), np.zeros(P))


def minimise_held(
    fit: Fit,
    vectors: Floats,
    values: Floats,
    starts: Floats,
    *,
    tolerance: float,
    max_steps: int = 200,
    rivals: int = 1,
) -> tuple[Floats, Floats]:
    """Refit from starts [R, P] with H linear functions of the coordinates held: `vectors` @ theta = `values`.

    Vectors are from `Law.projection`, [H, P] or [R, H, P]; `values` is [H] or [R, H]; for `rivals` see `minimise`.
    Returns coordinates [R, P] and objectives [R].
    """
    R, P = starts.shape
    vectors, values = np.broadcast_to(vectors, (R, *vectors.shape[-2:])), np.broadcast_to(values, (R, values.shape[-1]))
    H = vectors.shape[1]
    # Solve for coordinates `held`, where vectors have their first entry of 1: theta = offset + matrix @ theta[free].
    held = np.argmax(np.abs(vectors) > 0.5, axis=2)
    is_held = (np.arange(P) == held[:, :, None]).any(axis=1)
    free = np.argsort(is_held, axis=1, kind="stable")[:, : P - H]
    inverse = np.linalg.inv(np.take_along_axis(vectors, held[:, None], axis=2))
    of_replicate = np.arange(R)[:, None]
    matrix, offset = np.eye(P)[free].mT, np.zeros((R, P))
    matrix[of_replicate, held] = -np.matmul(inverse, np.take_along_axis(vectors, free[:, None], axis=2))
    offset[of_replicate, held] = np.matmul(inverse, values[:, :, None])[:, :, 0]
    block = replace(single_block(fit.law, fit.sample), matrix=matrix, offset=offset)
    low, high = (bound[free] for bound in coordinate_bounds(fit.law, fit.sample))
    optimum = minimise(
        [block],
        fit.sample.log_y,
        np.take_along_axis(starts, free, axis=1),
        (low, high),
        loss=fit.loss,
        tolerance=tolerance,
        max_steps=max_steps,
        rivals=rivals,
    )
    return offset + np.matmul(matrix, optimum.phi[:, :, None])[:, :, 0], optimum.objective


def refusal(law: Law, sample: Sample) -> str | None:
    """The reason why the law cannot be fitted to the sample; None if it can be fitted."""
    for name, values in zip(law.variables, sample.log_x.T, strict=True):
        if np.ptp(values) < 1e-9:
            return f"not fitted: {name} has one value in all rows"
    if sample.num_points <= len(law.parameters):
        counts = f"{sample.num_points} distinct sizes for {len(law.parameters)} parameters"
        return f"not fitted: {counts} leave nothing to estimate the scatter from"
    if np.ptp(sample.log_y) < SAME_RESULT:
        return "not fitted: all results are equal, to within 0.01%; a law needs runs whose results differ"
    if len(law.variables) > 1:
        design = np.column_stack([np.ones(len(sample.log_x)), sample.centred / sample.centred.std(axis=0)])
        smallest_singular_value = np.linalg.svd(design, compute_uv=False)[-1]
        if smallest_singular_value < 1e-3 * np.sqrt(len(design)):
            return f"not fitted: {' and '.join(law.variables)} change together, so their effects cannot be separated"
    return None


def fit_sample(law: Law, sample: Sample, *, loss: Loss = Loss()) -> Fit:  # noqa: B008 (frozen)
    """Minimise the loss of the log residuals from every start of a grid. Raises `ValueError` with the `refusal`."""
    if reason := refusal(law, sample):
        raise ValueError(f"{law.name} {reason}")
    low, high = coordinate_bounds(law, sample)
    starts, block = grid_starts(law, sample), single_block(law, sample)
    optimum = minimise(
        [block],
        sample.log_y,
        starts,
        (low, high),
        loss=loss,
        tolerance=FINE_TOLERANCE,
        rivals=len(starts),
        patience=PATIENCE_OF_FITS,
    )
    best = optimum.best
    theta, objective = optimum.phi[best], float(optimum.objective[best])
    max_objective = objective * (1 + AGREEMENT) + 1e-20  # of starts that agree; 1e-20 allows for objectives of 0
    is_at_bound = (theta <= low + BOUND_MARGIN) | (theta >= high - BOUND_MARGIN)
    _, gradient_RPI, _ = law.derivatives(theta[None], sample.centred)
    certificate = Certificate(
        objective=objective,
        starts=len(starts),
        starts_agreeing=float((optimum.objective <= max_objective).mean()),
        gradient_norm=float(optimum.gradient_norm[best]),
        condition_number=_condition_number(gradient_RPI[0][~is_at_bound]),
        converged=bool(optimum.converged[best]),
        at_bound=tuple(np.array(law.parameters)[is_at_bound].tolist()),
    )
    return Fit(law, sample, loss, theta, certificate)


def _condition_number(gradient: Floats) -> float:
    """Condition number of the curvature of the squared loss, from the gradients [free, I] of free coordinates."""
    lengths = np.linalg.norm(gradient, axis=1, keepdims=True)
    if not (len(gradient) and np.isfinite(lengths).all() and (lengths > 0).all()):
        return np.inf
    singular_values = np.linalg.svd(gradient / lengths, compute_uv=False)
    return float((singular_values[0] / singular_values[-1]) ** 2) if singular_values[-1] > 0 else np.inf


def fit(
    table: Table,
    law: str | Law,
    *,
    target: str = "loss",
    size: str = "params_total",
    loss: Loss = Loss(),  # noqa: B008
    unit: Unit = "cell",
) -> Fit:
    """Fit `law` to all rows of a table: `fit(read_table("runs.csv"), "chinchilla").params`.

    `target` is loss (nats per token), bits_per_byte or perplexity; `size` is the column of N; `unit="run"` fits single
    runs instead of the means over seeds. Raises `ValueError` for missing columns or too few sizes.
    """
    law = get_law(law, columns=table.frame.columns) if isinstance(law, str) else law
    sample = take_sample(table, law, target, size, unit=unit)
    return fit_sample(law.prepared_for(sample.log_x), sample, loss=loss)


@dataclass(frozen=True)
class LackOfFit:
    """F test of the law against a free mean per cell (Draper & Smith 1998, section 2.1)."""

    pure_sigma: float  # standard deviation of log targets between seeds of one cell
    pure_df: int  # runs minus cells
    f: float
    df: int  # cells minus parameters
    p: float


def lack_of_fit(fitted: Fit, runs: Sample) -> LackOfFit | None:
    """Test if cells deviate from the law by more than seeds deviate from each other.

    `fitted` was fitted to means of cells or to single runs; `runs` are the single runs. None if nothing can be tested.
    """
    means, cell_of_row, pure_squares = runs.by_cell()
    pure_df, df = len(cell_of_row) - len(means), len(means) - len(fitted.theta)
    if pure_df < 1 or df < 1 or pure_squares <= 0 or fitted.is_exact:
        return None
    lack_squares = float(((means[cell_of_row] - fitted.log_value(runs.log_x)) ** 2).sum())
    f = (lack_squares / df) / (pure_squares / pure_df)
    pure_sigma, p = float(np.sqrt(pure_squares / pure_df)), float(stats.f.sf(f, df, pure_df))
    return LackOfFit(pure_sigma=pure_sigma, pure_df=pure_df, f=float(f), df=df, p=p)
