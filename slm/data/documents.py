"""Documents of a source, split and kept as Parquet, so that another tokenizer does not read the source again.

Notable: parts of a source are read in parallel (`slm.data.parts`), and neither memory nor open files grow with the
corpus.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.parts import Part, build_parts
from slm.data.sources import SOURCES, Source, source_of

SPLITS = ("train", "val")
LEFT_OUT = {
    "also_in_validation": "for training that are also in the validation set",
    "without_text": "without text (blank, null or missing)",
}
"""Reason in manifests why documents are left out -> the words that follow "left out 2 documents" in a message."""
_GROUP_BYTES = 4 << 20  # text in a row group, which is tokenized in one call: keeps all cores busy, fits in memory
_FILE_GROUPS = 1024  # row groups of a file, about 4 GB of text; pyarrow refuses files with more than a million
_CHAIN_MODULUS, _CHAIN_BASE = 2**521 - 1, 3**300


def write_documents(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Write the documents of conf/data/NAME.yaml as Parquet, and the hashes of the training documents.

    Parts of the source are written in parallel; validation parts come first, since training documents that are in the
    validation set are left out. Returns the fingerprint of both splits, the documents and bytes of each, and how many
    documents were left out (`LEFT_OUT`). Raises ValueError when a split would be empty.
    """
    source, task = source_of(data), f"data: documents of {data['name']}"
    parts = source.parts(data)
    in_process = isinstance(SOURCES[data["source"]], Source)  # registered by the user; workers import only slm
    num_val_parts = sum(part.get("split") == "val" for part in parts)

    def build(start: int, stop: int | None, threshold: float | None, val_hashes: list[str]) -> list[dict[str, Any]]:
        todo = [Part((dict(part), threshold, val_hashes), source.size(part)) for part in parts[start:stop]]
        if not todo:
            return []
        return build_parts(folder, "documents", write_part, todo, task=task, start=start, in_process=in_process)

    val_results = build(0, num_val_parts, data["val_fraction"], [])
    val_hashes = [part["hashes"]["val"] for part in val_results]
    results = val_results + build(num_val_parts, None, data["val_fraction"], val_hashes)
    smallest = min((part["smallest"] for part in results), default=1.0)
    num_documents = sum(counts["documents"] for part in results for counts in part["splits"].values())
    if smallest < 1.0 and num_documents > 1 and not any(part["splits"]["val"]["documents"] for part in results):
        # No hash was below the threshold: build again with the document of the smallest hash as validation.
        results = build(0, None, math.nextafter(smallest, 1.0), [])
    counts = {
        split: {name: sum(part["splits"][split][name] for part in results) for name in ("documents", "bytes")}
        for split in SPLITS
    }
    left_out = {reason: sum(part["left_out"][reason] for part in results) for reason in LEFT_OUT}
    _require_text(counts, left_out, data["name"])
    chains = [_join_chains(part["splits"][split]["chain"] for part in results)[0] for split in SPLITS]
    fingerprint = hashlib.sha256(json.dumps(chains).encode()).hexdigest()[:16]
    return {"fingerprint": fingerprint, "splits": counts, "left_out": left_out}


def write_part(
    folder: Path,
    number: int,
    part: Mapping[str, Any],
    threshold: float | None,
    val_hashes: list[str],
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """Write the documents of one part of a source; `parts.Work`.

    A text whose source gives no split goes to validation if its `_unit_hash` is below `threshold`. `val_hashes` names
    the files with the hashes of validation documents in other parts.
    """
    hashes_in_val = {value for name in val_hashes for value in np.fromfile(folder / name, dtype="<u8").tolist()}
    left_out, smallest = dict.fromkeys(LEFT_OUT, 0), 1.0
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_SplitWriter(folder, split, number)) for split in SPLITS}
        for text, split in source_of(part).documents(part):
            encoded = text.encode()
            advance(len(encoded) / 1e6)
            if not text.strip():
                left_out["without_text"] += 1
                continue
            digest, hash_ = hashlib.sha256(encoded).digest(), text_hash(text)
            if split is None:
                smallest = min(smallest, _unit_hash(digest))
                split = "val" if _unit_hash(digest) < _require_fraction(threshold) else "train"
            elif split == "val":
                hashes_in_val.add(hash_)
            elif hash_ in hashes_in_val:
                left_out["also_in_validation"] += 1
                continue
            writers[split].add(text, len(encoded), digest, hash_)
    summaries = {name: writer.summary() for name, writer in writers.items()}
    hashes = {name: writer.write_hashes() for name, writer in writers.items()}
    files = [name for writer in writers.values() for name in writer.files] + list(hashes.values())
    return {"splits": summaries, "left_out": left_out, "smallest": smallest, "hashes": hashes, "files": files}


