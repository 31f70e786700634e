"""The interface of a law, and the form that most laws have: a sum of powers.

The log of a sum of powers, with variables centred at the means `log ref_k` of the data, is

    log L = logsumexp_k(log c_k - e_k (log x_k - log ref_k))

This is smooth. Its gradient is a softmax, and its Hessian has a closed form.

Axes are letters in shapes and in the suffix of an array's name (`x_IV`): R parameter vectors fitted at once, I rows of
data, V variables, P coordinates (K of coefficients, then S others). I comes last where possible, because sums over the
data are several times faster over contiguous memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

VARIABLES = {
    "N": "parameters", "D": "training tokens", "C": "training FLOPs", "w": "width (hidden size)", "d": "depth (layers)",
}  # fmt: skip

Floats = npt.NDArray[np.float64]
Curvature = Callable[[Floats, Floats], Floats]
"""Weights v and w [R, I] -> the sum over the data of v Hessian + w gradient gradient' of log L [R, P, P]."""
GRIDS = {
    1: (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3, 2.0),
    2: (0.05, 0.12, 0.22, 0.35, 0.55, 0.8, 1.2, 1.8),
    3: (0.1, 0.3, 0.6, 1.2),
}
"""Number of exponents -> the values of each exponent at which searches start."""
EXPONENT_BOUNDS = (1e-3, 5.0)  # except for laws that are straight lines in logs


