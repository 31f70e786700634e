"""Readable reference text out of Python source files, without importing them.

Standard library only, and no import of `slm`: `pydocs` runs this file as a script in plain subprocesses, so that
neither torch nor the caller's `__main__` is loaded again in every worker.

stdin: JSON list of [module name, path]. stdout: one JSON line a module, {"module", "parts": [[heading, text], ...]}.
"""

import ast
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator

Part = tuple[str, str]  # heading, text

_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Modules that hold the reference of compiled functions as string literals: torch/_torch_docs.py, pydoc_data/topics.py,
# numpy/_core/_add_newdocs.py, scipy/special/_add_newdocs.py, pandas/core/shared_docs.py ...
_REFERENCE_MODULE = re.compile(r"(^|[._])(add_newdocs|docs|docstrings|topics)($|_)")
_PLACEHOLDER_LINE = re.compile(r"^[ \t]*[{%][\w()]+[}s]?[ \t]*\n?", re.MULTILINE)  # "{input}", "%(example)s"
_MIN_WORDS = 0.2  # share of characters; English prose has 0.8, an example session 0.3
_MIN_PART = 48  # characters: below this a docstring repeats the name of what it documents
_MIN_LITERAL = 200  # characters: shorter literals in a reference module are names and error messages


def module_parts(source: str, module: str) -> list[Part]:
    """Docstrings of the module, its classes and functions in source order; the long literals of a reference module.

    Raises SyntaxError or ValueError for a source that this version of Python does not parse.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
        tree = ast.parse(source)
    parts = [("", ast.get_docstring(tree) or ""), *_walk(tree.body, "")]
    if _REFERENCE_MODULE.search(module):
        parts += [("", text) for text in _literals(tree)]
    cleaned = ((heading, _clean(text)) for heading, text in parts)
    return [(heading, text) for heading, text in cleaned if len(text) >= _MIN_PART and is_prose(text)]


def is_prose(text: str) -> bool:
    """Whether a good part of the characters is words: in grammars, tables and encoded data it is not.

    Of the docstrings of torch, numpy, scipy, pandas and matplotlib, 99.9% of the characters pass.
    """
    words = sum(map(len, re.findall(r"(?<![^\s(\[`'\"*:])[A-Za-z][a-z']*(?=[\s.,:;)\]`'\"*?!]|$)", text)))
    return words / len(re.sub(r"\s+", "", text)) > _MIN_WORDS


def _walk(body: list[ast.stmt], prefix: str) -> Iterator[Part]:
    for node in body:
        if isinstance(node, _DOCUMENTED):
            name = prefix + node.name
            yield _heading(node, name), ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                yield from _walk(node.body, name + ".")
        elif isinstance(node, ast.If | ast.Try):  # definitions under a platform or version check
            yield from _walk(node.body, prefix)


def _heading(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return f"{name}({', '.join(a.arg for a in arguments if a.arg not in ('self', 'cls'))})"


def _literals(tree: ast.Module) -> Iterator[str]:
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (*_DOCUMENTED, ast.Module)) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    for node in sorted(texts, key=lambda node: (node.lineno, node.col_offset)):
        if node not in docstrings and len(text := str(node.value)) >= _MIN_LITERAL:
            yield inspect.cleandoc(text)


def _clean(text: str) -> str:
    text = text.encode(errors="replace").decode()  # a literal may hold a lone surrogate
    text = _PLACEHOLDER_LINE.sub("", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def main() -> None:
    """Answer one request on stdin."""
    for module, path in json.load(sys.stdin):
        try:
            parts = module_parts(_read(path), module)
        except (SyntaxError, ValueError, RecursionError):  # templates, Python 2 fixtures, other encodings
            continue
        if parts:
            print(json.dumps({"module": module, "parts": parts}))


if __name__ == "__main__":
    main()