class _SplitWriter:
    """Writes the documents of one split in one part to Parquet files of bounded size, with their hashes and chain."""

    def __init__(self, folder: Path, split: str, number: int = 0) -> None:
        self.folder, self.prefix = folder, f"{split}-{number:05d}"
        for stale in folder.glob(f"{self.prefix}-*"):  # left by a killed build or by another threshold
            stale.unlink()
        self.files: list[str] = []
        self.counts = {"documents": 0, "bytes": 0}
        self.chain = (0, 1)
        self.hashes = array("Q")
        self.texts: list[str] = []
        self.group_bytes = self.file_groups = 0
        self.writer: Any = None

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        if self.writer is not None:
            self.writer.close()

    def add(self, text: str, num_bytes: int, digest: bytes, hash_: int) -> None:
        """Add a document; `digest` is the SHA-256 of the text, `hash_` its `text_hash`."""
        self.chain = _join_chains([self.chain, (int.from_bytes(digest, "big"), _CHAIN_BASE)])
        self.hashes.append(hash_)
        self.texts.append(text)
        self.group_bytes += num_bytes
        self.counts["documents"] += 1
        self.counts["bytes"] += num_bytes
        if self.group_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        if not self.texts:
            return
        schema = pa.schema([("text", pa.large_string())])
        if self.writer is None:
            self.files.append(f"{self.prefix}-{len(self.files):03d}.parquet")
            self.writer = parquet.ParquetWriter(self.folder / self.files[-1], schema, compression="zstd")
        self.writer.write_table(pa.Table.from_pydict({"text": self.texts}, schema=schema))
        self.texts, self.group_bytes, self.file_groups = [], 0, self.file_groups + 1
        if self.file_groups == _FILE_GROUPS:
            self.writer.close()
            self.writer, self.file_groups = None, 0

    def summary(self) -> dict[str, Any]:
        """Number of documents and bytes, and the chain of the documents (`_join_chains`)."""
        return {**self.counts, "chain": self.chain}

    def write_hashes(self) -> str:
        """Write the `text_hash` of every document; returns the name of the file."""
        name = f"{self.prefix}.hashes"
        np.asarray(self.hashes, dtype="<u8").tofile(self.folder / name)
        return name


def _join_chains(chains: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The chain of consecutive documents: a rolling hash and `_CHAIN_BASE` to the power of their number.

    The hash is a polynomial in the base, and its coefficients are the SHA-256 of the texts. So it depends on the order
    of the documents, but not on how they are divided into parts.
    """
    value, power = 0, 1
    for added, added_power in chains:
        value, power = (value * added_power + added) % _CHAIN_MODULUS, power * added_power % _CHAIN_MODULUS
    return value, power


def left_out_notes(left_out: Mapping[str, int]) -> list[str]:
    """A sentence for each reason why documents were left out."""
    return [
        f"left out {count:,} {'document' if count == 1 else 'documents'} {LEFT_OUT[reason]}"
        for reason, count in left_out.items()
        if count
    ]


def training_hashes(folder: Path) -> Iterator[np.ndarray]:
    """`text_hash` of every training document of a folder, uint64, in arrays of one part each."""
    for file in sorted(folder.glob("train-*.hashes")):
        yield np.fromfile(file, dtype="<u8")


def document_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in order."""
    return sorted(folder.glob(f"{split}-*.parquet"))


def read_documents(folder: Path, split: str) -> Iterator[list[str]]:
    """The texts of a split in order, in lists of about 4 MB."""
    for file in document_files(folder, split):
        yield from read_file(file)


def read_file(path: Path) -> Iterator[list[str]]:
    """The texts of one Parquet file in order, in lists of about 4 MB."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group).column("text").to_pylist()


def text_bytes(path: Path) -> int:
    """About how many bytes of text a Parquet file has."""
    from pyarrow import parquet

    file = parquet.read_metadata(path)
    return sum(file.row_group(group).column(0).total_uncompressed_size for group in range(file.num_row_groups))


def write_split(folder: Path, split: str, texts: Iterable[str]) -> dict[str, Any]:
    """Write all texts, blank ones too, as one split; returns its documents and bytes."""
    with _SplitWriter(folder, split) as writer:
        for text in texts:
            encoded = text.encode()
            writer.add(text, len(encoded), hashlib.sha256(encoded).digest(), text_hash(text))
    return writer.counts


def text_hash(text: str) -> int:
    """64 bits that identify a text, whatever white space is around it."""
    return int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:8], "big")


def _unit_hash(digest: bytes) -> float:
    """The SHA-256 of a text as a number in [0, 1).

    This number decides the split. So adding, removing or reordering documents does not move others between splits.
    """
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _require_fraction(val_fraction: float | None) -> float:
    if val_fraction is None or not 0 < val_fraction < 1:
        raise ValueError(
            f"data.val_fraction={val_fraction} must be between 0 and 1, because the source has no validation split"
        )
    return val_fraction


def _require_text(counts: Mapping[str, Mapping[str, int]], left_out: Mapping[str, int], name: str) -> None:
    train, val = (counts[split]["documents"] for split in SPLITS)
    if train == 0 and (dropped := left_out["also_in_validation"]):
        problem = f"all {dropped} training documents are also in the validation set; give other text in data.paths"
    elif train + val == 0:
        problem = "the documents hold no text; give other data.paths, or larger limits"
    elif train == 0 or val == 0:
        problem = (
            f"there are {train} training and {val} validation documents, and each split must have at least one; "
            f"give more documents, or cut long ones with a smaller data.max_document_bytes"
        )
    else:
        return
    raise ValueError(f"data={name}: {problem}")
