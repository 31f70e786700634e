"""Parse values as users write them: numbers, booleans, statuses of runs, and arithmetic (without `eval`)."""

import ast
import math
import operator
import re
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import pandas as pd

from slm.runtime.words import shortened, shortlist

_BLANKS = {"", "nan", "na", "n/a", "null", "none", "-"}
COMPLETED = frozenset({"completed", "complete", "finished", "done", "success", "successful", "succeeded", "ok", "okay"})
"""Words for a complete run in W&B, MLflow, SLURM and tables written by hand."""
_NOT_COMPLETED = {
    "crashed", "failed", "failure", "error", "killed", "running", "pending", "queued", "scheduled", "preempting",
    "preempted", "diverged", "interrupted", "cancelled", "canceled", "timeout", "out_of_memory", "oom", "node_fail",
    "stopped", "aborted", "suspended", "terminated",
}  # fmt: skip
MAX_CHARACTERS = 200
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
# Lambdas, because the functions of numpy accept a second argument, into which they write.
_FUNCTIONS = {"log": lambda x: np.log(x), "exp": lambda x: np.exp(x), "sqrt": lambda x: np.sqrt(x)}
_ALLOWED = "names of columns, numbers, + - * / ** and log, exp, sqrt"


def format_value(value: Any) -> str:
    """The text of a value for a message; a long text is shortened in the middle."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return shortened(value)


def is_blank(value: Any) -> bool:
    """Whether there is no value: None, NaN, or text such as `NA`."""
    if isinstance(value, str):
        return value.strip().lower() in _BLANKS
    if isinstance(value, (list, dict, tuple)):
        return False
    return value is None or bool(np.all(pd.isna(value)))


def parse_number(value: Any) -> float | None:
    """Convert a value or its text (`1e9`, `1_000`) to a float: NaN if it is blank, None if it is not a number."""
    if is_blank(value):
        return math.nan
    if isinstance(value, (bool, np.bool_, list, dict, tuple)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def parse_booleans(values: pd.Series) -> pd.Series | None:
    """Convert true and false, in any case, to booleans (None if blank); None if there are others, or only blanks."""
    words = [None if is_blank(value) else str(value).strip().lower() for value in values]
    distinct_words = {word for word in words if word is not None}
    if not distinct_words or not distinct_words <= {"true", "false"}:
        return None
    booleans = [None if word is None else word == "true" for word in words]
    return pd.Series(booleans, values.index, dtype=object if None in words else bool)


def status_word(value: Any) -> str:
    """The status in lower case; `no status` if it is blank."""
    return "no status" if is_blank(value) else str(value).strip().lower()


def has_statuses(values: pd.Series) -> bool:
    """Whether most values are statuses of runs, such as `finished`, or `CANCELLED+` and `CANCELLED by 7` of SLURM."""
    words = [status_word(value).split()[0].rstrip("+") for value in values if not is_blank(value)]
    return 2 * sum(word in COMPLETED or word in _NOT_COMPLETED for word in words) > len(words)


class NotComputable(ValueError):
    """Raised for an expression that cannot be computed; the message says in a few words why."""


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
    """The value of a syntax tree of numbers, names, + - * / ** and `functions`; `NotComputable` for anything else.

    `value_of` returns the value of a name; `apply(operation, *operands)` performs each operation.
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
                except TypeError:  # wrong number of arguments: refused below
                    pass
        raise NotComputable(f"it has {shortened(ast.unparse(node), 40)}")

    return compute(node)


def names_in(expression: str) -> list[str]:
    """The columns that an expression computes with; `NotComputable` if it is not arithmetic of columns and numbers.

    A name that is not an identifier must be in backticks, as in pandas: `` `params total` * 1e6 ``.
    """
    names: dict[str, None] = {}  # an ordered set

    def record(name: str) -> Any:
        names[name] = None
        return np.float64(1)

    _compute(expression, record)  # with 1 for every column: only the names matter
    if not names:
        raise NotComputable("it names no column")
    return list(names)


def source_columns(source: str, existing: Container[str]) -> list[str]:
    """The columns that `columns.NAME=source` reads: `source` if it is a column, else the names in the expression."""
    try:
        return [source] if source in existing else names_in(source)
    except NotComputable:
        return [source]


def as_operand(source: str) -> str:
    """Quote a column, or parenthesise an expression, so that it can be an operand of a longer expression."""
    if source.isidentifier():
        return source
    try:
        names_in(source)
    except NotComputable:
        return f"`{source}`"
    return f"({source})"


def compute_column(raw: pd.DataFrame, name: str, expression: str, table: str) -> pd.Series:
    """Compute an expression in each row of `raw`. If an operand is not a number, the result in this row is the operand.

    Raises a `ValueError` of one sentence if `expression` is neither a column nor arithmetic of columns.
    """
    try:
        needed, reason = names_in(expression), ""
    except NotComputable as error:
        needed, reason = [], f", and it is not arithmetic of columns ({error}; it may have {_ALLOWED})"
    missing = [column for column in needed if column not in raw]
    if missing and missing != [expression.strip()]:  # not just a wrong name of a column
        reason = f", and no column {shortlist(missing)} to compute it with"
    if missing or reason:
        raise ValueError(
            f"{table} has no column {format_value(expression)} (given as columns.{name}){reason}: "
            f"it has {shortlist(raw.columns, 12)}"
        )
    numbers = {column: [parse_number(value) for value in raw[column]] for column in needed}
    operands = {column: np.array(parsed, dtype=float) for column, parsed in numbers.items()}  # None becomes NaN
    values = np.broadcast_to(_compute(expression, operands.__getitem__), len(raw)).astype(float)
    # A value that is undefined although its operands are known (the log of -1) is impossible, not missing.
    has_operands = np.all([~np.isnan(operand) for operand in operands.values()], axis=0)
    result = pd.Series(np.where(has_operands & np.isnan(values), np.inf, values), raw.index, dtype=object)
    for column, parsed in numbers.items():
        for position, number in enumerate(parsed):
            if number is None:
                result.iloc[position] = raw[column].iloc[position]
    return result


def _compute(expression: str, value_of: Callable[[str], Any]) -> Any:
    """`evaluate` for an expression with names that may be in backticks."""
    identifier_of: dict[str, str] = {}

    def as_identifier(match: re.Match[str]) -> str:
        return identifier_of.setdefault(match[1], f"column_{len(identifier_of)}_")

    tree = parse(re.sub(r"`([^`]+)`", as_identifier, expression.strip()), MAX_CHARACTERS)
    column_of = {identifier: column for column, identifier in identifier_of.items()}
    with np.errstate(all="ignore"):
        return evaluate(tree, lambda name: value_of(column_of.get(name, name)), _FUNCTIONS)
