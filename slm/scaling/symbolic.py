"""A law made of a sympy expression, with derivatives by sympy. `slm.scaling.formulas` reads such laws from text.

Notable: a formula may compare variables with numbers, as in max(N, 1e6), so variables keep their units and are not
centred (`Law.is_uncentred`). Coordinates of coefficients are centred all the same: at the mean of the log variables
of the table, which all families share. Axes as in `slm.scaling.forms`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.relational import Relational

from slm.scaling.forms import EXPONENT_BOUNDS, GRIDS, Curvature, Floats, Law, gram

MAX_LOG_DISTANCE = 25.0  # bound of |log(parameter / usual size)|, except for coefficients and exponents
SCATTERED_STARTS = 400  # for laws that would need too large a grid
TYPICAL_EXPONENT = 0.4


@dataclass(frozen=True, kw_only=True)
class Formula(Law):
    """A law given by a formula (see `slm.scaling.formulas.read_formula`)."""

    name: str
    equation: str
    source: str
    expression: sp.Expr
    variables: tuple[str, ...]
    parameters: tuple[str, ...]  # coefficients, then other parameters, then exponents
    num_coefficients: int
    exponents: tuple[str, ...]
    not_logged: frozenset[str]
    floor: int | None
    centre: tuple[float, ...]  # means [V] of the log variables of the table; 0 until `prepared_for` sets them

    is_uncentred = True

    def prepared_for(self, log_x: Floats) -> "Formula":
        return replace(self, centre=tuple(log_x.mean(axis=0).tolist()))

    @cached_property
    def _symbols(self) -> tuple[sp.Symbol, ...]:
        by_name = {symbol.name: symbol for symbol in self.expression.free_symbols}
        return tuple(by_name[name] for name in self.parameters)

    @cached_property
    def _in_coordinates(self) -> tuple[sp.Expr, tuple[sp.Symbol, ...], tuple[sp.Symbol, ...]]:
        """The expression as a function of coordinates q, not centred, and log variables x; and the symbols q and x."""
        q = sp.symbols(f"q:{len(self.parameters)}", real=True)
        x = sp.symbols(f"x:{len(self.variables)}", real=True)
        replacement = {positive(name): sp.exp(log) for name, log in zip(self.variables, x, strict=True)}
        for symbol, coordinate, is_logged in zip(self._symbols, q, self._is_logged, strict=True):
            replacement[symbol] = sp.exp(coordinate) if is_logged else coordinate
        return self.expression.xreplace(replacement), q, x

    @cached_property
    def is_linear(self) -> bool:  # type: ignore[override]
        expression, q, _ = self._in_coordinates
        return all(vanishes(sp.diff(sp.log(expression), first, second)) for first in q for second in q)

    @cached_property
    def powers(self) -> Mapping[str, tuple[tuple[str, str], ...]]:  # type: ignore[override]
        powers = {}
        for coefficient in self._symbols[: self.num_coefficients]:
            term = sp.powsimp(sp.diff(self.expression, coefficient), force=True).as_powers_dict()
            pairs = []
            for base, power in term.items():
                exponents = [symbol.name for symbol in power.free_symbols if symbol.name in self.exponents]
                if base.is_Symbol and base.name in self.variables and len(exponents) == 1:
                    pairs.append((base.name, exponents[0]))
            if pairs:
                powers[coefficient.name] = tuple(sorted(pairs, key=lambda pair: self.variables.index(pair[0])))
        return powers

    @cached_property
    def variable_of(self) -> Mapping[str, str]:  # type: ignore[override]
        bases = bases_of_exponents(self.expression, self.variables)
        variables_of = {name: [v for v in self.variables if v in bases.get(name, ())] for name in self.exponents}
        return {name: " and ".join(variables) or "no variable" for name, variables in variables_of.items()}

    def _typical_values(self, scales: Iterable[float]) -> dict[sp.Symbol, float]:
        """The centre of the table for variables, `TYPICAL_EXPONENT` for exponents, `scales` for other parameters."""
        values = {positive(v): float(np.exp(c)) for v, c in zip(self.variables, self.centre, strict=True)}
        return values | {
            symbol: TYPICAL_EXPONENT if symbol.name in self.exponents else scale
            for symbol, scale in zip(self._symbols, scales, strict=True)
        }

    @cached_property
    def _usual_sizes(self) -> list[float]:
        values = self._typical_values([1.0] * len(self._symbols))
        return [_usual_size(self.expression, symbol, values, self.variables) for symbol in self._symbols]

    @cached_property
    def _uncentring(self) -> Floats:
        """The matrix [P, P] that turns the centred coordinate of a coefficient into its log, and keeps the others."""
        values = self._typical_values(self._usual_sizes)
        matrix = np.eye(len(self.parameters))
        for k, coefficient in enumerate(self._symbols[: self.num_coefficients]):
            log_term = sp.log(sp.diff(self.expression, coefficient))
            for j, symbol in enumerate(self._symbols):
                if symbol.name in self.exponents:
                    slope = sp.diff(log_term, symbol).subs(values).evalf()
                    matrix[k, j] = -float(slope) if slope.is_real and slope.is_finite else 0.0
        return matrix

    def log_slopes(self, refs: Floats) -> Floats:
        return self._uncentring[: self.num_coefficients, self.num_coefficients :]

    def _arguments(self, theta: Floats, x_IV: Floats) -> list[Floats]:
        """The arguments of compiled functions: uncentred coordinates, each [R, 1], and log variables, each [1, I]."""
        q_RP = theta @ self._uncentring.T
        return [*q_RP.T[:, :, None], *x_IV.T[:, None, :]]

    def _value_and_gradient(self, theta: Floats, x_IV: Floats) -> list[Floats]:
        """L, and its derivative with respect to each coordinate q of `_in_coordinates`; all are [R, I]."""
        with np.errstate(all="ignore"):
            compiled_value_and_gradient, *_ = _compiled(*self._in_coordinates)
            parts = compiled_value_and_gradient(*self._arguments(theta, x_IV))
        return [np.broadcast_to(np.asarray(part, float), (len(theta), len(x_IV))) for part in parts]

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """log L [R, I], which is NaN where the formula is not above 0."""
        with np.errstate(all="ignore"):
            return np.asarray(np.log(self._value_and_gradient(theta, x_IV)[0]))

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        value, *gradient_of_value = self._value_and_gradient(theta, x_IV)

        def curvature(weights: Floats, square_weights: Floats) -> Floats:
            hessian = gram(slope, square_weights - weights)
            with np.errstate(all="ignore"):
                _, compiled_hessian, indices = _compiled(*self._in_coordinates)
                for (i, j), entry in zip(indices, compiled_hessian(*self._arguments(theta, x_IV)), strict=True):
                    hessian[:, i, j] += (weights / value * entry).sum(axis=1)
                    hessian[:, j, i] = hessian[:, i, j]
            return np.asarray(self._uncentring.T @ hessian @ self._uncentring)

        with np.errstate(all="ignore"):
            slope = np.stack([derivative / value for derivative in gradient_of_value], axis=1)
            return np.log(value), np.matmul(self._uncentring.T, slope), curvature

    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        theta = np.concatenate([np.zeros((len(exponents), self.num_coefficients)), exponents], axis=1)
        value, *gradient = (part / np.exp(log_y) for part in self._value_and_gradient(theta, x_IV))
        # np.stack needs an array even if the law has no coefficients: stack zeros last, and cut them off.
        basis = np.stack([*gradient[: self.num_coefficients], np.zeros_like(value)], axis=2)[:, :, :-1]
        # `value` is L / y at coefficients of 1. Minus the sum of the basis, it is the part without coefficients.
        return np.nan_to_num(basis), np.nan_to_num(1 - (value - basis.sum(axis=2)))

    def bounds_and_starts(self, log_y: Floats) -> tuple[Floats, Floats, Floats]:
        symbols = self._symbols[self.num_coefficients :]
        if all(s.name in self.exponents and s.is_positive for s in symbols) and len(symbols) in GRIDS:
            return super().bounds_and_starts(log_y)
        lows, highs, starts = zip(*(self._bounds_and_values(symbol, log_y) for symbol in symbols), strict=True)
        rng = np.random.default_rng(0)
        return np.array(lows), np.array(highs), np.stack([rng.permutation(values) for values in starts], axis=1)

    def _bounds_and_values(self, symbol: sp.Symbol, log_y: Floats) -> tuple[float, float, Floats]:
        """Bounds of the coordinate of a parameter (not of a coefficient), and starts spread over a plausible range."""
        fraction = (np.arange(SCATTERED_STARTS) + 0.5) / SCATTERED_STARTS
        if symbol.name in self.exponents:
            if not symbol.is_positive:
                return -EXPONENT_BOUNDS[1], EXPONENT_BOUNDS[1], 3 * fraction - 1.5  # from -1.5 to 1.5
            return *EXPONENT_BOUNDS, np.exp(np.log(0.03) + fraction * np.log(2.0 / 0.03))  # from 0.03 to 2
        scale = self._usual_sizes[self._symbols.index(symbol)]
        if symbol.name in self.not_logged:
            size = max(scale, float(np.exp(log_y.mean())))
            return -1e4 * size, 1e4 * size, 4 * size * (fraction - 0.5)
        middle = float(np.log(scale))
        return middle - MAX_LOG_DISTANCE, middle + MAX_LOG_DISTANCE, middle + 12 * (fraction - 0.5)


def positive(name: str) -> sp.Symbol:
    """The symbol of a variable, or of a parameter above 0."""
    return sp.Symbol(name, positive=True)


@lru_cache(maxsize=64)
def _compiled(
    expression: sp.Expr, q: tuple[sp.Symbol, ...], x: tuple[sp.Symbol, ...]
) -> tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, int]]]:
    """Compile L with its gradient, and the nonzero entries of the Hessian's lower triangle, with their indices."""
    gradient = [sp.diff(expression, symbol) for symbol in q]
    lower_triangle = {(i, j): sp.diff(gradient[i], q[j]) for i in range(len(q)) for j in range(i + 1)}
    nonzero = {indices: entry for indices, entry in lower_triangle.items() if entry != 0}
    value_and_gradient = sp.lambdify([*q, *x], [expression, *gradient], modules="numpy", cse=True)
    hessian = sp.lambdify([*q, *x], list(nonzero.values()), modules="numpy", cse=True)
    return value_and_gradient, hessian, list(nonzero)


