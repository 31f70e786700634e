"""Source `chat`: conversations in the user's files, one in each row (JSON lines, Parquet)."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from slm.data import local
from slm.data.conversations import conversation, template_of
from slm.data.readers import ROW_SUFFIXES, read_rows
from slm.data.sources import Document

holds_conversations = True
size = local.size
parts = partial(local.parts, suffixes=ROW_SUFFIXES)
notes = partial(local.notes, suffixes=ROW_SUFFIXES)


def key(data: Mapping[str, Any]) -> Any:
    """Return paths, sizes and times of the files. Raises ValueError for wrong paths, and a template without a file."""
    template_of(data, None)
    return local.identities(data, ROW_SUFFIXES)


def texts_to_evaluate(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the conversations in `data.val_paths` if it is given, else in `data.paths`."""
    option = "val_paths" if data["val_paths"] else "paths"
    files = local.text_files(data[option], f"data.{option}", suffixes=ROW_SUFFIXES).paths
    yield from (text for text, _ in documents({"files": files, "option": option, "split": None}))


def documents(part: Mapping[str, Any]) -> Iterator[Document]:
    """Yield the conversations of one of `parts` in the order of files and rows, with their split."""
    for file in map(Path, part["files"]):
        for place, row in read_rows(file, key=f"data.{part['option']}"):
            yield conversation(row, f"data.{part['option']}: {file} {place}"), part["split"]
