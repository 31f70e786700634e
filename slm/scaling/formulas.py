"""Laws that people write: a formula of the loss, read without evaluating it, with derivatives by sympy.

A name in a formula is a variable of `VARIABLES`, a column of the table, or else a parameter. Parameters are above 0
unless declared `real`. Coordinates are the logarithms of parameters, but for exponents and `real` ones, which are their
own coordinates. Coefficients, by which the law is linear, are *centred*: the logarithm of what they add at the centre
of the table, so that they hardly depend on the exponents (the log of A of A N^-a is ten decades away from any data).

Notable: a formula need not look the same in other units (max(N, 1e6)), so its variables reach it as they are:
`Sample.absolute`. It remembers the centre of the table instead, which all families share.

Axes as in `slm.scaling.laws`; S coordinates that are no coefficients.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce
from itertools import product
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.relational import Relational

from slm.scaling.forms import Curvature, Floats, gram
from slm.scaling.laws import VARIABLES
from slm.scaling.starts import EXPONENT_BOUNDS, GRIDS
from slm.scaling.tables.columns import TARGETS

MOST_PARAMETERS = 9
LONGEST = 500
"""Characters of a formula."""
REACH = 25.0
"""How far, in log, a parameter that is neither coefficient nor exponent may end from the scale of the data."""
SCATTERED = 400
"""Starts where a grid would be too many."""
_KEYS = ("formula", "exponents", "real", "floor", "source")
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}


def _larger(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    return sp.Piecewise((a, a >= b), (b, True))


def _smaller(a: sp.Expr, b: sp.Expr) -> sp.Expr:
    return sp.Piecewise((a, a <= b), (b, True))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": sp.exp,
    "log": sp.log,
    "sqrt": sp.sqrt,
    "min": lambda *of: reduce(_smaller, of),
    "max": lambda *of: reduce(_larger, of),
}


def _symbol(name: str) -> sp.Symbol:
    return sp.Symbol(name, positive=True)


class _Reader:
    """Turns the text of a formula into an expression; `wrong` makes the error for what it refuses."""

    def __init__(self, real: Iterable[str], wrong: Callable[[str], ValueError]) -> None:
        self.real, self.wrong, self.names = set(real), wrong, dict[str, None]()

    def read(self, text: str) -> sp.Expr:
        if len(text) > LONGEST:
            raise self.wrong(f"is longer than {LONGEST} characters")
        try:
            return self._expression(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise self.wrong(f"is no formula ({getattr(error, 'msg', 'it nests too deeply')})") from None

    def _expression(self, node: ast.expr) -> sp.Expr:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return self._known(node.value)
        if isinstance(node, ast.Name):
            self.names[node.id] = None
            return sp.Symbol(node.id, real=True) if node.id in self.real else _symbol(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            inner = self._expression(node.operand)
            return -inner if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
            raise self.wrong("has ^: a power is written **")
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return self._made(_OPERATIONS[type(node.op)], [node.left, node.right])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            name = node.func.id
            if name not in _FUNCTIONS:
                raise self.wrong(f"calls {name}, which is none of {', '.join(_FUNCTIONS)}")
            few = len(node.args) < 2 if name in ("min", "max") else len(node.args) != 1
            if few or any(isinstance(one, ast.Starred) for one in node.args):
                raise self.wrong(f"calls {name} with {len(node.args)} arguments")
            return self._made(_FUNCTIONS[name], node.args)
        raise self.wrong(
            f"has {ast.unparse(node)[:40]!r}: only numbers, names, + - * / ** and {', '.join(_FUNCTIONS)} may be in it"
        )

    def _made(self, operation: Callable[..., Any], nodes: Sequence[ast.expr]) -> sp.Expr:
        """Of parts that are all numbers, with the arithmetic of floats, which cannot take for ever."""
        parts = [self._expression(node) for node in nodes]
        if not all(part.is_Number for part in parts):
            return operation(*parts)
        try:
            if operation in _OPERATIONS.values():
                return self._known(operation(*(float(part) for part in parts)))
            return self._known(float(operation(*parts)))
        except (ArithmeticError, TypeError, ValueError):
            raise self.wrong("has a number that is not finite") from None

    def _known(self, value: Any) -> sp.Expr:
        if isinstance(value, complex) or not np.isfinite(float(value)):
            raise self.wrong("has a number that is not finite")
        return sp.Integer(int(value)) if float(value).is_integer() and abs(value) < 1e6 else sp.Float(float(value), 17)


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A law by its formula. See `Law`. Made by `read_formula`."""

    name: str
    equation: str
    source: str
    expression: sp.Expr
    variables: tuple[str, ...]
    parameters: Mapping[str, str]
    """Coefficients, then other parameters, then exponents."""
    coefficients: int
    """How many of them are coefficients, by which the law is linear."""
    exponents: tuple[str, ...]
    signed: frozenset[str]
    floor: int | None
    centre: tuple[float, ...]
    """Of the log variables of the table; 0 until `at` is told."""

    absolute = True

    def at(self, log_x: Floats) -> Formula:
        """The same law with its coordinates centred at the means of log variables [I, V]."""
        return replace(self, centre=tuple(log_x.mean(axis=0).tolist()))

    @cached_property
    def _symbols(self) -> tuple[sp.Symbol, ...]:
        by_name = {one.name: one for one in self.expression.free_symbols}
        return tuple(by_name[name] for name in self.parameters)

    @cached_property
    def _logged(self) -> np.ndarray:
        """Which parameters have their logarithm for a coordinate [P]."""
        return np.array([name not in self.signed for name in self.parameters])

    @cached_property
    def linear(self) -> bool:
        """Whether log L is a linear function of the coordinates."""
        inner, q, _ = _in_coordinates(self.expression, self._symbols, self.variables, tuple(self._logged.tolist()))
        return all(_vanishes(sp.diff(sp.log(inner), a, b)) for a in q for b in q)

    @cached_property
    def powers(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """See `Law`."""
        found = {}
        for symbol in self._symbols[: self.coefficients]:
            term = sp.powsimp(sp.diff(self.expression, symbol), force=True)
            pairs = []
            for base, power in term.as_powers_dict().items():
                names = {one.name for one in base.free_symbols}
                of = [one.name for one in power.free_symbols if one.name in self.exponents]
                if len(names) == 1 and names <= set(self.variables) and len(of) == 1 and base.is_Symbol:
                    pairs.append((names.pop(), of[0]))
            if pairs:
                found[symbol.name] = tuple(sorted(pairs, key=lambda pair: self.variables.index(pair[0])))
        return found

    @cached_property
    def variable_of(self) -> dict[str, str]:
        """See `Law`."""
        return {
            name: " and ".join(v for v in self.variables if v in of) or "none"
            for name, of in _bases(self.expression, self.variables).items()
            if name in self.exponents
        } | {name: "no variable" for name in self.exponents if name not in _bases(self.expression, self.variables)}

    @cached_property
    def _at_centre(self) -> dict[sp.Symbol, float]:
        """Where derivatives are looked at: variables at the centre, parameters where they may well be."""
        values = {_symbol(v): float(np.exp(c)) for v, c in zip(self.variables, self.centre, strict=True)}
        return values | {
            one: 0.4 if one.name in self.exponents else scale
            for one, scale in zip(self._symbols, self._scales, strict=True)
        }

    @cached_property
    def _scales(self) -> list[float]:
        """The size that each parameter has in the units of what it is added to or divided by."""
        values = {_symbol(v): float(np.exp(c)) for v, c in zip(self.variables, self.centre, strict=True)}
        values |= {one: 0.4 if one.name in self.exponents else 1.0 for one in self._symbols}
        return [_scale(self.expression, one, values, self.variables) for one in self._symbols]

    @cached_property
    def _map(self) -> Floats:
        """[P, P], from coordinates to logs of coefficients and to the rest, which stays."""
        matrix = np.eye(len(self.parameters))
        for k in range(self.coefficients):
            log_term = sp.log(sp.diff(self.expression, self._symbols[k]))
            for j, name in enumerate(self.parameters):
                if name in self.exponents:
                    slope = sp.diff(log_term, self._symbols[j]).subs(self._at_centre).evalf()
                    matrix[k, j] = -float(slope) if slope.is_real and slope.is_finite else 0.0
        return matrix

    @cached_property
    def _compiled(self) -> tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, int]]]:
        return _compile(self.expression, self._symbols, self.variables, tuple(self._logged.tolist()))

    def _arguments(self, theta: Floats, x_IV: Floats) -> list[Floats]:
        q = theta @ self._map.T
        return [*(q[:, [j]] for j in range(q.shape[1])), *(x_IV[None, :, v] for v in range(x_IV.shape[1]))]

    def _first(self, theta: Floats, x_IV: Floats) -> list[Floats]:
        """L and its derivatives by parameters in logs, each [R, I]."""
        shape = (len(theta), len(x_IV))
        with np.errstate(all="ignore"):
            parts = self._compiled[0](*self._arguments(theta, x_IV))
        return [np.broadcast_to(np.asarray(part, float), shape) for part in parts]

    def log_value(self, theta: Floats, x_IV: Floats) -> Floats:
        """See `Law`. NaN where the formula is not above 0."""
        with np.errstate(all="ignore"):
            return np.asarray(np.log(self._first(theta, x_IV)[0]))

    def derivatives(self, theta: Floats, x_IV: Floats) -> tuple[Floats, Floats, Curvature]:
        """See `Law`."""
        value, *first = self._first(theta, x_IV)
        with np.errstate(all="ignore"):
            slope = np.stack([one / value for one in first], axis=1)

        def curvature(weights: Floats) -> Floats:
            hessian = -gram(slope, weights)
            with np.errstate(all="ignore"):
                parts = self._compiled[1](*self._arguments(theta, x_IV))
                for (i, j), part in zip(self._compiled[2], parts, strict=True):
                    total = (weights / value * part).sum(axis=1)
                    hessian[:, i, j] += total
                    if i != j:
                        hessian[:, j, i] += total
            return np.asarray(self._map.T @ hessian @ self._map)

        with np.errstate(all="ignore"):
            return np.log(value), np.matmul(self._map.T, slope), curvature

    def canonical(self, theta: Floats, refs: Floats) -> Floats:
        """See `Law`."""
        self._check(refs)
        q = theta @ self._map.T
        with np.errstate(over="ignore"):
            return np.where(self._logged, np.exp(np.where(self._logged, q, 0.0)), q)

    def coordinates(self, params: Mapping[str, float], refs: Floats) -> Floats:
        """See `Law`."""
        self._check(refs)
        quoted = np.array([params[name] for name in self.parameters], float)
        return np.asarray(np.linalg.solve(self._map, np.where(self._logged, np.log(np.abs(quoted)), quoted)))

    def recentred(self, theta: Floats, old: Floats, new: Floats) -> Floats:
        """See `Law`. A formula's centre is the table's and stays."""
        self._check(old)
        self._check(new)
        return theta

    def functional(self, name: str, refs: Floats) -> Floats | None:
        """See `Law`."""
        self._check(refs)
        return self._map[list(self.parameters).index(name)]

    def basis(self, exponents: Floats, x_IV: Floats, log_y: Floats) -> tuple[Floats, Floats]:
        """See `Law`."""
        theta = np.concatenate([np.zeros((len(exponents), self.coefficients)), exponents], axis=1)
        value, *first = self._first(theta, x_IV)
        scaled = [one / np.exp(log_y) for one in first[: self.coefficients]]
        basis = np.stack(scaled, axis=2) if scaled else np.zeros((*value.shape, 0))
        return np.nan_to_num(basis), np.nan_to_num(1 - (value / np.exp(log_y) - basis.sum(axis=2)))

    def join(self, log_coefficients: Floats, exponents: Floats) -> Floats:
        """See `Law`."""
        return np.concatenate([log_coefficients, exponents], axis=1)

    def shape(self, log_y: Floats) -> tuple[Floats, Floats, Floats]:
        """See `Law`."""
        names = list(self.parameters)[self.coefficients :]
        if all(name in self.exponents and name not in self._both_ways for name in names) and len(names) in GRIDS:
            low, high = (np.full(len(names), end) for end in EXPONENT_BOUNDS)
            return low, high, np.array(list(product(GRIDS[len(names)], repeat=len(names))))
        spans = [self._span(name, log_y) for name in names]
        low, high = (np.array([span[end] for span in spans]) for end in (0, 1))
        rng = np.random.default_rng(0)
        even = (np.arange(SCATTERED if names else 1) + 0.5) / SCATTERED
        return low, high, np.stack([start(rng.permutation(even)) for _, _, start in spans], axis=1) if names else (
            np.zeros((1, 0))
        )  # fmt: skip

    @property
    def _both_ways(self) -> frozenset[str]:
        """Exponents declared real."""
        return frozenset(one.name for one in self._symbols if not one.is_positive)

    def _span(self, name: str, log_y: Floats) -> tuple[float, float, Callable[[Floats], Floats]]:
        """Bounds of a coordinate, and the function that takes numbers from 0 to 1 to starts of it."""
        if name in self.exponents:
            if name in self._both_ways:
                return -EXPONENT_BOUNDS[1], EXPONENT_BOUNDS[1], lambda share: 3 * share - 1.5
            return *EXPONENT_BOUNDS, lambda share: np.exp(np.log(0.03) + share * np.log(2.0 / 0.03))
        scale = self._scales[list(self.parameters).index(name)]
        if name in self.signed:
            size = max(scale, float(np.exp(log_y.mean())))
            return -1e4 * size, 1e4 * size, lambda share: 4 * size * (share - 0.5)
        middle = float(np.log(scale))
        return middle - REACH, middle + REACH, lambda share: middle + 12 * (share - 0.5)

    @staticmethod
    def _check(refs: Floats) -> None:
        if np.any(refs):
            raise AssertionError("a formula takes variables that are not centred: Sample.absolute")


