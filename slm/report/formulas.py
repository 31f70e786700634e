"""Typeset the formulas of laws, such as `L = E + A N^-alpha`, as HTML with Greek letters and raised exponents."""

import html
import re
from collections.abc import Iterable

_TOKEN = re.compile(r"[^\W\d]\w*|\d+(?:\.\d+)?(?:e[-+]?\d+)?|\s+|.")
_NAME = re.compile(r"([^\W\d][^\W_]*)(?:_(\w+))?")  # a letter or word, and its index
_GREEK = dict(zip(("alpha", "beta", "gamma", "delta", "epsilon", "theta", "kappa", "lambda", "mu", "rho", "sigma",
                   "tau"), "αβγδεθκλμρστ", strict=True))  # fmt: skip
_FUNCTIONS = ("exp", "log", "max", "min", "sqrt")  # set upright
_SIGNS = {"-": "−", "*": "·"}


def letters_apart_from(names: Iterable[str]) -> set[str]:
    """The letters of exponents that a report may typeset: `alpha` and `beta`, unless a name contains them as a word."""
    text = "\n".join(names)
    return {letter for letter in ("alpha", "beta") if not re.search(rf"(?<!\w){letter}(?!\w)", text)}


def typeset(formula: str) -> str:
    """Return a formula as HTML; brackets around an exponent are left out, because its height shows where it ends."""
    return f'<span class="formula">{_typeset(_TOKEN.findall(formula))}</span>'


def _typeset(tokens: list[str]) -> str:
    parts = []
    position = 0
    while position < len(tokens):
        if tokens[position] == "^":
            end = _end_of_exponent(tokens, position + 1)
            parts.append(f"<sup>{_typeset(_without_brackets(tokens[position + 1 : end]))}</sup>")
            position = end
        else:
            parts.append(_token(tokens[position]))
            position += 1
    return "".join(parts)


def _end_of_exponent(tokens: list[str], start: int) -> int:
    """The index after an exponent: an optional sign, then one token or a group in brackets."""
    end = start + 1 if tokens[start : start + 1] in (["-"], ["+"]) else start
    depth = 0
    while end < len(tokens):
        depth += (tokens[end] == "(") - (tokens[end] == ")")
        end += 1
        if depth <= 0:
            break
    return end


def _without_brackets(tokens: list[str]) -> list[str]:
    return tokens[1:-1] if tokens[:1] == ["("] and tokens[-1:] == [")"] else tokens


def _token(token: str) -> str:
    name = _NAME.fullmatch(token)
    if name is None or token in _FUNCTIONS:
        return html.escape(_SIGNS.get(token, token))
    letter, index = (_GREEK.get(part, part) if part else "" for part in name.groups())
    return f"<i>{html.escape(letter)}</i>" + (f"<sub>{html.escape(index)}</sub>" if index else "")
