"""Laws of the error of a task that are bounded by chance and by one: any law M, behind a link.

With chance c, the accuracy is c + (1 - c) z(M) and the error (1 - c) (1 - z(M)), where M > 0 is any other law and z is

    logistic      z = 1 / (1 + M)    a sigmoid of log M, which for M = A N^-alpha is a line in log N
    exponential   z = exp(-M)        exponential in a loss M (Gadre et al. 2024, arXiv:2403.08540, equation 5)

M -> infinity gives chance, M -> 0 gives one, and a floor E of M gives an accuracy below one that no size exceeds. The
parameters, exponents and floor are those of M. `TaskLossLaw` is the M of a sigmoid in the task loss: the second step of
Bhagia et al. 2024 (arXiv:2412.04403).

Notable: residuals are those of arcsin sqrt(error). The standard error of an accuracy p over n items is
sqrt(p (1 - p) / n), on this scale 1 / (2 sqrt(n)) at any p (Anscombe 1948). In logs of the error it would double from
p = 0.45 to 0.8, and intervals of larger sizes would cover too little; the error's own falls, and they would cover too
much. Differences on this scale are those of accuracies divided by 2 sqrt(p (1 - p)): 1 at 0.5, 0.8 at 0.2 and 0.8.
Axes: see `slm.scaling.forms`.
"""

from collections.abc import Mapping

import numpy as np

from slm.scaling.forms import EXPONENT_BOUNDS, GRIDS, Curvature, Floats, Law, SumOfPowers, Term

LINKS = {"logistic": "M/(1 + M)", "exponential": "(1 - exp(-M))"}
"""Name of a link -> the error over 1 - chance, as a function of M."""
MAX_SHARE = 0.99
"""An error is taken to be from 1% to 99% of 1 - chance where a search starts: beyond chance M would be infinite."""
TINY = 1e-150  # whose square is not 0
USUAL_SPAN = 4.0  # of log N in a table, for which `GRIDS` and `EXPONENT_BOUNDS` were chosen


def to_angle(error: Floats) -> Floats:
    """arcsin sqrt(error), in radians from 0 to pi/2: the scale of residuals."""
    return np.asarray(np.arcsin(np.sqrt(error)))


def from_angle(angle: Floats) -> Floats:
    """The error of an angle. An interval may reach beyond 0 or pi/2, an error cannot leave its range from 0 to 1."""
    return np.asarray(np.sin(np.clip(angle, 0, np.pi / 2)) ** 2)


def unbounded_name(law: str) -> str:
    """The name of the law M in the name of a bounded law: `power` for `logistic_power`; other names as they are."""
    link, _, inner = law.partition("_")
    return inner if link in LINKS else law


