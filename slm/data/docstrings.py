"""Source `pydocs`: the documentation that is installed wherever slm is.

Docstrings and reference prose of the Python standard library and of slm's own dependencies, one document per module,
parsed without importing the modules. For given versions of Python and the packages the text is the same everywhere.

Imports the standard library alone, because worker processes run this file as a script: a multiprocessing pool would
import the caller's `__main__` in every worker, and torch with it.
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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

VERSION = 1  # part of the key: change it when other text would come out of the same files

Part = tuple[str, str]
"""Heading and text of one docstring."""

# Tests and examples document nothing; vendored copies and lib2to3's fixtures repeat what is elsewhere.
_SKIPPED_FOLDERS = {
    *("test", "tests", "_test", "_tests", "_examples", "idle_test", "lib2to3", "turtledemo", "ensurepip"),
    *("vendor", "vendored", "_vendor", "_vendored", "third_party", "extern", "site-packages", "dist-packages"),
}
# Modules that hold the reference of compiled functions as string literals: torch/_torch_docs.py, pydoc_data/topics.py,
# numpy/_core/_add_newdocs.py, scipy/special/_add_newdocs.py, pandas/core/shared_docs.py ...
_REFERENCE_MODULE = re.compile(r"(^|[._])(add_newdocs|docs|docstrings|topics)($|_)")
_PLACEHOLDER_LINE = re.compile(r"^[ \t]*[{%][\w()]+[}s]?[ \t]*\n?", re.MULTILINE)  # "{input}", "%(example)s"
_DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_MIN_DOCUMENT_BYTES = 300  # shorter documents are the one-line summary of an internal module
_MIN_PART_CHARACTERS = 48  # shorter docstrings repeat the name of what they document
_MIN_LITERAL_CHARACTERS = 200  # shorter literals in a reference module are names and error messages
_MIN_LINE_CHARACTERS = 12  # shorter lines ("Returns", "-------") are in every docstring
_MIN_WORD_SHARE = 0.2  # of the characters; English prose has 0.8, an example session 0.3
_MAX_REPEATED_SHARE = 0.7  # of the characters in lines seen before; above, a docstring is a near-copy of earlier ones
_FILES_PER_WORKER = 48  # about half a second of work


def key(data: Mapping[str, Any]) -> Any:
    """Versions of Python and of the packages; raises ValueError for a package that is not installed."""
    versions = {}
    for package in data["packages"]:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                f"data.packages: {package} is not installed; install it or drop it from the list"
            ) from None
    return {"pydocs": VERSION, "python": sys.version.split()[0], "packages": versions}


def documents(data: Mapping[str, Any]) -> Iterator[tuple[str, None]]:
    """(text, None) of each module: the standard library, then `data.packages` as listed, each sorted by module name."""
    files = [*_standard_library(), *(file for package in data["packages"] for file in _package(package))]
    seen_lines = set[bytes]()
    for module, parts in _parsed(files):
        new = [f"{heading}\n\n{text}".lstrip() for heading, text in parts if is_new(text, seen_lines)]
        document = "\n\n".join([module, *new]) + "\n"
        if len(document.encode()) >= _MIN_DOCUMENT_BYTES:
            yield document, None


def is_new(text: str, seen_lines: set[bytes]) -> bool:
    """Whether most lines of a docstring are new; generated and inherited ones repeat earlier lines. Adds its lines."""
    lines = [line for line in map(str.strip, text.split("\n")) if len(line) >= _MIN_LINE_CHARACTERS] or [text]
    digests = [hashlib.blake2b(re.sub(r"\d+", "0", line.lower()).encode(), digest_size=12).digest() for line in lines]
    repeated = sum(len(line) for line, digest in zip(lines, digests, strict=True) if digest in seen_lines)
    seen_lines.update(digests)
    return repeated <= _MAX_REPEATED_SHARE * sum(map(len, lines))


def _standard_library() -> list[tuple[str, str]]:
    root = sysconfig.get_path("stdlib")
    modules = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                modules.append((_module_name(path.relative_to(root).as_posix()), str(path)))
    return sorted(modules)


def _package(package: str) -> list[tuple[str, str]]:
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


def _parsed(files: list[tuple[str, str]]) -> Iterator[tuple[str, list[Part]]]:
    from slm.runtime.system import num_cores  # here, since a worker, which runs this file, cannot import slm

    chunks = [files[i : i + _FILES_PER_WORKER] for i in range(0, len(files), _FILES_PER_WORKER)]
    with ThreadPoolExecutor(num_cores()) as pool:
        for modules in pool.map(parse_in_worker, chunks):
            yield from modules


def parse_in_worker(files: list[tuple[str, str]]) -> list[tuple[str, list[Part]]]:
    """[module, parts] of each (module, path), parsed by `main` in a bare interpreter; others are absent."""
    command = [sys.executable, "-I", "-S", __file__]
    worker = subprocess.run(command, input=json.dumps(files), stdout=subprocess.PIPE, encoding="utf-8", check=True)
    modules: list[tuple[str, list[Part]]] = json.loads(worker.stdout)
    return modules


def main() -> None:
    """Read a JSON list of [module, path] on stdin; print the JSON of [module, parts] of those that parse."""
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
    """Docstrings of the module, its classes and functions in source order; the long literals of a reference module.

    Raises SyntaxError or ValueError for a source that this version of Python does not parse.
    """
    with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's docstrings
        tree = ast.parse(source)
    parts = [("", ast.get_docstring(tree) or ""), *_walk(tree.body, "")]
    if _REFERENCE_MODULE.search(module):
        parts += [("", text) for text in _literals(tree)]
    cleaned = ((heading, _clean(text)) for heading, text in parts)
    return [(heading, text) for heading, text in cleaned if len(text) >= _MIN_PART_CHARACTERS and is_prose(text)]


def is_prose(text: str) -> bool:
    """Whether a good part of the characters is words, which is false for grammars, tables and encoded data.

    Of the docstrings of torch, numpy, scipy, pandas and matplotlib, 99.9% of the characters pass.
    """
    words = sum(map(len, re.findall(r"(?<![^\s(\[`'\"*:])[A-Za-z][a-z']*(?=[\s.,:;)\]`'\"*?!]|$)", text)))
    return words / len(re.sub(r"\s+", "", text)) > _MIN_WORD_SHARE


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
        if node not in docstrings and len(text := str(node.value)) >= _MIN_LITERAL_CHARACTERS:
            yield inspect.cleandoc(text)


def _clean(text: str) -> str:
    text = text.encode(errors="replace").decode()  # a literal may hold a lone surrogate
    text = _PLACEHOLDER_LINE.sub("", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()


if __name__ == "__main__":
    main()
