"""Source `pydocs`: the documentation that is installed wherever slm is.

Docstrings and reference prose of the Python standard library and of slm's own dependencies, one document a module.
No network and no extra download, and for given versions of Python and the packages the same text on every machine.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from slm.data.sources import Document

VERSION = 1  # part of the key: change it when other text would come out of the same files

Part = tuple[str, str]  # heading, text

# Tests and examples document nothing; vendored copies and lib2to3's fixtures repeat what is elsewhere.
_SKIPPED = {
    *("test", "tests", "_test", "_tests", "_examples", "idle_test", "lib2to3", "turtledemo", "ensurepip"),
    *("vendor", "vendored", "_vendor", "_vendored", "third_party", "extern", "site-packages", "dist-packages"),
}
_MIN_DOCUMENT = 300  # bytes: what is below is the one-line summary of an internal module
_MIN_LINE = 12  # characters: shorter lines ("Returns", "-------") are in every docstring
_MAX_REPEATED = 0.7  # of a docstring's characters in lines already seen; above, it is a near-copy of earlier ones
_CHUNK = 48  # files a worker process takes at once: about half a second of work


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


def documents(data: Mapping[str, Any]) -> Iterator[Document]:
    """Modules in the order standard library, then `data.packages` as listed; inside a package by name."""
    files = [*_standard_library(), *(file for package in data["packages"] for file in _package(package))]
    kept = _Deduplicator()
    for module, parts in _parsed(files):
        fresh = [part for part in parts if kept.is_new(part[1])]
        text = "\n\n".join([module, *(f"{heading}\n\n{body}".lstrip() for heading, body in fresh)]) + "\n"
        if len(text.encode()) >= _MIN_DOCUMENT:
            yield Document(text)


class _Deduplicator:
    """Drops a docstring that was seen before, or whose lines nearly all were (generated and inherited ones)."""

    def __init__(self) -> None:
        self.lines: set[bytes] = set()

    def is_new(self, text: str) -> bool:
        lines = [line for line in map(str.strip, text.split("\n")) if len(line) >= _MIN_LINE]
        names = [_normalized(line) for line in lines or [text]]
        sizes = [len(line) for line in lines or [text]]
        repeated = sum(size for name, size in zip(names, sizes, strict=True) if name in self.lines)
        self.lines.update(names)
        return repeated <= _MAX_REPEATED * sum(sizes)


def _normalized(line: str) -> bytes:
    return hashlib.blake2b(re.sub(r"\d+", "0", line.lower()).encode(), digest_size=12).digest()


def _standard_library() -> list[tuple[str, str]]:
    root = sysconfig.get_path("stdlib")
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                found.append((_module(path.relative_to(root).as_posix()), str(path)))
    return sorted(found)


def _package(package: str) -> list[tuple[str, str]]:
    """Modules of an installed distribution, from its list of files: nothing is imported to find them."""
    files = importlib.metadata.files(package)
    if files is None:
        raise ValueError(f"data.packages: {package} was installed without a list of its files (RECORD); use pip")
    return sorted(
        (_module(file.as_posix()), str(file.locate()))
        for file in files
        if file.suffix == ".py" and ".." not in file.parts and not _SKIPPED.intersection(file.parts)
    )


def _module(relative: str) -> str:
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _parsed(files: list[tuple[str, str]]) -> Iterator[tuple[str, list[Part]]]:
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for answer in pool.map(_ask_worker, chunks):
            yield from answer


def _ask_worker(chunk: Iterable[tuple[str, str]]) -> list[tuple[str, list[Part]]]:
    """Parsed in a bare interpreter (-I -S): a spawned pool would import the caller's `__main__`, and torch with it."""
    script = Path(__file__).with_name("docstrings.py")
    answer = subprocess.run(
        [sys.executable, "-I", "-S", str(script)],
        input=json.dumps(list(chunk)),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return [(entry["module"], entry["parts"]) for entry in map(json.loads, answer.stdout.splitlines())]
