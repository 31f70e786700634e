"""Source `pydocs`: docstrings of installed Python packages, so that a first run needs no download.

The text is docstrings and reference prose of the Python standard library and of slm's own dependencies, one document
per module. Modules are parsed, not imported. The same versions of Python and the packages give the same text.

This file imports only the standard library, because worker processes run it as a script. A multiprocessing pool would
import the caller's `__main__`, and thereby torch, in every worker.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

VERSION = 1  # part of `key`: change it when the same files would give different text

Part = tuple[str, str]  # the heading and the text of one docstring

# Tests and examples document nothing; copies of other packages and lib2to3's fixtures repeat other files.
_TESTS = {"test", "tests", "_test", "_tests", "_examples", "idle_test", "lib2to3", "turtledemo", "ensurepip"}
_COPIES = {"vendor", "vendored", "_vendor", "_vendored", "third_party", "extern", "site-packages", "dist-packages"}
_SKIPPED_FOLDERS = _TESTS | _COPIES
# Modules that hold the reference of compiled functions as string literals: torch/_torch_docs.py, pydoc_data/topics.py,
# numpy/_core/_add_newdocs.py, scipy/special/_add_newdocs.py, pandas/core/shared_docs.py ...
_REFERENCE_MODULE = re.compile(r"(^|[._])(add_newdocs|docs|docstrings|topics)($|_)")
_PLACEHOLDER_LINE = re.compile(r"^[ \t]*[{%][\w()]+[}s]?[ \t]*\n?", re.MULTILINE)  # "{input}", "%(example)s"
_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_MIN_DOCUMENT_BYTES = 300  # shorter documents are the one-line summary of an internal module
_MIN_PART_CHARACTERS = 48  # shorter docstrings only repeat the name of a function or class
_MIN_LITERAL_CHARACTERS = 200  # shorter literals in a reference module are names and error messages
_MIN_LINE_CHARACTERS = 12  # shorter lines ("Returns", "-------") are in every docstring
_MIN_WORD_SHARE = 0.2  # share of the characters that are in words; 0.8 in English prose, 0.3 in an example session
_MAX_REPEATED_SHARE = 0.7  # share of the characters in lines seen before; a docstring with more is a near-copy
_FILES_PER_WORKER = 48  # about half a second of work


def key(data: Mapping[str, Any]) -> Any:
    """Return the versions of Python and of the packages; raises ValueError if a package is not installed."""
    versions = {}
    for package in data["packages"]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(f"data.packages: {package} is not installed; install it or drop it") from None
    return {"pydocs": VERSION, "python": sys.version.split()[0], "packages": versions}


def documents(data: Mapping[str, Any]) -> Iterator[tuple[str, None]]:
    """Yield (text, None) for each module, sorted by name: of the standard library, then of each of `data.packages`."""
    seen_lines = set[bytes]()
    for module, parts in module_parts_of(data["packages"]):
        new_parts = [f"{heading}\n\n{text}".lstrip() for heading, text in parts if is_new(text, seen_lines)]
        document = "\n\n".join([module, *new_parts]) + "\n"
        if len(document.encode()) >= _MIN_DOCUMENT_BYTES:
            yield document, None


def module_parts_of(packages: Iterable[str]) -> Iterator[tuple[str, list[Part]]]:
    """Yield each module's name and `module_parts`: of the standard library, then of each of `packages`."""
    files = _standard_library_files()
    for package in packages:
        files += _package_files(package)
    yield from _parse(files)


def is_new(text: str, seen_lines: set[bytes]) -> bool:
    """Whether enough characters of a docstring are in lines that `seen_lines` lacks; adds the docstring's lines.

    Generated and inherited docstrings repeat lines of earlier ones.
    """
    lines = [line for line in map(str.strip, text.split("\n")) if len(line) >= _MIN_LINE_CHARACTERS] or [text]
    normalised = [re.sub(r"\d+", "0", line.lower()) for line in lines]
    digests = [hashlib.blake2b(line.encode(), digest_size=12).digest() for line in normalised]
    repeated_length = sum(len(line) for line, digest in zip(lines, digests, strict=True) if digest in seen_lines)
    seen_lines.update(digests)
    return repeated_length <= _MAX_REPEATED_SHARE * sum(map(len, lines))