Coordinates = tuple[sp.Expr, list[sp.Symbol], list[sp.Symbol]]


def _in_coordinates(
    expression: sp.Expr, symbols: Sequence[sp.Symbol], variables: Sequence[str], logged: Sequence[bool]
) -> Coordinates:
    """The expression in log variables and logs of parameters: powers and coefficients become one exponential each."""
    q = [sp.Symbol(f"q{j}", real=True) for j in range(len(symbols))]
    x = [sp.Symbol(f"x{v}", real=True) for v in range(len(variables))]
    new = {one: sp.exp(c) if log else c for one, c, log in zip(symbols, q, logged, strict=True)}
    new |= {_symbol(name): sp.exp(one) for name, one in zip(variables, x, strict=True)}
    return expression.xreplace(new), q, x


@lru_cache(maxsize=64)
def _compile(
    expression: sp.Expr, symbols: tuple[sp.Symbol, ...], variables: tuple[str, ...], logged: tuple[bool, ...]
) -> tuple[Callable[..., Any], Callable[..., Any], list[tuple[int, int]]]:
    """Functions of parameters in logs and log variables: L with gradient, and the entries of the Hessian, listed."""
    inner, q, x = _in_coordinates(expression, symbols, variables, logged)
    first = [sp.diff(inner, one) for one in q]
    pairs = [(i, j) for i in range(len(q)) for j in range(i + 1)]
    second = {pair: sp.diff(first[pair[0]], q[pair[1]]) for pair in pairs}
    second = {pair: one for pair, one in second.items() if one != 0}
    made = [sp.lambdify([*q, *x], of, modules="numpy", cse=True) for of in ([inner, *first], list(second.values()))]
    return made[0], made[1], list(second)