class Law(ABC):
    """A function log L of log variables, in coordinates in which it is well-behaved.

    `theta` has the coordinates: first those of K coefficients, each *centred* (the log of the coefficient's term at the
    centre of the data), then other parameters, and last the exponents.
    """

    name: str  # key in `slm.scaling.laws.LAWS`
    equation: str  # the formula as text
    source: str  # paper and equation
    variables: tuple[str, ...]  # keys of `VARIABLES`; in a formula also columns of the table
    parameters: tuple[str, ...]  # as papers quote them, in the order of the coordinates
    exponents: tuple[str, ...]  # the parameters that are exponents; families are ranked by the first
    floor: int | None  # index of the coordinate of the floor E, if the law has a floor
    is_linear: bool  # whether log L is linear in the coordinates, so that fits and t intervals are exact
    num_coefficients: int  # K, the number of coefficients in which L is linear
    powers: Mapping[str, tuple[tuple[str, str], ...]]
    """Coefficient -> (variable, exponent) of each power that the coefficient multiplies."""
    variable_of: Mapping[str, str]  # exponent -> its variable or variables, in words
    not_logged: frozenset[str]
    """Parameters that are their own coordinates. All others are above 0, and their coordinates are logarithms."""
    is_uncentred = False  # whether the law takes log variables that are not centred; the argument `refs` is then 0
    link = ""  # how the target depends on the sum that the parameters describe: see `slm.scaling.bounded`

    def prepared_for(self, log_x: Floats) -> "Law":
        """The law prepared for a table with log variables [I, V]; `self` if it needs no preparation."""
        return self

    def to_scale(self, target: Floats) -> Floats:
        """The target on the scale of `log_value` and of residuals: its log, unless the law has a link."""
        return np.asarray(np.log(target))

    def from_scale(self, value: Floats) -> Floats:
        """The inverse of `to_scale`."""
        return np.asarray(np.exp(value))

    def from_scale_derivatives(self, value: Floats) -> tuple[Floats, Floats]:
        """First and second derivative of `from_scale`."""
        target = self.from_scale(value)
        return target, target

    def difference(self, value: Floats, other: Floats) -> Floats:
        """How far `value` is above `other`, both on the scale of residuals: in logs, for errors as they are."""
        return value - other

    def log_target(self, log_y: Floats) -> Floats:
        """The log of what the parameters describe, for targets [I] as `to_scale` gives them."""
        return log_y

    def target_floor(self, floor: float) -> float:
        """The value of the target that no size undercuts, from the parameter that is the floor."""
        return floor

    def bounds_and_starts(self, log_y: Floats) -> tuple[Floats, Floats, Floats]:
        """Lower and upper bounds [S] and starts [R, S] of the S coordinates that are not coefficients."""
        S = len(self.exponents)
        low, high = (np.full(S, bound) for bound in EXPONENT_BOUNDS)
        return low, high, np.array(list(product(GRIDS[S], repeat=S)))

    @abstractmethod
    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """log L [R, I] for coordinates [R, P] at centred log variables [I, V]."""

    @abstractmethod
    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """log L [R, I], its gradient [R, P, I], and weighted sums of its Hessians and squared gradients."""

    @abstractmethod
    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        """Basis [R, I, K] and target [R, I], divided by the data: basis @ coefficients approximates the target."""

    def log_slopes(self, refs: Floats) -> Floats:
        """Derivatives [K, S] of the logs of quoted coefficients with respect to the S coordinates that follow them."""
        return np.zeros((self.num_coefficients, len(self.parameters) - self.num_coefficients))

    def join(self, log_coefficients: Floats, exponents: Floats) -> Floats:
        """Coordinates [R, P] from exponents [R, S] and the logs [R, K] of the coefficients that solve `basis`."""
        return np.concatenate([log_coefficients, exponents], axis=1)

    def canonical(self, theta: Floats, refs: Floats) -> Floats:
        """Convert coordinates [R, P] to quoted parameters [R, P], for log variables centred at `refs` [V]."""
        quoted, K = theta.copy(), self.num_coefficients
        quoted[:, :K] += theta[:, K:] @ self.log_slopes(refs).T
        with np.errstate(over="ignore"):
            exponentials = np.exp(np.where(self._is_logged, quoted, 0.0))
        return np.where(self._is_logged, exponentials, quoted)

    def coordinates(self, params: Mapping[str, float], refs: Floats) -> Floats:
        """Convert quoted parameters to coordinates [P]: the inverse of `canonical`."""
        theta = np.array([params[name] for name in self.parameters], float)
        theta[self._is_logged] = np.log(theta[self._is_logged])
        theta[: self.num_coefficients] -= self.log_slopes(refs) @ theta[self.num_coefficients :]
        return theta

    def recentred(self, theta: Floats, old_refs: Floats, new_refs: Floats) -> Floats:
        """Coordinates [R, P] of the same curves centred at `new_refs` [V] instead of `old_refs` [V]."""
        moved, K = theta.copy(), self.num_coefficients
        moved[:, :K] += theta[:, K:] @ (self.log_slopes(old_refs) - self.log_slopes(new_refs)).T
        return moved

    def projection(self, name: str, refs: Floats) -> Floats | None:
        """The vector [P] whose product with the coordinates is exponent `name`, or the log of coefficient `name`.

        None if this exponent or log is not a linear function of the coordinates.
        """
        index, K = self.parameters.index(name), self.num_coefficients
        vector = np.eye(len(self.parameters))[index]
        if index < K:
            vector[K:] = self.log_slopes(refs)[index]
        return vector

    @cached_property
    def _is_logged(self) -> np.ndarray:
        return np.array([name not in self.not_logged for name in self.parameters])


class Term(NamedTuple):
    """coefficient * variable^-exponent, or the coefficient alone if there is no variable."""

    coefficient: str
    variable: str = ""
    exponent: str = ""


