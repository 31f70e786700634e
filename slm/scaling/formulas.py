"""Laws that users write: formulas of the loss, parsed without `eval`.

A name in a formula is a variable of `VARIABLES`, a column of the table, or else a parameter. Parameters are above 0
unless they are declared `real`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import sympy as sp

from slm.scaling.forms import VARIABLES
from slm.scaling.symbolic import Formula, bases_of_exponents, positive, vanishes
from slm.scaling.tables.columns import TARGETS
from slm.scaling.tables.values import NotComputable, evaluate, parse

MAX_PARAMETERS = 9
MAX_CHARACTERS = 500
_KEYS = ("formula", "exponents", "real", "floor", "source")


def _smallest(first: Any, second: Any, *more: Any) -> Any:
    return reduce(lambda a, b: sp.Piecewise((a, a <= b), (b, True)), (first, second, *more))


def _largest(first: Any, second: Any, *more: Any) -> Any:
    return reduce(lambda a, b: sp.Piecewise((a, a >= b), (b, True)), (first, second, *more))


_FUNCTIONS = {"exp": sp.exp, "log": sp.log, "sqrt": sp.sqrt, "min": _smallest, "max": _largest}


@dataclass(frozen=True)
class _Written:
    """A formula of a user, parsed without knowing the columns of a table."""

    text: str
    expression: sp.Expr
    names: tuple[str, ...]
    """Variables and parameters in order of appearance."""
    exponents: tuple[str, ...]
    real: tuple[str, ...]
    floor: str | None
    source: str


def check_formula(name: str, given: Any) -> None:
    """Raise the `ValueError` of `read_formula` for an entry of `analysis.formulas` that fits no table."""
    try:
        _read(given)
    except NotComputable as error:
        raise ValueError(f"analysis.formulas.{name} {error}") from None


def read_formula(name: str, given: Any, columns: Iterable[str]) -> Formula:
    """The law of one entry of `analysis.formulas`: a formula, or a mapping of `formula`, `exponents`, `real`, `floor`.

    `columns` are those of the table. Raises a `ValueError` of one sentence for an entry that cannot be a law.
    """
    try:
        return _formula(name, _read(given), {*VARIABLES, *columns})
    except NotComputable as error:
        raise ValueError(f"analysis.formulas.{name} {error}") from None


def _read(given: Any) -> _Written:
    keys = dict(given) if isinstance(given, Mapping) else {"formula": given}
    for key in keys:
        if key not in _KEYS:
            raise NotComputable(f"has the key {key}; the keys are {', '.join(_KEYS)}")
    text, floor = keys.get("formula"), keys.get("floor")
    if not isinstance(text, str) or not text.strip():
        raise NotComputable("must be text, a formula such as 'E + A*N**-a'")
    if floor is not None and not isinstance(floor, str):
        raise NotComputable("must have the name of one parameter as floor")
    exponents, real = (_listed(keys.get(key), key) for key in ("exponents", "real"))
    names: dict[str, None] = {}

    def symbol(name: str) -> sp.Symbol:
        if name in _FUNCTIONS:
            raise NotComputable(f"it has {name} without its argument")
        names[name] = None
        return sp.Symbol(name, real=True) if name in real else positive(name)

    try:
        expression = sp.sympify(evaluate(parse(text, MAX_CHARACTERS), symbol, _FUNCTIONS, _apply))
    except (NotComputable, RecursionError) as error:
        hint = "it nests too deeply" if isinstance(error, RecursionError) else error
        hint = "it has ^: a power is written **" if "^" in text else hint
        allowed = f"only numbers, names, + - * / ** and {', '.join(_FUNCTIONS)} are allowed"
        raise NotComputable(f"is not a formula: {hint} ({allowed})") from None
    except (ArithmeticError, TypeError, ValueError):
        expression = sp.nan
    if expression.has(sp.oo, -sp.oo, sp.zoo, sp.nan, sp.I):
        raise NotComputable("has a number that is not finite")
    integers = {number: sp.Integer(int(number)) for number in expression.atoms(sp.Float) if number == int(number)}
    source = str(keys.get("source") or "a formula of analysis.formulas")
    return _Written(text, expression.xreplace(integers), tuple(names), exponents, real, floor, source)


def _apply(operation: Callable[..., Any], *operands: Any) -> Any:
    """Combine numbers as floats: sympy's exact arithmetic of 9**9**9**9 would never end."""
    result = operation(*(float(operand) if isinstance(operand, float) else operand for operand in operands))
    return float(result) if getattr(result, "is_Number", False) else result


