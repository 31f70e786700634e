"""Read laws that users write as formulas of the loss, without `eval`.

A name in a formula is a variable of `VARIABLES`, a column of the table, or else a parameter. Parameters are above 0
unless they are declared as `real`.
"""

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
    return reduce(lambda x, y: sp.Piecewise((x, x <= y), (y, True)), (first, second, *more))


def _largest(first: Any, second: Any, *more: Any) -> Any:
    return reduce(lambda x, y: sp.Piecewise((x, x >= y), (y, True)), (first, second, *more))


_FUNCTIONS = {"exp": sp.exp, "log": sp.log, "sqrt": sp.sqrt, "min": _smallest, "max": _largest}


@dataclass(frozen=True)
class _ParsedFormula:
    """A formula of a user, before the columns of a table decide which of its names are variables."""

    text: str
    expression: sp.Expr
    names: tuple[str, ...]  # of variables and parameters, in order of appearance
    exponents: tuple[str, ...]  # as declared in the entry; empty if they are to be found
    real: tuple[str, ...]  # parameters that may also be negative
    floor: str | None
    source: str


def check_formula(name: str, entry: Any) -> None:
    """Raise `ValueError` if an entry of `analysis.formulas` is wrong for every table."""
    try:
        _parse_entry(entry)
    except NotComputable as error:
        raise ValueError(f"analysis.formulas.{name} {error}") from None


def read_formula(name: str, entry: Any, columns: Iterable[str]) -> Formula:
    """Make a law from an entry of `analysis.formulas`: the text of a formula, or a mapping with keys from `_KEYS`.

    `columns` are the columns of the table. Raises a `ValueError` of one sentence for an entry that cannot be a law.
    """
    try:
        return _to_law(name, _parse_entry(entry), {*VARIABLES, *columns})
    except NotComputable as error:
        raise ValueError(f"analysis.formulas.{name} {error}") from None