class SumOfPowers(Law):
    """L = sum of terms, each a constant or a power of one variable with its own exponent."""

    def __init__(self, name: str, equation: str, source: str, *terms: Term) -> None:
        self.name, self.equation, self.source = name, equation, source
        power_terms = [term for term in terms if term.variable]
        self.variables = tuple(term.variable for term in power_terms)
        self.exponents = tuple(term.exponent for term in power_terms)
        self.parameters = (*(term.coefficient for term in terms), *self.exponents)
        self.not_logged = frozenset(self.exponents)
        self.num_coefficients = len(terms)
        self.floor = next((k for k, term in enumerate(terms) if not term.variable), None)
        self.is_linear = len(terms) == 1
        self.powers = {term.coefficient: ((term.variable, term.exponent),) for term in power_terms}
        self.variable_of = dict(zip(self.exponents, self.variables, strict=True))
        # Indices of the terms that are powers. The v-th power has variable v, and its exponent is coordinate K + v.
        self._power_indices = [k for k, term in enumerate(terms) if term.variable]

    def _log_terms(self, theta: Floats, x_IV: Floats) -> Floats:
        K = self.num_coefficients
        z_KRI = np.repeat(theta.T[:K, :, None], len(x_IV), axis=2)
        for v, k in enumerate(self._power_indices):
            z_KRI[k] -= theta[:, K + v, None] * x_IV[:, v]
        return z_KRI

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        return log_sum(self._log_terms(theta, x_IV))[0]

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        K, P, S = self.num_coefficients, len(self.parameters), len(self.exponents)
        value, share_KRI = log_sum(self._log_terms(theta, x_IV))
        moments = np.empty((len(theta), P + S, len(x_IV)))  # the gradient, then share_k x^2 for each exponent
        moments[:, :K] = share_KRI.transpose(1, 0, 2)
        np.multiply(moments[:, self._power_indices], -x_IV.T, out=moments[:, K:P])
        np.multiply(moments[:, K:P], -x_IV.T, out=moments[:, P:])
        gradient = moments[:, :P]

        def curvature(weights: Floats, square_weights: Floats) -> Floats:
            # sum_k share_k dz_k dz_k' - gradient gradient', where dz_k is 1 for coefficient k and -x for its exponent
            of_terms = (moment(moments, weights) @ self._places).reshape(len(theta), P, P)
            return gram(gradient, square_weights - weights) + of_terms

        return value, gradient, curvature

    @cached_property
    def _places(self) -> Floats:
        """Where sums of share_k dz_k dz_k' [P + S] stand in the Hessian of log L [P P]."""
        K, P, S = self.num_coefficients, len(self.parameters), len(self.exponents)
        places = np.zeros((P + S, P, P))
        places[range(K), range(K), range(K)] = 1
        for v, k in enumerate(self._power_indices):
            places[K + v, [k, K + v], [K + v, k]] = places[P + v, K + v, K + v] = 1
        return places.reshape(P + S, P * P)

    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        theta = np.concatenate([np.zeros((len(exponents), self.num_coefficients)), exponents], axis=1)
        terms = np.exp(self._log_terms(theta, x_IV) - log_y)
        return terms.transpose(1, 2, 0), np.ones((len(exponents), len(log_y)))

    def log_slopes(self, refs: Floats) -> Floats:
        slopes = np.zeros((self.num_coefficients, len(refs)))
        slopes[self._power_indices, range(len(refs))] = refs
        return slopes


def log_sum(z_KRI: Floats) -> tuple[Floats, Floats]:
    """logsumexp over the K terms [R, I], and the share of each term in the sum [K, R, I]."""
    if len(z_KRI) == 1:
        return z_KRI[0], np.ones_like(z_KRI)
    top = z_KRI.max(axis=0)
    share = np.exp(z_KRI - top)
    total = share.sum(axis=0)
    share /= total
    return top + np.log(total), share


def gram(vectors_RPI: Floats, weights_RI: Floats) -> Floats:
    """Weighted sums over the data of the outer products of vectors with themselves [R, P, P]."""
    return np.matmul(vectors_RPI * weights_RI[:, None, :], vectors_RPI.transpose(0, 2, 1))


def moment(vectors_RPI: Floats, weights_RI: Floats) -> Floats:
    """Weighted sums over the data of vectors [R, P]."""
    return np.matmul(vectors_RPI, weights_RI[:, :, None])[:, :, 0]


def diagonal(matrices_RPP: Floats) -> Floats:
    """The diagonals [R, P] of contiguous matrices, as a view that may be changed."""
    R, P, _ = matrices_RPP.shape
    return matrices_RPP.reshape(R, P * P)[:, :: P + 1]