def _vanishes(expression: sp.Expr) -> bool:
    """Whether it is 0 everywhere, which two points tell; to expand it could take for ever."""
    if expression == 0:
        return True
    for place in (0.37, 0.73):
        ordered = sorted(expression.free_symbols, key=lambda one: one.name)
        values = {one: place + 0.1 * j for j, one in enumerate(ordered)}
        if not abs(complex(expression.subs(values).evalf())) < 1e-9:
            return False
    return True


def _bases(expression: sp.Expr, variables: Sequence[str]) -> dict[str, set[str]]:
    """Parameters that stand in the exponent of a power of variables, with the variables in its base."""
    found: dict[str, set[str]] = {}
    for node in sp.preorder_traversal(expression):
        if isinstance(node, sp.Pow):
            of = {one.name for one in node.base.free_symbols} & set(variables)
            for one in node.exp.free_symbols if of else ():
                if one.name not in variables:
                    found.setdefault(one.name, set()).update(of)
    return found


def _scale(
    expression: sp.Expr, symbol: sp.Symbol, values: Mapping[sp.Symbol, float], variables: Sequence[str]
) -> float:
    """|parameter| at which it is as large as the variables that it is added to, compared with or divided by."""
    scale = 1.0
    for node in sp.preorder_traversal(expression):
        if isinstance(node, Relational):
            node = node.lhs - node.rhs
        if not isinstance(node, (sp.Add, sp.Mul)):
            continue
        own = [one for one in node.args if symbol in one.free_symbols]
        rest = node.func(*(one for one in node.args if symbol not in one.free_symbols))
        power = own[0].as_coeff_exponent(symbol)[1] if len(own) == 1 else 0
        if (
            not getattr(power, "is_Number", False)
            or power == 0
            or not {one.name for one in rest.free_symbols} & set(variables)
        ):
            continue
        size = abs(complex(rest.subs(values).evalf()))
        size = size if isinstance(node, sp.Add) else 1 / size if size > 0 else 0.0
        found = size ** (1 / float(power)) if size > 0 else 0.0
        if np.isfinite(found) and 0 < found < 1e200:
            scale = float(found)
    return scale


