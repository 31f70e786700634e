"""Columns that are computed from others of the table, in one line: `columns.N="params - vocab*width"`."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.tables.values import number, shown
from slm.scaling.words import shortened, shortlist

LONGEST = 200
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"log": np.log, "exp": np.exp, "sqrt": np.sqrt}
_ALLOWED = "names of columns, numbers, + - * / ** and log, exp, sqrt"


class NotComputable(ValueError):
    """What is wrong with an expression, in a few words."""


def names_in(expression: str) -> list[str]:
    """The columns that an expression computes with; `NotComputable` if it is no arithmetic of columns and numbers.

    A name that is no identifier stands in backticks, as in pandas: `` `params total` * 1e6 ``.
    """
    tree, names = _parsed(expression)
    found: dict[str, None] = {}

    def note(name: str) -> Any:
        found[names.get(name, name)] = None
        return np.float64(1)

    with np.errstate(all="ignore"):
        _walk(tree, note)
    if not found:
        raise NotComputable("it names no column")
    return list(found)


def columns_of(own: str, known: Container[str]) -> list[str]:
    """The columns that `columns.NAME=own` is read from: the one of that name, or those of an expression."""
    try:
        return [own] if own in known else names_in(own)
    except NotComputable:
        return [own]


def operand(own: str) -> str:
    """A column, or the expression that it was computed by, as an expression may name it."""
    if own.isidentifier():
        return own
    try:
        names_in(own)
    except NotComputable:
        return f"`{own}`"
    return f"({own})"


def computed(raw: pd.DataFrame, name: str, expression: str, table: str) -> pd.Series:
    """The values of an expression, of unconverted rows; a row that holds something else than numbers keeps that.

    Raises `ValueError` of one sentence for what is neither a column nor an expression of columns.
    """
    try:
        needed = names_in(expression)
        why = ""
    except NotComputable as error:
        needed, why = [], f", and it is no arithmetic of columns ({error}; there may be {_ALLOWED})"
    missing = [column for column in needed if column not in raw]
    if missing and missing != [expression.strip()]:
        why = f", and no column {shortlist(missing)} to compute it with"
    if missing or why:
        raise ValueError(
            f"{table} has no column {shown(expression)} (given as columns.{name}){why}: "
            f"it has {shortlist(raw.columns, 12)}"
        )
    tree, names = _parsed(expression)
    numbers = {column: [number(value) for value in raw[column]] for column in needed}
    operands = {c: np.array([np.nan if n is None else n for n in of], float) for c, of in numbers.items()}
    with np.errstate(all="ignore"):
        values = np.broadcast_to(_walk(tree, lambda text: operands[names.get(text, text)]), len(raw)).astype(float)
    # What has no value where its operands have one (the log of -1) is impossible, which is not the same as missing.
    known = np.all([~np.isnan(of) for of in operands.values()], axis=0)
    result = pd.Series(np.where(known & np.isnan(values), np.inf, values), raw.index, dtype=object)
    for column, of in numbers.items():
        for place in (place for place, value in enumerate(of) if value is None):
            result.iloc[place] = raw[column].iloc[place]
    return result


def _parsed(expression: str) -> tuple[ast.expr, Mapping[str, str]]:
    names: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        return names.setdefault(match[1], f"column_{len(names)}_")

    text = re.sub(r"`([^`]+)`", stand_in, expression.strip())
    if len(text) > LONGEST:
        raise NotComputable(f"it has more than {LONGEST} characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise NotComputable("it cannot be read") from None
    return tree, {short: column for column, short in names.items()}


def _walk(node: ast.expr, column: Callable[[str], Any]) -> Any:
    """The value of a node of whitelisted kinds, its names replaced by what `column` returns."""
    match node:
        case ast.Name(id=name):
            return column(name)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            try:
                return np.float64(value)
            except OverflowError:
                raise NotComputable("it has too large a number") from None
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_walk(left, column), _walk(right, column))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_walk(operand, column))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_walk(argument, column))
    raise NotComputable(f"it has {shortened(ast.unparse(node), 40)}")
