"""Split the documents of a source and store them as Parquet, so that another tokenizer need not read the source again.

Notable: the parts of a source are read in parallel (`slm.data.parts`). Memory use and the number of open files do not
grow with the corpus.
"""

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
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
"""Why documents are left out: the key in manifests, and the end of the sentence "left out 2 documents ..."."""
_GROUP_BYTES = 4 << 20  # text per row group; one call tokenizes a group, which must occupy all cores and fit in memory
_FILE_GROUPS = 1024  # row groups per file, about 4 GB of text; pyarrow refuses files with more than a million
_CHAIN_MODULUS = 2**521 - 1  # of `_join_chains`: a prime above every SHA-256
_CHAIN_BASE = 3**300


def write_documents(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Write the documents that a data config describes to Parquet files, with the hashes of their texts.

    The parts of the source are written in parallel. Validation parts come first, because training documents that are
    also in the validation set are left out. Returns the fingerprint, the number of documents and bytes of each split,
    and how many documents were left out for each reason (`LEFT_OUT`). Raises ValueError if a split would be empty.
    """
    source = source_of(data)
    task = f"data: documents of {data['name']}"
    parts = source.parts(data)
    in_process = isinstance(SOURCES[data["source"]], Source)  # workers cannot import a source that the user registered
    num_val_parts = sum(part.get("split") == "val" for part in parts)

    def build(start: int, stop: int | None, threshold: float | None, val_hash_files: list[str]) -> list[dict[str, Any]]:
        todo = [Part((dict(part), threshold, val_hash_files), source.size(part)) for part in parts[start:stop]]
        if not todo:
            return []
        return build_parts(folder, "documents", write_part, todo, task=task, start=start, in_process=in_process)

    val_results = build(0, num_val_parts, data["val_fraction"], [])
    val_hash_files = [result["hashes"]["val"] for result in val_results]
    results = val_results + build(num_val_parts, None, data["val_fraction"], val_hash_files)
    counts = _counts_by_split(results)
    smallest_hash = min((result["smallest"] for result in results), default=1.0)  # 1.0 if no text was split by its hash
    num_documents = sum(counts[split]["documents"] for split in SPLITS)
    if smallest_hash < 1.0 and num_documents > 1 and not counts["val"]["documents"]:
        # No hash was below the threshold. Build again, so that the document with the smallest hash is for validation.
        results = build(0, None, math.nextafter(smallest_hash, 1.0), [])
        counts = _counts_by_split(results)
    left_out = {reason: sum(result["left_out"][reason] for result in results) for reason in LEFT_OUT}
    _require_text(counts, left_out, data["name"])
    split_hashes = [_join_chains(result["splits"][split]["chain"] for result in results)[0] for split in SPLITS]
    fingerprint = hashlib.sha256(json.dumps(split_hashes).encode()).hexdigest()[:16]
    return {"fingerprint": fingerprint, "splits": counts, "left_out": left_out}


def _counts_by_split(results: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counts = {}
    for split in SPLITS:
        parts = [result["splits"][split] for result in results]
        counts[split] = {name: sum(part[name] for part in parts) for name in ("documents", "bytes")}
    return counts


def write_part(
    folder: Path,
    number: int,
    part: Mapping[str, Any],
    threshold: float | None,
    val_hash_files: list[str],
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """Write the documents of one part of a source. `build_parts` calls this function.

    A text without a split goes to validation if its `_unit_hash` is below `threshold`. `val_hash_files` name the files
    with the hashes of the validation documents in other parts.
    """
    hashes_in_val = {value for name in val_hash_files for value in np.fromfile(folder / name, dtype="<u8").tolist()}
    left_out = dict.fromkeys(LEFT_OUT, 0)
    smallest_hash = 1.0
    with ExitStack() as stack:
        writers = {split: stack.enter_context(closing(_SplitWriter(folder, split, number))) for split in SPLITS}
        for text, split in source_of(part).documents(part):
            encoded = text.encode()
            advance(len(encoded) / 1e6)
            if not text.strip():
                left_out["without_text"] += 1
                continue
            digest = hashlib.sha256(encoded).digest()
            stripped_hash = text_hash(text)
            if split is None:
                if threshold is None or not 0 < threshold < 1:
                    given = f"data.val_fraction={threshold}"
                    raise ValueError(f"{given} must be between 0 and 1, because the source has no validation split")
                smallest_hash = min(smallest_hash, _unit_hash(digest))
                split = "val" if _unit_hash(digest) < threshold else "train"
            elif split == "val":
                hashes_in_val.add(stripped_hash)
            elif stripped_hash in hashes_in_val:
                left_out["also_in_validation"] += 1
                continue
            writers[split].add(text, len(encoded), digest, stripped_hash)
    summaries = {split: {**writer.counts, "chain": writer.chain} for split, writer in writers.items()}
    hash_files = {split: writer.write_hashes() for split, writer in writers.items()}
    files = [name for writer in writers.values() for name in writer.files] + list(hash_files.values())
    return {"splits": summaries, "left_out": left_out, "smallest": smallest_hash, "hashes": hash_files, "files": files}


class _SplitWriter:
    """Writes documents of one split and one part to Parquet files of bounded size; keeps their hashes and chain."""

    def __init__(self, folder: Path, split: str, number: int = 0) -> None:
        self.folder, self.prefix = folder, f"{split}-{number:05d}"
        for stale in folder.glob(f"{self.prefix}-*"):  # left by a killed build or by another threshold
            stale.unlink()
        self.files: list[str] = []
        self.counts = {"documents": 0, "bytes": 0}
        self.chain = (0, 1)  # the chain of no documents; see `_join_chains`
        self.hashes = array("Q")
        self.texts: list[str] = []
        self.group_bytes = 0  # text in the current row group
        self.file_groups = 0  # row groups in the current file
        self.writer: Any = None

    def close(self) -> None:
        self._flush()
        if self.writer is not None:
            self.writer.close()

    def add(self, text: str, num_bytes: int, digest: bytes, stripped_hash: int) -> None:
        """Add a document; `digest` is the SHA-256 of the text, `stripped_hash` its `text_hash`."""
        self.chain = _join_chains([self.chain, (int.from_bytes(digest, "big"), _CHAIN_BASE)])
        self.hashes.append(stripped_hash)
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
        self.texts = []
        self.group_bytes = 0
        self.file_groups += 1
        if self.file_groups == _FILE_GROUPS:
            self.writer.close()
            self.writer = None
            self.file_groups = 0

    def write_hashes(self) -> str:
        """Write the `text_hash` of every document; returns the name of the file."""
        name = f"{self.prefix}.hashes"
        np.asarray(self.hashes, dtype="<u8").tofile(self.folder / name)
        return name


def _join_chains(chains: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return the chain of consecutive sequences of documents, given the chain of each sequence.

    A chain is (rolling hash, `_CHAIN_BASE` ** number of documents). The hash is a polynomial in the base whose
    coefficients are the SHA-256 of the texts. So it depends on the documents' order, but not on where sequences begin.
    """
    joined_hash, joined_power = 0, 1
    for next_hash, next_power in chains:
        joined_hash = (joined_hash * next_power + next_hash) % _CHAIN_MODULUS
        joined_power = joined_power * next_power % _CHAIN_MODULUS
    return joined_hash, joined_power


def left_out_notes(left_out: Mapping[str, int]) -> list[str]:
    """Return a sentence for each reason for which documents were left out."""
    return [
        f"left out {count:,} {'document' if count == 1 else 'documents'} {LEFT_OUT[reason]}"
        for reason, count in left_out.items()
        if count
    ]


def training_hashes(folder: Path) -> Iterator[np.ndarray]:
    """Yield the `text_hash` of every training document in a folder, as one uint64 array per part."""
    for file in sorted(folder.glob("train-*.hashes")):
        yield np.fromfile(file, dtype="<u8")


def document_files(folder: Path, split: str) -> list[Path]:
    """Return the Parquet files of a split, in order."""
    return sorted(folder.glob(f"{split}-*.parquet"))


def read_documents(folder: Path, split: str) -> Iterator[list[str]]:
    """Yield the texts of a split in order, in lists of about 4 MB."""
    for file in document_files(folder, split):
        yield from read_file(file)


def read_file(path: Path) -> Iterator[list[str]]:
    """Yield the texts of one Parquet file in order, in lists of about 4 MB."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group).column("text").to_pylist()


def text_bytes(path: Path) -> int:
    """Return the approximate number of bytes of text in a Parquet file."""
    from pyarrow import parquet

    file = parquet.read_metadata(path)
    return sum(file.row_group(group).column(0).total_uncompressed_size for group in range(file.num_row_groups))


def write_split(folder: Path, split: str, texts: Iterable[str]) -> dict[str, Any]:
    """Write all texts, including blank ones, as one split; returns the number of documents and bytes."""
    with closing(_SplitWriter(folder, split)) as writer:
        for text in texts:
            encoded = text.encode()
            writer.add(text, len(encoded), hashlib.sha256(encoded).digest(), text_hash(text))
    return writer.counts


def text_hash(text: str) -> int:
    """Return 64 bits that identify a text; white space around it makes no difference."""
    return int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:8], "big")


def _unit_hash(digest: bytes) -> float:
    """Return the SHA-256 of a text as a number in [0, 1). It decides the split, so other texts have no effect on it."""
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _require_text(counts: Mapping[str, Mapping[str, int]], left_out: Mapping[str, int], name: str) -> None:
    num_train, num_val = (counts[split]["documents"] for split in SPLITS)
    num_repeated = left_out["also_in_validation"]
    if num_train == 0 and num_repeated:
        problem = f"all {num_repeated} training documents are also in the validation set; give other text in data.paths"
    elif num_train + num_val == 0:
        problem = "the documents hold no text; give other data.paths, or larger limits"
    elif num_train == 0 or num_val == 0:
        problem = (
            f"there are {num_train} training and {num_val} validation documents, and each split must have at least "
            f"one; give more documents, or cut long ones with a smaller data.max_document_bytes"
        )
    else:
        return
    raise ValueError(f"data={name}: {problem}")