def _standard_library_files() -> list[tuple[str, str]]:
    root = sysconfig.get_path("stdlib")
    modules = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                modules.append((_module_name(path.relative_to(root).as_posix()), str(path)))
    return sorted(modules)


def _package_files(package: str) -> list[tuple[str, str]]:
    files = importlib.metadata.files(package)
    if files is None:
        raise ValueError(f"data.packages: {package} was installed without a list of its files (RECORD); use pip")
    return sorted(
        (_module_name(file.as_posix()), str(file.locate()))
        for file in files
        if file.suffix == ".py" and ".." not in file.parts and not _SKIPPED_FOLDERS.intersection(file.parts)
    )


def _module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _parse(files: list[tuple[str, str]]) -> Iterator[tuple[str, list[Part]]]:
    from slm.runtime.system import num_cores  # not at the top, because workers run this file and cannot import slm

    chunks = [files[i : i + _FILES_PER_WORKER] for i in range(0, len(files), _FILES_PER_WORKER)]
    with ThreadPoolExecutor(num_cores()) as pool:
        for modules in pool.map(parse_in_worker, chunks):
            yield from modules


def parse_in_worker(files: list[tuple[str, str]]) -> list[tuple[str, list[Part]]]:
    """Run `main` for (module, path) pairs in a Python process of its own; returns what `main` prints."""
    command = [sys.executable, "-I", "-S", __file__]
    worker = subprocess.run(command, input=json.dumps(files), stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return json.loads(worker.stdout)


def main() -> None:
    """Read [[module, path], ...] as JSON from stdin; print [[module, parts], ...] of those that can be parsed."""
    modules = []
    for module, path in json.load(sys.stdin):
        try:
            parts = module_parts(Path(path).read_text(encoding="utf-8"), module)
        except (SyntaxError, ValueError, RecursionError):  # templates, Python 2 fixtures, other encodings
            continue
        if parts:
            modules.append((module, parts))
    print(json.dumps(modules))


def module_parts(source: str, module: str) -> list[Part]:
    """Return the docstrings of a module, its classes and functions in source order.

    The long literals of a reference module follow. Raises SyntaxError or ValueError if Python cannot parse the source.
    """
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's docstrings
        tree = ast.parse(source)
    parts = [("", ast.get_docstring(tree) or ""), *_walk(tree.body, "")]
    if _REFERENCE_MODULE.search(module):
        parts += [("", text) for text in _literals(tree)]
    cleaned = ((heading, _clean(text)) for heading, text in parts)
    return [(heading, text) for heading, text in cleaned if len(text) >= _MIN_PART_CHARACTERS and is_prose(text)]


def is_prose(text: str) -> bool:
    """Whether enough characters are in words: false for grammars, tables and encoded data.

    In torch, numpy, scipy, pandas and matplotlib, 99.9% of docstring characters are in docstrings that pass.
    """
    # A word is letters between white space, brackets, quotes or punctuation; all but the first must be lower-case.
    words = re.findall(r"(?<![^\s(\[`'\"*:])[A-Za-z][a-z']*(?=[\s.,:;)\]`'\"*?!]|$)", text)
    return sum(map(len, words)) / len(re.sub(r"\s+", "", text)) > _MIN_WORD_SHARE


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
    return f"{name}({', '.join(argument.arg for argument in arguments if argument.arg not in ('self', 'cls'))})"


def _literals(tree: ast.Module) -> Iterator[str]:
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (*_DOCUMENTED, ast.Module)) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    for node in sorted(texts, key=lambda node: (node.lineno, node.col_offset)):
        if node not in docstrings and len(text := str(node.value)) >= _MIN_LITERAL_CHARACTERS:
            yield inspect.cleandoc(text)


def _clean(text: str) -> str:
    text = text.encode(errors="replace").decode()  # a literal may hold a lone surrogate
    text = _PLACEHOLDER_LINE.sub("", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


if __name__ == "__main__":
    main()
