"""Documents of a source, split and kept as Parquet, so that another tokenizer does not read the source again."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.progress import progress
from slm.data.sources import Document

SPLITS = ("train", "val")
LEFT_OUT = {
    "also_in_validation": "for training that are also in the validation set",
    "without_text": "without text (blank, null or missing)",
}
"""Why documents are left out, as a key and in words."""
_HASHES = "train.hashes"
_GROUP_BYTES = 4 << 20  # text of one row group, and of one call of the tokenizer: keeps all cores busy, fits memory


def write_documents(
    folder: Path, source: Iterable[Document], val_fraction: float | None, *, name: str, size: int | None = None
) -> dict[str, Any]:
    """Write train.parquet and val.parquet, and the hashes of the training documents.

    Returns the fingerprint, documents and bytes of each split, and how many documents were left out (`LEFT_OUT`).
    `size` is about how many bytes are to come, for the progress display. The fingerprint is SHA-256 over
    (split, text) in order; where the source gives the splits, all of training comes first. Raises ValueError when a
    split would be empty.
    """
    fingerprint, hashes, left_out = hashlib.sha256(), array("Q"), dict.fromkeys(LEFT_OUT, 0)
    counts = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    documents = iter(source)
    first = list(islice(documents, 1))
    given = bool(first) and first[0].split is not None
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_Writer(folder / f"{split}.parquet")) for split in SPLITS}
        advance = stack.enter_context(progress(f"documents of {name}", size and size / 1e6, "MB"))
        for text, split in split_documents(_kept(chain(first, documents), left_out), val_fraction):
            encoded = text.encode()
            if split == "train":
                hashes.append(text_hash(text))
            if split == "train" or not given:
                fingerprint.update(_entry(split, encoded))
            writers[split].add(text, len(encoded))
            counts[split]["documents"] += 1
            counts[split]["bytes"] += len(encoded)
            advance(len(encoded) / 1e6)
    _require_text(counts, left_out, name)
    for text in chain.from_iterable(read_documents(folder, "val")) if given else ():
        fingerprint.update(_entry("val", text.encode()))
    np.asarray(hashes, dtype="<u8").tofile(folder / _HASHES)
    return {"fingerprint": fingerprint.hexdigest()[:16], "splits": counts, "left_out": left_out}


def _entry(split: str, encoded: bytes) -> bytes:
    return f"{split} {len(encoded)}\n".encode() + encoded


def _kept(source: Iterable[Document], left_out: dict[str, int]) -> Iterator[Document]:
    """Documents with text, less those of training that are in a validation split which came before; counts the rest."""
    held = set[int]()
    for document in source:
        text, split = document
        if not text.strip():
            left_out["without_text"] += 1
        elif split == "train" and text_hash(text) in held:
            left_out["also_in_validation"] += 1
        else:
            if split == "val":
                held.add(text_hash(text))
            yield document


def left_out_notes(left_out: Mapping[str, int]) -> list[str]:
    """A sentence for each reason why documents were left out."""
    return [
        f"left out {count:,} {'document' if count == 1 else 'documents'} {LEFT_OUT[reason]}"
        for reason, count in left_out.items()
        if count
    ]


def training_hashes(folder: Path) -> np.ndarray | None:
    """`text_hash` of every training document of a folder, uint64; None in a folder from before these were kept."""
    file = folder / _HASHES
    return np.fromfile(file, dtype="<u8") if file.exists() else None


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
    """(text, split) of every document, in order.

    A document whose split the source leaves open is validation when the hash of its text says so, never by its
    position: documents that are added, dropped or moved do not move others. If no hash says so, the smallest does.
    """
    held: list[tuple[str, str]] = []  # before the first validation document: any of these may have to be it
    found = False
    for text, given in source:
        split = given or ("val" if text_position(text) < _fraction(val_fraction) else "train")
        held.append((text, split))
        found = found or given is not None or split == "val"
        if found:
            yield from held
            held.clear()
    smallest = min((text_position(text) for text, _ in held), default=0.0) if len(held) > 1 else None
    yield from ((text, "val" if text_position(text) == smallest else split) for text, split in held)


def text_hash(text: str) -> int:
    """64 bits that identify a text, whatever white space is around it."""
    return int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:8], "big")


def text_position(text: str) -> float:
    """The hash of a text as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)


def _fraction(val_fraction: float | None) -> float:
    if val_fraction is None or not 0 < val_fraction < 1:
        raise ValueError(
            f"data.val_fraction={val_fraction} wants to be between 0 and 1: the source has no validation split"
        )
    return val_fraction


def _require_text(counts: Mapping[str, Mapping[str, int]], left_out: Mapping[str, int], name: str) -> None:
    train, val = (counts[split]["documents"] for split in SPLITS)
    if train == 0 and left_out["also_in_validation"]:
        raise ValueError(
            f"data={name}: all {left_out['also_in_validation']} training documents are also in the validation set; "
            "give text to train on that is in data.paths alone"
        )
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