def vanishes(expression: sp.Expr) -> bool:
    """Whether the expression is 0 everywhere, judged at two points, because expanding it could take forever."""
    symbols = sorted(expression.free_symbols, key=lambda symbol: symbol.name)
    points = ({symbol: start + 0.1 * j for j, symbol in enumerate(symbols)} for start in (0.37, 0.73))
    return expression == 0 or all(abs(complex(expression.subs(point).evalf())) < 1e-9 for point in points)


def bases_of_exponents(expression: sp.Expr, variables: Sequence[str]) -> dict[str, set[str]]:
    """Parameter in an exponent -> the variables in the bases of all powers with this parameter in the exponent."""
    bases: dict[str, set[str]] = {}
    for power in expression.atoms(sp.Pow):
        base_variables = {symbol.name for symbol in power.base.free_symbols} & {*variables}
        if base_variables:
            for parameter in {symbol.name for symbol in power.exp.free_symbols} - {*variables}:
                bases.setdefault(parameter, set()).update(base_variables)
    return bases


def _usual_size(expression: sp.Expr, symbol: sp.Symbol, values: dict[sp.Symbol, float], names: Sequence[str]) -> float:
    """A usual size of a parameter, if the variables `names` have the given `values`.

    In a sum or comparison with variables, its power is then as large as the rest; in a product, the product is 1.
    """
    usual_size = 1.0
    for node in sp.preorder_traversal(expression):
        if isinstance(node, Relational):
            node = node.lhs - node.rhs
        if not isinstance(node, (sp.Add, sp.Mul)):
            continue
        rest, term = node.as_independent(symbol, as_Add=isinstance(node, sp.Add))
        power = term.as_coeff_exponent(symbol)[1]
        rest_has_variables = any(s.name in names for s in rest.free_symbols)
        if not power.is_Number or power == 0 or not rest_has_variables:
            continue
        rest_size = abs(complex(rest.subs(values).evalf()))
        if rest_size > 0:
            size_of_power = rest_size if isinstance(node, sp.Add) else 1 / rest_size
            solution = size_of_power ** (1 / float(power))
            if 0 < solution < 1e200:
                usual_size = float(solution)
    return usual_size