def _parse_entry(entry: Any) -> _ParsedFormula:
    fields = dict(entry) if isinstance(entry, Mapping) else {"formula": entry}
    for key in fields:
        if key not in _KEYS:
            raise NotComputable(f"has the key {key}; the keys are {', '.join(_KEYS)}")
    text, floor = fields.get("formula"), fields.get("floor")
    if not isinstance(text, str) or not text.strip():
        raise NotComputable("must be text, a formula such as 'E + A*N**-a'")
    if floor is not None and not isinstance(floor, str):
        raise NotComputable("must have the name of one parameter as floor")
    exponents, real = _as_names(fields.get("exponents"), "exponents"), _as_names(fields.get("real"), "real")
    names: dict[str, None] = {}  # an ordered set

    def symbol(name: str) -> sp.Symbol:
        if name in _FUNCTIONS:
            raise NotComputable(f"it has the function {name} without an argument")
        names[name] = None
        return sp.Symbol(name, real=True) if name in real else positive(name)

    try:
        expression = sp.sympify(evaluate(parse(text, MAX_CHARACTERS), symbol, _FUNCTIONS, _apply))
    except (NotComputable, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        if "^" in text:
            reason = "it has ^: a power is written **"
        allowed = f"only numbers, names, + - * / ** and {', '.join(_FUNCTIONS)} are allowed"
        raise NotComputable(f"is not a formula: {reason} ({allowed})") from None
    except (ArithmeticError, TypeError, ValueError):  # such as 1/0: refused below
        expression = sp.nan
    if expression.has(sp.oo, -sp.oo, sp.zoo, sp.nan, sp.I):
        raise NotComputable("has a number that is not finite")
    # sympy simplifies the exponent 2, but not 2.0.
    integer_of = {number: sp.Integer(int(number)) for number in expression.atoms(sp.Float) if number == int(number)}
    source = str(fields.get("source") or "a formula of analysis.formulas")
    return _ParsedFormula(text, expression.xreplace(integer_of), tuple(names), exponents, real, floor, source)


def _apply(operation: Callable[..., Any], *operands: Any) -> Any:
    """Apply an operation with numbers as floats, because 9**9**9**9 in sympy's exact arithmetic would never end."""
    result = operation(*(float(operand) if isinstance(operand, float) else operand for operand in operands))
    return float(result) if getattr(result, "is_Number", False) else result


def _as_names(names: Any, key: str) -> tuple[str, ...]:
    if isinstance(names, str):
        return (names,)
    names = () if names is None else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise NotComputable(f"must have a list of parameters as {key}")
    return tuple(names)


def _check_names(parsed: _ParsedFormula, columns: set[str], variables: Sequence[str], parameters: list[str]) -> None:
    declared = {*parsed.exponents, *parsed.real}
    if parsed.floor:
        declared.add(parsed.floor)
    for name in parameters:
        column = next((other for other in columns if other.lower() == name.lower()), None)
        if column and name not in declared:
            raise NotComputable(f"has {name}, which is called {column}: write {column}, or declare it as a parameter")
    for name in TARGETS:
        if name in parsed.names:
            raise NotComputable(f"has {name}, which laws predict: leave it out")
    for name in sorted(declared - {*parameters}):
        raise NotComputable(f"declares {name}, which is not one of its parameters")
    if not variables:
        raise NotComputable("has no variable: it must have one of N, D, C, w, d or a column of the table")
    if not parameters:
        raise NotComputable("has no parameters, so there is nothing to fit")
    if len(parameters) > MAX_PARAMETERS:
        raise NotComputable(f"has {len(parameters)} parameters; at most {MAX_PARAMETERS} can be fitted")
    used = {symbol.name for symbol in parsed.expression.free_symbols}
    for name in (*parameters, *variables):
        if name not in used:
            raise NotComputable(f"does not depend on {name}, which cancels out")


def _to_law(law_name: str, parsed: _ParsedFormula, column_names: set[str]) -> Formula:
    """Sort the names of a formula into variables, coefficients, other parameters and exponents, and make the law."""
    expression = parsed.expression
    columns = [name for name in parsed.names if name in column_names]
    standard = [name for name in VARIABLES if name in columns]
    variables = (*standard, *(name for name in columns if name not in standard))
    parameters = [name for name in parsed.names if name not in column_names]
    _check_names(parsed, column_names, variables, parameters)
    bases = bases_of_exponents(expression, variables)

    def sort_key(exponent: str) -> tuple[int, int]:
        first_variable_in_base = min(variables.index(v) for v in bases[exponent])  # variables are in standard order
        return first_variable_in_base, len(bases[exponent])

    exponents = parsed.exponents or tuple(sorted((name for name in parsed.names if name in bases), key=sort_key))
    if not exponents:
        raise NotComputable("has no exponent to compare families by: name one, as in {formula: ..., exponents: [a]}")
    others = [name for name in parameters if name not in exponents]
    slopes = {symbol.name: sp.diff(expression, symbol) for symbol in expression.free_symbols}
    coefficients: list[str] = []  # the expression is linear in all of them together
    for name in others:
        # The slope in a coefficient depends neither on the coefficient itself nor on those found so far.
        symbols = [symbol for symbol in expression.free_symbols if symbol.name in (name, *coefficients)]
        if name not in parsed.real and all(vanishes(sp.diff(slopes[name], symbol)) for symbol in symbols):
            coefficients.append(name)
    constant_terms = [name for name in coefficients if slopes[name] == 1]
    floor = parsed.floor or next(iter(constant_terms), None)
    if floor is not None and floor not in constant_terms:
        raise NotComputable(f"has the floor {floor}, which must be a parameter above 0 that is a term of its own")
    coefficients.sort(key=lambda name: name != floor)  # the floor comes first
    return Formula(
        name=law_name,
        equation="L = " + " ".join(parsed.text.replace("**", "^").replace("*", " ").split()),
        source=parsed.source,
        expression=expression,
        variables=variables,
        parameters=(*coefficients, *(name for name in others if name not in coefficients), *exponents),
        num_coefficients=len(coefficients),
        exponents=exponents,
        not_logged=frozenset((*exponents, *parsed.real)),
        floor=0 if floor else None,
        centre=(0.0,) * len(variables),
    )