class Bounded(Law):
    """The error of a task, with an accuracy between `chance` and one, as a function of the law `inner` (M).

    `log_value` is the angle of the error (`to_angle`), not its log, and so is the scale of residuals.
    """

    is_linear = False

    def __init__(self, inner: Law, link: str, chance: float) -> None:
        self.inner, self.link, self.chance = inner, link, chance
        self.name = f"{link}_{inner.name}"
        share = "" if chance == 0 else f"{1 - chance:.4g} "
        self.equation = f"L = {share}{LINKS[link]}, M{inner.equation.removeprefix('L')}"
        self.source = f"{inner.source}; bounded by chance and one: docs/scaling.md"
        self.variables, self.parameters, self.exponents = inner.variables, inner.parameters, inner.exponents
        self.floor, self.num_coefficients = inner.floor, inner.num_coefficients
        self.powers, self.variable_of, self.not_logged = inner.powers, inner.variable_of, inner.not_logged
        self.is_uncentred = inner.is_uncentred

    def prepared_for(self, log_x: Floats) -> Law:
        return Bounded(self.inner.prepared_for(log_x), self.link, self.chance)

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        return to_angle(self._link(self.inner.log_value(theta, x_IV))[0])

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        log_M, gradient_of_M, curvature_of_M = self.inner.derivatives(theta, x_IV)
        error, error_slope, error_bend = self._link(log_M)
        # d angle / d error is 1 / (2 root); products of small numbers are ordered so that none underflows before.
        root = np.maximum(np.sqrt(error * (1 - error)), TINY)
        slope = error_slope / (2 * root)
        bend = error_bend / (2 * root) - slope**2 / root * (1 - 2 * error)

        def curvature(weights: Floats, square_weights: Floats) -> Floats:
            return curvature_of_M(weights * slope, weights * bend + square_weights * slope**2)

        return to_angle(error), slope[:, None] * gradient_of_M, curvature

    def _link(self, log_M: Floats) -> tuple[Floats, Floats, Floats]:
        """The error, and its first and second derivative with respect to log M."""
        top = 1 - self.chance
        if self.link == "logistic":
            share = 1 / (1 + np.exp(np.clip(-log_M, -700, 700)))  # a sigmoid of log M
            return top * share, top * share * (1 - share), top * share * (1 - share) * (1 - 2 * share)
        M = np.exp(np.clip(log_M, -700, 6.5))  # exp(-M) is 0 beyond
        slope = top * M * np.exp(-M)
        return -top * np.expm1(-M), slope, slope * (1 - M)

    def to_scale(self, target: Floats) -> Floats:
        return to_angle(target)

    def from_scale(self, value: Floats) -> Floats:
        return from_angle(value)

    def from_scale_derivatives(self, value: Floats) -> tuple[Floats, Floats]:
        return np.sin(2 * value), 2 * np.cos(2 * value)

    def difference(self, value: Floats, other: Floats) -> Floats:
        return from_angle(value) - from_angle(other)

    def log_target(self, log_y: Floats) -> Floats:
        share = np.clip(from_angle(log_y) / (1 - self.chance), 1 - MAX_SHARE, MAX_SHARE)
        return np.log(share / (1 - share)) if self.link == "logistic" else np.log(-np.log1p(-share))

    def target_floor(self, floor: float) -> float:
        with np.errstate(divide="ignore"):
            return float(self._link(np.log(np.float64(floor)))[0])

    def bounds_and_starts(self, log_y: Floats) -> tuple[Floats, Floats, Floats]:
        return self.inner.bounds_and_starts(log_y)

    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        return self.inner.basis(exponents, x_IV, log_y)

    def join(self, log_coefficients: Floats, exponents: Floats) -> Floats:
        return self.inner.join(log_coefficients, exponents)

    def log_slopes(self, refs: Floats) -> Floats:
        return self.inner.log_slopes(refs)

    def canonical(self, theta: Floats, refs: Floats) -> Floats:
        return self.inner.canonical(theta, refs)

    def coordinates(self, params: Mapping[str, float], refs: Floats) -> Floats:
        return self.inner.coordinates(params, refs)

    def recentred(self, theta: Floats, old_refs: Floats, new_refs: Floats) -> Floats:
        return self.inner.recentred(theta, old_refs, new_refs)

    def projection(self, name: str, refs: Floats) -> Floats | None:
        return self.inner.projection(name, refs)


class TaskLossLaw(SumOfPowers):
    """M = A exp(k T), or E + A exp(k T), in the task loss T: behind the logistic link, a sigmoid in T.

    The variable is the column of exp(-T), the probability of the right answer per byte (or per unit of T), so that M is
    a power of it. `span` is the range of T in the table: it scales the exponents that a search tries.
    """

    def __init__(self, column: str, *, has_floor: bool, span: float = USUAL_SPAN) -> None:
        floor = (Term("E"),) if has_floor else ()
        name, equation = ("power_floor", "L = E + A exp(k T)") if has_floor else ("power", "L = A exp(k T)")
        source = "Bhagia et al. 2024 (arXiv:2412.04403), equation 3"
        super().__init__(name, equation, source, *floor, Term("A", column, "k"))
        self.column, self.has_floor, self.span = column, has_floor, span
        self.is_linear = False  # exponents are bounded, although M alone is a straight line in T

    def prepared_for(self, log_x: Floats) -> Law:
        return TaskLossLaw(self.column, has_floor=self.has_floor, span=max(float(np.ptp(log_x)), 1e-6))

    def bounds_and_starts(self, log_y: Floats) -> tuple[Floats, Floats, Floats]:
        scale = USUAL_SPAN / self.span
        low, high = (np.full(1, bound * scale) for bound in EXPONENT_BOUNDS)
        return low, high, scale * np.array(GRIDS[1])[:, None]