def read_formula(name: str, given: Any, columns: Iterable[str]) -> Formula:
    """The law of one entry of `analysis.formulas`: a formula, or a mapping of `formula`, `exponents`, `real`, `floor`.

    `columns` are the table's. Raises a `ValueError` of one sentence for what cannot be a law.
    """
    said = check_formula(name, given)
    known = {*VARIABLES, *columns}
    parameters = [one for one in said.names if one not in known]
    for one in parameters:
        near = [other for other in known if other.lower() == one.lower()]
        if near and one not in said.declared:
            raise said.wrong(f"has {one}, which is called {near[0]}: write {near[0]}, or declare it as a parameter")
    for one in TARGETS:
        if one in said.names:
            raise said.wrong(f"has {one} in it, and is itself what {one} is")
    for one in said.declared:
        if one not in parameters:
            raise said.wrong(f"declares {one}, which is no parameter of it")
    variables = (
        *(v for v in VARIABLES if v in said.names),
        *(one for one in said.names if one in known and one not in VARIABLES),
    )
    if not variables:
        raise said.wrong("has no variable: it must have one of N, D, C, w, d or a column of the table")
    if not parameters:
        raise said.wrong("has no parameters, so there is nothing to fit")
    if len(parameters) > MOST_PARAMETERS:
        raise said.wrong(f"has {len(parameters)} parameters, and {MOST_PARAMETERS} are the most that can be fitted")
    there = {one.name for one in said.expression.free_symbols}
    for one in (*parameters, *variables):
        if one not in there:
            raise said.wrong(f"does not depend on {one}, which cancels")
    return _law(said, variables, parameters)


