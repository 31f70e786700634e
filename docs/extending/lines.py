"""Source `lines`: every line of the text file `data.file` is a document."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm.data.sources import Document, Source, register_source


def key(data: Mapping[str, Any]) -> Any:
    """The path, size and time of the file, so that a changed file is another corpus."""
    file = Path(data["file"])
    if not file.is_file():
        raise ValueError(f"data.file={file} is not a file")
    return str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns


def documents(data: Mapping[str, Any]) -> Iterator[Document]:
    """None lets a hash of the text choose the split, `data.val_fraction` of them for validation."""
    with open(data["file"], encoding="utf-8") as lines:
        yield from ((line, None) for line in lines)


register_source("lines", Source(key=key, documents=documents))
