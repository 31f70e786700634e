"""Which files a person means: a path that exists is that file or folder, and only what does not exist is a glob.

Notable: a folder is every file under it that can be read (hidden ones are not looked at), a glob is the files and
folders that it matches. A file that is named or matched must be of a known kind and not empty.
"""

import glob
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from slm.data.readers import SUFFIXES, suffix_of


class Files(NamedTuple):
    """Files in the order of their names, none twice, and how many they are in words; "" for one file that was named."""

    paths: list[Path]
    note: str


def text_files(given: str | list[str] | None, key: str, *, suffixes: Collection[str] = SUFFIXES) -> Files:
    """The files of these `suffixes` that `given` means, which the user set as `key`.

    Raises ValueError for a path or glob that is no file, for a folder with no file to read, and for a file of another
    kind or without a byte in it.
    """
    if not given or given == "???":
        raise ValueError(f"{key} is not set; give a file, a folder, a glob such as 'text/**/*.txt', or a list of them")
    accepted, found, left_out = ", ".join(suffixes), dict[Path, Path](), 0
    for pattern in [given] if isinstance(given, str) else given:
        for path in _matches(pattern, key):
            if path.is_dir():
                beneath = list(_beneath(path))
                files = [file for file in beneath if suffix_of(file) in suffixes and file.stat().st_size]
                if not files:
                    raise ValueError(
                        f"{key}: the folder {path} holds no file that can be read; give one with {accepted}"
                    )
                left_out += len(beneath) - len(files)
            else:
                files = [path]
                if suffix_of(path) not in suffixes:
                    raise ValueError(f"{key}: {path} is of no known kind; give it one of the endings {accepted}")
                if not path.stat().st_size:
                    raise ValueError(f"{key}: {path} is empty (0 bytes); write it again, or leave it out")
            for file in files:
                found.setdefault(file.resolve(), file)
    paths, note = sorted(found.values()), ""
    if len(paths) > 1 or left_out:
        note = f"{key}: {len(paths):,} file{'s' * (len(paths) > 1)}"
    if left_out:
        note += f"; {left_out:,} more in folders left out, which are empty or end in none of {accepted}"
    return Files(paths, note)


def _matches(pattern: str, key: str) -> list[Path]:
    """The file or folder of this name, else the files and folders that the glob matches."""
    expanded = os.path.expanduser(pattern)  # Path.expanduser raises for "~draft.txt"
    for name in (pattern, expanded):
        if name.strip() and os.path.exists(name):
            return [Path(name)]
    matches = [
        Path(name) for name in glob.glob(expanded, recursive=True) if os.path.isfile(name) or os.path.isdir(name)
    ]
    if not matches:
        raise ValueError(
            f"{key}={pattern!r} matches no file in {Path.cwd()}; give a file, a folder or a glob that does"
        )
    return matches


def _beneath(folder: Path) -> Iterator[Path]:
    """Files under a folder and under the folders that it links to."""
    seen = set[str]()

    def stop(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (path for name in names if not name.startswith(".") and (path := Path(parent, name)).is_file())
        seen.add(real)
