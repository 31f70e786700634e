"""Documents of a source, split and kept as Parquet, so that another tokenizer does not read the source again."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm.runtime.progress import progress

Document = tuple[str, str | None]
"""A text and its split: "train", "val", or None where the hash of the text decides."""

SPLITS = ("train", "val")
LEFT_OUT = {
    "also_in_validation": "for training that are also in the validation set",
    "without_text": "without text (blank, null or missing)",
}
"""Why documents are left out: key in manifests -> words."""
_HASHES_FILE = "train.hashes"
_GROUP_BYTES = 4 << 20  # text of one row group, and of one call of the tokenizer: keeps all cores busy, fits memory


class Source(NamedTuple):
    """The functions of a source's module; each takes the plain dict of conf/data/NAME.yaml."""

    key: Callable[[Mapping[str, Any]], Any]
    """A JSON-like value that changes whenever the documents would; raises ValueError for wrong options. Must be quick:
    every run asks for it."""
    documents: Callable[[Mapping[str, Any]], Iterator[Document]]
    """The documents in a fixed order, validation documents first where the source gives the splits."""
    size: Callable[[Mapping[str, Any]], int | None] = lambda data: None
    """About how many bytes of text there are, for the progress display; None where unknown."""
    notes: Callable[[Mapping[str, Any]], list[str]] = lambda data: []
    """Sentences on what the options mean here."""


SOURCES: dict[str, str | Source] = {"pydocs": "slm.data.docstrings", "local": "slm.data.local", "hub": "slm.data.hub"}
"""Value of `data.source` -> its `Source`, or the module of slm that has the fields of one."""


def register_source(name: str, source: Source) -> None:
    """Make `data.source=NAME` stand for a source. Raises ValueError for the name of a built-in one."""
    if isinstance(SOURCES.get(name), str):
        raise ValueError(f"register_source({name!r}): give another name than those of slm, {', '.join(SOURCES)}")
    SOURCES[name] = source


def source_of(data: Mapping[str, Any]) -> Source:
    """The source that `data.source` names; raises ValueError if there is none. Imports only modules of slm."""
    source = SOURCES.get(str(data["source"]))
    if source is None:
        raise ValueError(
            f"data.source={data['source']!r} is not one of {', '.join(SOURCES)}; extensions=[FILE] can add your own"
        )
    if isinstance(source, Source):
        return source
    module = import_module(source)  # when it is used, because these modules import this one
    return Source(**{field: getattr(module, field) for field in Source._fields if hasattr(module, field)})


def write_documents(
    folder: Path, source: Iterable[Document], val_fraction: float | None, *, name: str, size: int | None = None
) -> dict[str, Any]:
    """Write train.parquet and val.parquet, and the hashes of the training documents.

    `size` is about how many bytes of text will come, for the progress display. Returns the fingerprint, the documents
    and bytes of each split, and how many documents were left out (`LEFT_OUT`). The fingerprint is SHA-256 over
    (split, text) in order; where the source gives the splits, all of training comes first. Raises ValueError when a
    split would be empty.
    """
    fingerprint, hashes, left_out = hashlib.sha256(), array("Q"), dict.fromkeys(LEFT_OUT, 0)
    counts = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    documents = iter(source)
    first = next(documents, None)
    source_splits = first is not None and first[1] is not None
    kept = _kept(chain([first] if first else [], documents), left_out)
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_parquet_writer(folder / f"{split}.parquet")) for split in SPLITS}
        advance = stack.enter_context(progress(f"data: documents of {name}", size and size / 1e6, "MB"))
        for text, split in split_documents(kept, val_fraction):
            num_bytes = len(text.encode())
            if split == "train":
                hashes.append(text_hash(text))
            if split == "train" or not source_splits:
                fingerprint.update(_fingerprinted(split, text))
            writers[split](text, num_bytes)
            counts[split]["documents"] += 1
            counts[split]["bytes"] += num_bytes
            advance(num_bytes / 1e6)
    _require_text(counts, left_out, name)
    for text in chain.from_iterable(read_documents(folder, "val")) if source_splits else ():
        fingerprint.update(_fingerprinted("val", text))
    np.asarray(hashes, dtype="<u8").tofile(folder / _HASHES_FILE)
    return {"fingerprint": fingerprint.hexdigest()[:16], "splits": counts, "left_out": left_out}


