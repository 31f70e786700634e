"""The registry of laws, and Kaplan's joint law, which is not a sum of powers.

Searches do not use a coefficient such as A directly. Its coordinate is the log of the whole term, A N^-alpha, at the
geometric mean of the data. A itself is the term at N = 1, so far from the data that A and alpha could hardly be
estimated separately. `Law.canonical` converts coordinates to the parameters that papers quote.
The suffix of an array's name lists its axes (`u_KRI`): K log terms, R parameter vectors, I rows of data, V variables.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from zlib import crc32

import numpy as np

from slm.scaling.forms import Curvature, Floats, Law, SumOfPowers, Term, gram, log_sum, moment


class KaplanJoint(Law):
    """L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D.

    The loss is 1 for N_c parameters with unlimited data, and for D_c tokens with unlimited size.
    Coordinates: n = alpha_N log(N_c/ref_N), d = log(D_c/ref_D), alpha_N, alpha_D.
    """

    name = "kaplan_joint"
    equation = "L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D"
    source = "Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5"
    variables = ("N", "D")
    is_linear = False
    num_coefficients = 0  # L is not linear in N_c or D_c
    parameters = ("N_c", "D_c", "alpha_N", "alpha_D")
    exponents = ("alpha_N", "alpha_D")
    not_logged = frozenset(exponents)
    floor = None
    powers = {"N_c": (("N", "alpha_N"),), "D_c": (("D", "alpha_D"),)}  # noqa: RUF012
    variable_of = {"alpha_N": "N", "alpha_D": "D"}  # noqa: RUF012

    def _log_terms(self, theta: Floats, x_IV: Floats) -> Floats:
        n, d, alpha_n, alpha_d = (theta[:, [j]] for j in range(4))
        return np.stack([(n - alpha_n * x_IV[:, 0]) / alpha_d, d - x_IV[:, 1]])

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        return theta[:, [3]] * log_sum(self._log_terms(theta, x_IV))[0]  # coordinate 3 is alpha_D

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        g = theta[:, [3]]  # alpha_D
        u_KRI = self._log_terms(theta, x_IV)
        total, share_KRI = log_sum(u_KRI)
        u, s = u_KRI[0], share_KRI[0]  # the first log term and its share; the share of the second is 1 - s
        x = np.broadcast_to(x_IV[:, 0], u.shape)
        zero = np.zeros_like(u)
        # The gradient of `total` is that of the two log terms, weighted by their shares.
        du = np.stack([np.broadcast_to(1 / g, u.shape), zero, -x / g, -u / g], axis=1)
        dtotal = s[:, None, :] * du
        dtotal[:, 1] += 1 - s
        gradient = g[:, :, None] * dtotal
        gradient[:, 3] += total

        def curvature(weights: Floats, square_weights: Floats) -> Floats:
            # log L = g total has the Hessian g d2total + dg dtotal' + dtotal dg', where the sum over both log terms
            # gives d2total = sum_k share_k (du_k du_k' + d2u_k) - dtotal dtotal'.
            hessian = gram(du, g * weights * s) - gram(dtotal, g * weights) + gram(gradient, square_weights)
            hessian[:, 1, 1] += (g * weights * (1 - s)).sum(1)
            ws = weights * s
            # row_of_g is added to the row and the column of g, (g, g) twice: so ws u / g is half of ws g d2u/dg2.
            g_times_d2u = np.stack([-ws / g, zero, ws * x / g, ws * u / g], axis=1).sum(2)
            row_of_g = moment(dtotal, weights) + g_times_d2u
            hessian[:, 3, :] += row_of_g
            hessian[:, :, 3] += row_of_g
            return hessian

        return g * total, gradient, curvature

    def canonical(self, theta: Floats, refs: Floats) -> Floats:
        quoted = theta.copy()
        with np.errstate(over="ignore", divide="ignore"):
            quoted[:, 0] = np.exp(refs[0] + theta[:, 0] / theta[:, 2])
            quoted[:, 1] = np.exp(refs[1] + theta[:, 1])
        return quoted

    def coordinates(self, params: Mapping[str, float], refs: Floats) -> Floats:
        alpha_n, alpha_d = params["alpha_N"], params["alpha_D"]
        n, d = alpha_n * (np.log(params["N_c"]) - refs[0]), np.log(params["D_c"]) - refs[1]
        return np.array([n, d, alpha_n, alpha_d])

    def recentred(self, theta: Floats, old_refs: Floats, new_refs: Floats) -> Floats:
        moved = theta.copy()
        moved[:, 0] += theta[:, 2] * (old_refs[0] - new_refs[0])
        moved[:, 1] += old_refs[1] - new_refs[1]
        return moved

    def projection(self, name: str, refs: Floats) -> Floats | None:
        """A unit vector for an exponent. None for N_c and D_c, whose logs are not linear in the coordinates."""
        return np.eye(4)[self.parameters.index(name)] if name in self.exponents else None

    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        # Y = L^(1/alpha_D) is linear in two coefficients. Residuals of log L are about alpha_D times Y's relative ones.
        alpha_n, alpha_d = exponents[:, [0]], exponents[:, [1]]
        terms = np.stack(np.broadcast_arrays(-alpha_n / alpha_d * x_IV[:, 0], -x_IV[:, 1]), axis=2)
        relative_terms = np.exp(terms - (log_y / alpha_d)[:, :, None])
        target = np.repeat(alpha_d, len(log_y), 1)  # the relative value 1, times alpha_D
        return alpha_d[:, :, None] * relative_terms, target

    def join(self, log_coefficients: Floats, exponents: Floats) -> Floats:
        n, d = log_coefficients[:, [0]] * exponents[:, [1]], log_coefficients[:, [1]]
        return np.concatenate([n, d, exponents], axis=1)


def _power_laws(suffix: str, variable: str) -> tuple[SumOfPowers, SumOfPowers]:
    """Power laws in one variable, without and with the floor E."""
    power, equation = Term("A", variable, "alpha"), f"A {variable}^-alpha"
    kaplan = "Kaplan et al. 2020 (arXiv:2001.08361), section 1.2"
    henighan = "Henighan et al. 2020 (arXiv:2010.14701), equation 1.1"
    return (
        SumOfPowers(f"power{suffix}", f"L = {equation}", kaplan, power),
        SumOfPowers(f"power_floor{suffix}", f"L = E + {equation}", henighan, Term("E"), power),
    )


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        *_power_laws("", "N"),
        *_power_laws("_D", "D"),
        *_power_laws("_C", "C"),
        # E is the loss with unlimited N and D.
        SumOfPowers(
            "chinchilla", "L = E + A/N^alpha + B/D^beta",
            "Hoffmann et al. 2022 (arXiv:2203.15556), equation 2",
            Term("E"), Term("A", "N", "alpha"), Term("B", "D", "beta"),
        ),
        KaplanJoint(),
        SumOfPowers(
            "width_depth", "L = E + A/w^a + B/d^b + C/D^c",
            "the form of Hoffmann et al. 2022, equation 2, with N split into width and depth",
            Term("E"), Term("A", "w", "a"), Term("B", "d", "b"), Term("C", "D", "c"),
        ),
    )
}  # fmt: skip
_BUILT_IN = tuple(LAWS)

_GADRE = {"formula": "E + A*N**-a + B*D**-a", "source": "Gadre et al. 2024 (arXiv:2403.08540), equation 3"}
FORMULAS = {"shared_exponent": _GADRE}
"""Laws given as formulas (`slm.scaling.formulas`), fitted only if they are requested by name."""


def register_law(law: Law) -> None:
    """Register a law, so that analyses can fit it by its name. Raises `ValueError` if a built-in law has this name."""
    if law.name in (*_BUILT_IN, *FORMULAS, "auto", "all"):
        raise ValueError(f"register_law: {law.name} is the name of a built-in law: choose another name")
    LAWS[law.name] = law


def get_law(name: str, formulas: Mapping[str, Any] | None = None, columns: Iterable[str] = ()) -> Law:
    """Find a law in `LAWS`, `FORMULAS` or `formulas`, which may use `columns` of the table; `ValueError` if unknown."""
    if name in LAWS:
        return LAWS[name]
    all_formulas = FORMULAS | dict(formulas or {})
    if name not in all_formulas:
        raise ValueError(f"law {name!r} must be one of {', '.join((*LAWS, *all_formulas))}")
    from slm.scaling.formulas import read_formula  # sympy is slow to import, and seldom needed

    return read_formula(name, all_formulas[name], columns)


def seed_of_law(name: str) -> int:
    """The seed of the random generators of this law, unique to it."""
    return _BUILT_IN.index(name) if name in _BUILT_IN else 1000 + crc32(name.encode())
