"""The two forms that the laws have: a sum of powers, and Kaplan's joint law.

A sum of powers is, in logs and about the centre of the data,

    log L = logsumexp_k(log c_k - e_k (log x_k - log ref_k))

which is smooth and everywhere positive, with a softmax for its gradient and a closed curvature.

Axes: R parameter vectors fitted at once, I rows of data, P coordinates, K terms, V variables. I comes last wherever it
can: sums over the data are then over neighbours in memory, which is several times faster than over K or P.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Curvature = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Term:
    """coefficient * variable^-exponent, or a constant."""

    coefficient: str
    variable: str | None = None
    exponent: str | None = None


@dataclass(frozen=True, kw_only=True)
class SumOfPowers:
    """L = sum of terms, each a constant or a power of one variable with its own exponent. See `Law`."""

    name: str
    equation: str
    source: str
    terms: tuple[Term, ...]
    parameters: Mapping[str, str]

    absolute = False

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """The variables of the terms."""
        return tuple(term.variable for term in self.terms if term.variable)

    @cached_property
    def exponents(self) -> tuple[str, ...]:
        """The exponents of the terms."""
        return tuple(term.exponent for term in self.terms if term.exponent)

    @cached_property
    def floor(self) -> int | None:
        """Coordinate of the constant term."""
        return next((k for k, term in enumerate(self.terms) if term.variable is None), None)

    @property
    def linear(self) -> bool:
        """See `Law`."""
        return len(self.terms) == 1

    @property
    def coefficients(self) -> int:
        """See `Law`."""
        return len(self.terms)

    @property
    def signed(self) -> frozenset[str]:
        """See `Law`."""
        return frozenset(self.exponents)

    @property
    def powers(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """See `Law`."""
        return {t.coefficient: ((t.variable, t.exponent),) for t in self.terms if t.variable and t.exponent}

    @property
    def variable_of(self) -> dict[str, str]:
        """See `Law`."""
        return {t.exponent: t.variable for t in self.terms if t.variable and t.exponent}

    def shape(self, log_y: Floats) -> None:
        """See `Law`."""

    def at(self, log_x: Floats) -> Self:
        """See `Law`."""
        return self

    @cached_property
    def _powers(self) -> list[int]:
        """Terms that are powers; the v-th has variable v and coordinate K + v."""
        return [k for k, term in enumerate(self.terms) if term.variable]

    def _log_terms(self, theta: Floats, x_IV: Floats) -> Floats:
        K = len(self.terms)
        z_KRI = np.repeat(theta.T[:K, :, None], len(x_IV), axis=2)
        for v, k in enumerate(self._powers):
            z_KRI[k] -= theta[:, [K + v]] * x_IV[:, v]
        return z_KRI

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """See `Law`."""
        return log_sum(self._log_terms(theta, x_IV))[0]

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """See `Law`."""
        K, powers = len(self.terms), self._powers
        value, share_KRI = log_sum(self._log_terms(theta, x_IV))
        gradient = np.empty((len(theta), theta.shape[1], len(x_IV)))
        gradient[:, :K] = share_KRI.transpose(1, 0, 2)
        slope = gradient[:, K:]
        np.multiply(gradient[:, powers], -x_IV.T, out=slope)

        def curvature(weights: Floats) -> Floats:
            hessian = -gram(gradient, weights)
            k, e = np.arange(K), K + np.arange(len(powers))
            first = moment(gradient, weights)
            hessian[:, k, k] += first[:, :K]
            hessian[:, powers, e] += first[:, K:]
            hessian[:, e, powers] += first[:, K:]
            hessian[:, e, e] -= moment(slope * x_IV.T, weights)
            return hessian

        return value, gradient, curvature

    def canonical(self, theta: Floats, refs: Floats) -> Floats:
        """See `Law`."""
        K = len(self.terms)
        quoted = theta.copy()
        quoted[:, self._powers] += theta[:, K:] * refs
        with np.errstate(over="ignore"):
            quoted[:, :K] = np.exp(quoted[:, :K])
        return quoted

    def coordinates(self, params: Mapping[str, float], refs: Floats) -> Floats:
        """See `Law`."""
        K = len(self.terms)
        theta = np.array([params[name] for name in self.parameters])
        theta[:K] = np.log(theta[:K])
        theta[self._powers] -= theta[K:] * refs
        return theta

    def recentred(self, theta: Floats, old: Floats, new: Floats) -> Floats:
        """See `Law`."""
        moved = theta.copy()
        moved[:, self._powers] += theta[:, len(self.terms) :] * (old - new)
        return moved

    def functional(self, name: str, refs: Floats) -> Floats | None:
        """See `Law`."""
        place = list(self.parameters).index(name)
        vector = np.zeros(len(self.parameters))
        vector[place] = 1
        if place in self._powers:
            v = self._powers.index(place)
            vector[len(self.terms) + v] = refs[v]
        return vector

    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        """See `Law`."""
        theta = np.concatenate([np.zeros((len(exponents), len(self.terms))), exponents], axis=1)
        terms = np.exp(self._log_terms(theta, x_IV) - log_y)
        return terms.transpose(1, 2, 0), np.ones((len(exponents), len(log_y)))

    def join(self, log_coefficients: Floats, exponents: Floats) -> Floats:
        """See `Law`."""
        return np.concatenate([log_coefficients, exponents], axis=1)


@dataclass(frozen=True)
class KaplanJoint:
    """L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D. See `Law`.

    Coordinates: n = alpha_N log(N_c/ref_N), d = log(D_c/ref_D), alpha_N, alpha_D.
    """

    name = "kaplan_joint"
    equation = "L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D"
    source = "Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5"
    variables = ("N", "D")
    absolute = False
    linear = False
    coefficients = 0
    parameters = {  # noqa: RUF012 (a constant of the class; a frozen dataclass would make an annotated one a field)
        "N_c": "parameters at which the loss of a model with unlimited data is 1",
        "D_c": "tokens at which the loss of a model of unlimited size is 1",
        "alpha_N": "exponent in N when data are unlimited",
        "alpha_D": "exponent in D when the model is unlimited",
    }
    exponents = ("alpha_N", "alpha_D")
    signed = frozenset(exponents)
    floor = None

    @property
    def powers(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """See `Law`."""
        return {"N_c": (("N", "alpha_N"),), "D_c": (("D", "alpha_D"),)}

    @property
    def variable_of(self) -> dict[str, str]:
        """See `Law`."""
        return {"alpha_N": "N", "alpha_D": "D"}

    def shape(self, log_y: Floats) -> None:
        """See `Law`."""

    def at(self, log_x: Floats) -> Self:
        """See `Law`."""
        return self

    def _log_terms(self, theta: Floats, x_IV: Floats) -> Floats:
        n, d, alpha_n, alpha_d = (theta[:, [j]] for j in range(4))
        return np.stack([(n - alpha_n * x_IV[:, 0]) / alpha_d, d - x_IV[:, 1]])

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """See `Law`."""
        return theta[:, [3]] * log_sum(self._log_terms(theta, x_IV))[0]

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """See `Law`."""
        g = theta[:, [3]]
        u_KRI = self._log_terms(theta, x_IV)
        total, share = log_sum(u_KRI)
        u, s = u_KRI[0], share[0]
        x = np.broadcast_to(x_IV[:, 0], u.shape)
        zero = np.zeros_like(u)
        # d total: the gradients of the two log terms, weighted by their shares.
        du = np.stack([1 / g + zero, zero, -x / g, -u / g], axis=1)
        dtotal = s[:, None, :] * du
        dtotal[:, 1] += 1 - s
        gradient = g[:, :, None] * dtotal
        gradient[:, 3] += total

        def curvature(weights: Floats) -> Floats:
            # g d2total + d(g) dtotal' + dtotal d(g)', where d2total = sum_k s_k (du du' + d2u) - dtotal dtotal'.
            hessian = gram(du, g * weights * s) - gram(dtotal, g * weights)
            hessian[:, 1, 1] += (g * weights * (1 - s)).sum(1)
            ws = weights * s
            second = np.stack([-ws / g, zero, ws * x / g, ws * u / g], axis=1).sum(2)  # g d2u/d.dg; (g, g) is twice it
            outer = moment(dtotal, weights) + second
            hessian[:, 3, :] += outer
            hessian[:, :, 3] += outer
            return hessian

        return g * total, gradient, curvature

    def canonical(self, theta: Floats, refs: Floats) -> Floats:
        """See `Law`."""
        quoted = theta.copy()
        with np.errstate(over="ignore", divide="ignore"):
            quoted[:, 0] = np.exp(refs[0] + theta[:, 0] / theta[:, 2])
            quoted[:, 1] = np.exp(refs[1] + theta[:, 1])
        return quoted

    def coordinates(self, params: Mapping[str, float], refs: Floats) -> Floats:
        """See `Law`."""
        alpha_n, alpha_d = params["alpha_N"], params["alpha_D"]
        n, d = alpha_n * (np.log(params["N_c"]) - refs[0]), np.log(params["D_c"]) - refs[1]
        return np.array([n, d, alpha_n, alpha_d])

    def recentred(self, theta: Floats, old: Floats, new: Floats) -> Floats:
        """See `Law`."""
        moved = theta.copy()
        moved[:, 0] += theta[:, 2] * (old[0] - new[0])
        moved[:, 1] += old[1] - new[1]
        return moved

    def functional(self, name: str, refs: Floats) -> Floats | None:
        """See `Law`. N_c is a ratio of coordinates, D_c one of them plus a constant."""
        return np.eye(4)[list(self.parameters).index(name)] if name in self.exponents else None

    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        """See `Law`. The target is L^(1/alpha_D), which is linear in the two coefficients."""
        alpha_n, alpha_d = exponents[:, [0]], exponents[:, [1]]
        terms = np.stack(
            [-alpha_n / alpha_d * x_IV[:, 0], np.broadcast_to(-x_IV[:, 1], (len(exponents), len(x_IV)))], 2
        )
        return alpha_d[:, :, None] * np.exp(terms - (log_y / alpha_d)[:, :, None]), np.repeat(alpha_d, len(log_y), 1)

    def join(self, log_coefficients: Floats, exponents: Floats) -> Floats:
        """See `Law`."""
        return np.concatenate(
            [log_coefficients[:, [0]] * exponents[:, [1]], log_coefficients[:, [1]], exponents], axis=1
        )


def log_sum(z_KRI: Floats) -> tuple[Floats, Floats]:
    """logsumexp over the terms [R, I], and the share of each term [K, R, I]."""
    if len(z_KRI) == 1:
        return z_KRI[0], np.ones_like(z_KRI)
    top = z_KRI.max(axis=0)
    share = np.exp(z_KRI - top)
    total = share.sum(axis=0)
    share /= total
    return top + np.log(total), share


def gram(vectors_RPI: Floats, weights_RI: Floats) -> Floats:
    """Weighted sums over the data of outer products [R, P, P]."""
    return np.matmul(vectors_RPI * weights_RI[:, None, :], vectors_RPI.transpose(0, 2, 1))


def moment(vectors_RPI: Floats, weights_RI: Floats) -> Floats:
    """Weighted sums over the data [R, P]."""
    return np.matmul(vectors_RPI, weights_RI[:, :, None])[:, :, 0]
