"""Arithmetic that users write, parsed without `eval`, and columns computed by it: `columns.N="params - vocab*width"`.

`slm.scaling.formulas` reads laws with the same parser.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import pandas as pd

from slm.runtime.words import shortened, shortlist
from slm.scaling.tables.values import format_value, parse_number

MAX_CHARACTERS = 200
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
# numpy's functions would accept a second argument, to write into.
_FUNCTIONS = {"log": lambda x: np.log(x), "exp": lambda x: np.exp(x), "sqrt": lambda x: np.sqrt(x)}
_ALLOWED = "names of columns, numbers, + - * / ** and log, exp, sqrt"


class NotComputable(ValueError):
    """The message says in a few words what is wrong with an expression."""


def parse(text: str, max_characters: int) -> ast.expr:
    """The syntax tree of an expression; `NotComputable` if it is too long or cannot be parsed."""
    if len(text) > max_characters:
        raise NotComputable(f"it has more than {max_characters} characters")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotComputable("it cannot be read") from None


def evaluate(
    node: ast.expr,
    value_of: Callable[[str], Any],
    functions: Mapping[str, Callable[..., Any]],
    apply: Callable[..., Any] = lambda operation, *operands: operation(*operands),
) -> Any:
    """The value of a tree of numbers, names, + - * / ** and calls of `functions`; `NotComputable` for anything else.

    `value_of` gives the value of a name; `apply(operation, *operands)` does each operation.
    """

    def compute(node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name):
                return value_of(name)
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                try:
                    return np.float64(value)
                except OverflowError:
                    raise NotComputable("it has too large a number") from None
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return apply(_OPERATORS[type(op)], compute(left), compute(right))
            case ast.UnaryOp(op=op, operand=inner) if type(op) in _OPERATORS:
                return apply(_OPERATORS[type(op)], compute(inner))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in functions:
                try:
                    return apply(functions[name], *map(compute, arguments))
                except TypeError:  # wrong number of arguments
                    pass
        raise NotComputable(f"it has {shortened(ast.unparse(node), 40)}")

    return compute(node)


def names_in(expression: str) -> list[str]:
    """The columns that an expression computes with; `NotComputable` if it is not arithmetic of columns and numbers.

    A name that is not an identifier stands in backticks, as in pandas: `` `params total` * 1e6 ``.
    """
    names: dict[str, None] = {}

    def record(name: str) -> Any:
        names[name] = None
        return np.float64(1)

    _compute(expression, record)
    if not names:
        raise NotComputable("it names no column")
    return list(names)


def source_columns(source: str, existing: Container[str]) -> list[str]:
    """The columns that `columns.NAME=source` reads: `source` itself, or those in the expression that it is."""
    try:
        return [source] if source in existing else names_in(source)
    except NotComputable:
        return [source]


def as_operand(source: str) -> str:
    """A column, or an expression that computes it, in the form that it needs inside a longer expression."""
    if source.isidentifier():
        return source
    try:
        names_in(source)
    except NotComputable:
        return f"`{source}`"
    return f"({source})"


def compute_column(raw: pd.DataFrame, name: str, expression: str, table: str) -> pd.Series:
    """The values of an expression in each row of `raw`. A row with an operand that is not a number keeps that operand.

    Raises a `ValueError` of one sentence if `expression` is neither a column nor arithmetic of columns.
    """
    try:
        needed, why = names_in(expression), ""
    except NotComputable as error:
        needed, why = [], f", and it is not arithmetic of columns ({error}; it may have {_ALLOWED})"
    missing = [column for column in needed if column not in raw]
    if missing and missing != [expression.strip()]:
        why = f", and no column {shortlist(missing)} to compute it with"
    if missing or why:
        raise ValueError(
            f"{table} has no column {format_value(expression)} (given as columns.{name}){why}: "
            f"it has {shortlist(raw.columns, 12)}"
        )
    numbers = {column: [parse_number(value) for value in raw[column]] for column in needed}
    operands = {c: np.array([np.nan if n is None else n for n in values]) for c, values in numbers.items()}
    values = np.broadcast_to(_compute(expression, operands.__getitem__), len(raw)).astype(float)
    # A value that is undefined although its operands are known (the log of -1) is impossible, not missing.
    has_operands = np.all([~np.isnan(values) for values in operands.values()], axis=0)
    result = pd.Series(np.where(has_operands & np.isnan(values), np.inf, values), raw.index, dtype=object)
    for column, written in numbers.items():
        for place in (place for place, value in enumerate(written) if value is None):
            result.iloc[place] = raw[column].iloc[place]
    return result


def _compute(expression: str, value_of: Callable[[str], Any]) -> Any:
    """`evaluate` for an expression whose names may stand in backticks."""
    identifiers: dict[str, str] = {}

    def identifier(match: re.Match[str]) -> str:
        return identifiers.setdefault(match[1], f"column_{len(identifiers)}_")

    tree = parse(re.sub(r"`([^`]+)`", identifier, expression.strip()), MAX_CHARACTERS)
    columns = {identifier: column for column, identifier in identifiers.items()}
    with np.errstate(all="ignore"):
        return evaluate(tree, lambda name: value_of(columns.get(name, name)), _FUNCTIONS)
