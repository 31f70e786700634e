"""Documents of a source, split and kept as Parquet, so that another tokenizer does not read the source again."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from slm.data.progress import progress
from slm.data.sources import Document

SPLITS = ("train", "val")
_GROUP_BYTES = 4 << 20  # text of one row group, and of one call of the tokenizer: keeps all cores busy, fits memory


def write_documents(
    folder: Path, source: Iterable[Document], val_fraction: float | None, *, name: str, size: int | None = None
) -> dict[str, Any]:
    """Write train.parquet and val.parquet; returns the fingerprint, and documents and bytes of each split.

    `size` is about how many bytes are to come, for the progress display. The fingerprint is SHA-256 over
    (split, text) in order. Raises ValueError when a split would be empty.
    """
    fingerprint = hashlib.sha256()
    counts = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_Writer(folder / f"{split}.parquet")) for split in SPLITS}
        advance = stack.enter_context(progress(f"documents of {name}", size and size / 1e6, "MB"))
        for text, split in split_documents(source, val_fraction):
            encoded = text.encode()
            fingerprint.update(f"{split} {len(encoded)}\n".encode() + encoded)
            writers[split].add(text, len(encoded))
            counts[split]["documents"] += 1
            counts[split]["bytes"] += len(encoded)
            advance(len(encoded) / 1e6)
    _require_text(counts, name)
    return {"fingerprint": fingerprint.hexdigest()[:16], "splits": counts}


def read_documents(folder: Path, split: str) -> Iterator[list[str]]:
    """The texts of a split in order, in lists of about 4 MB."""
    from pyarrow import parquet

    with parquet.ParquetFile(folder / f"{split}.parquet") as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group).column("text").to_pylist()


def write_split(folder: Path, split: str, texts: Iterable[str]) -> dict[str, Any]:
    """Write one split alone, every text as it comes, blank ones too; returns its documents and bytes."""
    counts = {"documents": 0, "bytes": 0}
    with _Writer(folder / f"{split}.parquet") as writer:
        for text in texts:
            size = len(text.encode())
            writer.add(text, size)
            counts = {"documents": counts["documents"] + 1, "bytes": counts["bytes"] + size}
    return counts


def split_documents(source: Iterable[Document], val_fraction: float | None) -> Iterator[tuple[str, str]]:
    """(text, split) of every document that holds text, in order.

    A document whose split the source leaves open is validation when the hash of its text says so, never by its
    position: documents that are added, dropped or moved do not move others. If no hash says so, the smallest does.
    """
    held: list[tuple[str, str]] = []  # before the first validation document: any of these may have to be it
    found = False
    for text, given in source:
        if not text.strip():
            continue
        split = given or ("val" if text_position(text) < _fraction(val_fraction) else "train")
        held.append((text, split))
        found = found or given is not None or split == "val"
        if found:
            yield from held
            held.clear()
    smallest = min((text_position(text) for text, _ in held), default=0.0) if len(held) > 1 else None
    yield from ((text, "val" if text_position(text) == smallest else split) for text, split in held)


def text_position(text: str) -> float:
    """The hash of a text as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)


def _fraction(val_fraction: float | None) -> float:
    if val_fraction is None or not 0 < val_fraction < 1:
        raise ValueError(
            f"data.val_fraction={val_fraction} wants to be between 0 and 1: the source has no validation split"
        )
    return val_fraction


def _require_text(counts: Mapping[str, Mapping[str, int]], name: str) -> None:
    train, val = (counts[split]["documents"] for split in SPLITS)
    if train + val == 0:
        raise ValueError(f"data={name}: the documents hold no text; give data.paths, or limits, that leave some")
    if train == 0 or val == 0:
        raise ValueError(
            f"data={name}: {train} training and {val} validation documents, and each wants at least one; "
            f"give more documents, or cut long ones with a smaller data.max_document_bytes"
        )


class _Writer:
    """Parquet of one column `text`, in row groups of bounded size."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._schema = pa.schema([("text", pa.large_string())])
        self._file = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._table = pa.Table.from_pydict
        self._texts: list[str] = []
        self._size = 0

    def add(self, text: str, size: int) -> None:
        self._texts.append(text)
        self._size += size
        if self._size >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._texts:
            return
        self._file.write_table(self._table({"text": self._texts}, schema=self._schema))
        self._texts, self._size = [], 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._flush()
        self._file.close()