@dataclass(frozen=True)
class Said:
    """What a person wrote of one formula, read but not yet set against a table."""

    name: str
    text: str
    expression: sp.Expr
    names: tuple[str, ...]
    """In the order in which they appear."""
    exponents: tuple[str, ...]
    real: tuple[str, ...]
    floor: str | None
    source: str

    @property
    def declared(self) -> tuple[str, ...]:
        """Names that are said to be parameters."""
        return tuple(dict.fromkeys((*self.exponents, *self.real, *([self.floor] if self.floor else []))))

    def wrong(self, what: str) -> ValueError:
        """The error that refuses it."""
        return _wrong(self.name, what)


def check_formula(name: str, given: Any) -> Said:
    """Read one entry of `analysis.formulas` as far as that goes without a table; `ValueError` as `read_formula`."""

    def wrong(what: str) -> ValueError:
        return _wrong(name, what)

    said = dict(given) if isinstance(given, Mapping) else {"formula": given}
    for one in said:
        if one not in _KEYS:
            raise wrong(f"has the key {one}, which is none of {', '.join(_KEYS)}")
    text = said.get("formula")
    if not isinstance(text, str) or not text.strip():
        raise wrong("is no text: give a formula such as 'E + A*N**-a'")
    real, exponents = (_names(said.get(part), part, wrong) for part in ("real", "exponents"))
    reader = _Reader(real, wrong)
    expression = reader.read(text)
    for one in reader.names:
        if one in _FUNCTIONS:
            raise wrong(f"has {one} without its argument")
    floor = said.get("floor")
    if floor is not None and not isinstance(floor, str):
        raise wrong("must have the name of one parameter as floor")
    source = str(said.get("source") or "a formula of analysis.formulas")
    return Said(name, text, expression, tuple(reader.names), exponents, real, floor, source)