def _fingerprinted(split: str, text: str) -> bytes:
    encoded = text.encode()
    return f"{split} {len(encoded)}\n".encode() + encoded


def _kept(source: Iterable[Document], left_out: dict[str, int]) -> Iterator[Document]:
    """Documents with text, less training documents that are in the validation split before them; counts the others."""
    val_hashes = set[int]()
    for text, split in source:
        if not text.strip():
            left_out["without_text"] += 1
        elif split == "train" and text_hash(text) in val_hashes:
            left_out["also_in_validation"] += 1
        else:
            if split == "val":
                val_hashes.add(text_hash(text))
            yield text, split


def left_out_notes(left_out: Mapping[str, int]) -> list[str]:
    """A sentence for each reason why documents were left out."""
    return [
        f"left out {count:,} {'document' if count == 1 else 'documents'} {LEFT_OUT[reason]}"
        for reason, count in left_out.items()
        if count
    ]


def training_hashes(folder: Path) -> np.ndarray | None:
    """`text_hash` of every training document of a folder, uint64; None in a folder from before these were kept."""
    file = folder / _HASHES_FILE
    return np.fromfile(file, dtype="<u8") if file.exists() else None


def read_documents(folder: Path, split: str) -> Iterator[list[str]]:
    """The texts of a split in order, in lists of about 4 MB."""
    from pyarrow import parquet

    with parquet.ParquetFile(folder / f"{split}.parquet") as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group).column("text").to_pylist()


def write_split(folder: Path, split: str, texts: Iterable[str]) -> dict[str, Any]:
    """Write all texts, blank ones too, as one split; returns its documents and bytes."""
    sizes = []
    with _parquet_writer(folder / f"{split}.parquet") as add:
        for text in texts:
            sizes.append(len(text.encode()))
            add(text, sizes[-1])
    return {"documents": len(sizes), "bytes": sum(sizes)}


def split_documents(source: Iterable[Document], val_fraction: float | None) -> Iterator[tuple[str, str]]:
    """(text, split) of every document, in order.

    Where the source gives no split, the hash of the text decides and not its position, so that documents that are
    added, dropped or moved do not move others. If no hash is below `val_fraction`, the smallest one is validation.
    """
    waiting: list[tuple[str, str]] = []  # before the first validation document: any of these may have to be it
    has_validation = False
    for text, given in source:
        split = given or ("val" if text_position(text) < _checked(val_fraction) else "train")
        waiting.append((text, split))
        has_validation = has_validation or given is not None or split == "val"
        if has_validation:
            yield from waiting
            waiting.clear()
    smallest = min((text_position(text) for text, _ in waiting), default=0.0) if len(waiting) > 1 else None
    yield from ((text, "val" if text_position(text) == smallest else split) for text, split in waiting)


def text_hash(text: str) -> int:
    """64 bits that identify a text, whatever white space is around it."""
    return int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:8], "big")


def text_position(text: str) -> float:
    """The hash of a text as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)


def _checked(val_fraction: float | None) -> float:
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


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Callable[[str, int], None]]:
    """Gives a function that adds a text and its bytes to a file of one column `text`, in groups of bounded size."""
    import pyarrow as pa
    from pyarrow import parquet

    schema, texts, group_bytes = pa.schema([("text", pa.large_string())]), list[str](), 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:

        def add(text: str, num_bytes: int) -> None:
            nonlocal group_bytes
            texts.append(text)
            group_bytes += num_bytes
            if group_bytes >= _GROUP_BYTES:
                flush()

        def flush() -> None:
            nonlocal group_bytes
            file.write_table(pa.Table.from_pydict({"text": texts}, schema=schema))
            texts.clear()
            group_bytes = 0

        yield add
        if texts:
            flush()