def _listed(names: Any, key: str) -> tuple[str, ...]:
    names = () if names is None else (names,) if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise NotComputable(f"must have a list of parameters as {key}")
    return tuple(names)


def _check_names(
    written: _Written, column_names: set[str], variables: Sequence[str], parameters: Sequence[str]
) -> None:
    declared = {*written.exponents, *written.real, *([written.floor] if written.floor else [])}
    for name in parameters:
        near = [other for other in column_names if other.lower() == name.lower()]
        if near and name not in declared:
            raise NotComputable(f"has {name}, which is called {near[0]}: write {near[0]}, or declare it as a parameter")
    for name in TARGETS:
        if name in written.names:
            raise NotComputable(f"has {name} in it, which laws predict: leave it out")
    for name in sorted(declared - {*parameters}):
        raise NotComputable(f"declares {name}, which is not one of its parameters")
    if not variables:
        raise NotComputable("has no variable: it must have one of N, D, C, w, d or a column of the table")
    if not parameters:
        raise NotComputable("has no parameters, so there is nothing to fit")
    if len(parameters) > MAX_PARAMETERS:
        raise NotComputable(f"has {len(parameters)} parameters; at most {MAX_PARAMETERS} can be fitted")
    used = {symbol.name for symbol in written.expression.free_symbols}
    for name in (*parameters, *variables):
        if name not in used:
            raise NotComputable(f"does not depend on {name}, which cancels")


def _formula(law_name: str, written: _Written, column_names: set[str]) -> Formula:
    """The law, with names sorted into variables, coefficients, other parameters and exponents."""
    expression = written.expression
    columns = [name for name in written.names if name in column_names]
    variables = (*(v for v in VARIABLES if v in columns), *(v for v in columns if v not in VARIABLES))
    parameters = [name for name in written.names if name not in column_names]
    _check_names(written, column_names, variables, parameters)
    bases = bases_of_exponents(expression, variables)

    def rank(exponent: str) -> tuple[int, int]:
        """Order exponents by the first variable in the base, then by the number of variables there."""
        return min(variables.index(v) for v in bases[exponent]), len(bases[exponent])

    exponents = written.exponents or tuple(sorted((name for name in written.names if name in bases), key=rank))
    if not exponents:
        hint = "name one as {formula: ..., exponents: [a]}"
        raise NotComputable(f"has no exponent, by which families are compared: {hint}")
    others = [name for name in parameters if name not in exponents]
    slopes = {symbol.name: sp.diff(expression, symbol) for symbol in expression.free_symbols}
    coefficients: list[str] = []  # the expression is linear in all of them together
    for name in (name for name in others if name not in written.real):
        symbols = [symbol for symbol in expression.free_symbols if symbol.name in (name, *coefficients)]
        if all(vanishes(sp.diff(slopes[name], symbol)) for symbol in symbols):
            coefficients.append(name)
    added = [name for name in coefficients if slopes[name] == 1]
    floor = written.floor or (added[0] if added else None)
    if floor is not None and floor not in added:
        raise NotComputable(f"has the floor {floor}, which must be a parameter above 0 that is a term of its own")
    coefficients.sort(key=lambda name: name != floor)
    return Formula(
        name=law_name,
        equation="L = " + " ".join(written.text.replace("**", "^").replace("*", " ").split()),
        source=written.source,
        expression=expression,
        variables=variables,
        parameters=(*coefficients, *(name for name in others if name not in coefficients), *exponents),
        num_coefficients=len(coefficients),
        exponents=exponents,
        not_logged=frozenset((*exponents, *written.real)),
        floor=0 if floor else None,
        centre=(0.0,) * len(variables),
    )