def _wrong(name: str, what: str) -> ValueError:
    return ValueError(f"analysis.formulas.{name} {what}")


def _names(given: Any, part: str, wrong: Callable[[str], ValueError]) -> tuple[str, ...]:
    given = () if given is None else (given,) if isinstance(given, str) else given
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, str) for one in given):
        raise wrong(f"must have a list of parameters as {part}")
    return tuple(given)


def _law(said: Said, variables: tuple[str, ...], parameters: Sequence[str]) -> Formula:
    """Sort parameters into coefficients, exponents and others."""
    expression, real, wrong = said.expression, said.real, said.wrong
    symbols = {one.name: one for one in expression.free_symbols}
    bases = _bases(expression, variables)
    exponents = said.exponents or tuple(sorted(bases, key=lambda one: _rank(bases[one], variables)))
    if not exponents:
        raise wrong("has no exponent, by which families are compared: name one as {formula: ..., exponents: [a]}")
    others = [one for one in parameters if one not in exponents]
    coefficients: list[str] = []
    for one in (one for one in others if one not in real):
        slope = sp.diff(expression, symbols[one])
        if all(_vanishes(sp.diff(slope, symbols[other])) for other in (one, *coefficients)):
            coefficients.append(one)
    alone = [one for one in coefficients if sp.diff(expression, symbols[one]) == 1]
    floor = said.floor or (alone[0] if alone else None)
    if floor is not None and floor not in alone:
        raise wrong(f"has the floor {floor}, which is no parameter above 0 that is added alone")
    coefficients.sort(key=lambda one: one != floor)
    order = [*coefficients, *(one for one in others if one not in coefficients), *exponents]
    about = dict.fromkeys(order, "parameter")
    about |= {one: f"coefficient of {_shown(str(sp.diff(expression, symbols[one])))}" for one in coefficients}
    about |= {one: f"exponent in {' and '.join(v for v in variables if v in bases.get(one, ()))}" for one in exponents}
    about |= {floor: "floor"} if floor else {}
    return Formula(
        name=said.name,
        equation=f"L = {_shown(said.text)}",
        source=said.source,
        expression=expression,
        variables=variables,
        parameters=about,
        coefficients=len(coefficients),
        exponents=exponents,
        signed=frozenset((*exponents, *real)),
        floor=0 if floor else None,
        centre=(0.0,) * len(variables),
    )


def _rank(of: set[str], variables: Sequence[str]) -> tuple[int, int]:
    """Exponents of N first, of several variables last among those of the first."""
    return min(variables.index(v) for v in of), len(of)


def _shown(text: str) -> str:
    """A formula as it is set in text."""
    return " ".join(text.replace("**", "^").replace("*", " ").split())
