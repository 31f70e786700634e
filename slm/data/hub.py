"""Source `hub`: a text data set of the Hugging Face hub, streamed through `datasets`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from slm.data.documents import Document
from slm.data.readers import clean, first_line, text_of

_TIMEOUT_SECONDS = 5.0  # to the first answer of the hub; its own clients retry for minutes
_OPTIONS = ("path", "subset", "revision", "val_split", "text_column", "document_start", "max_documents", "max_bytes")


def key(data: Mapping[str, Any]) -> Any:
    """The options alone, so that what is cached stays usable without network."""
    for name in ("max_documents", "max_bytes"):
        if data[name] is not None and data[name] < 1:
            raise ValueError(f"data.{name}={data[name]} must be positive, or null for no limit")
    return {name: data[name] for name in _OPTIONS}


def size(data: Mapping[str, Any]) -> int | None:
    """The limit on bytes, if there is one."""
    limit: int | None = data["max_bytes"]
    return limit


def documents(data: Mapping[str, Any]) -> Iterator[Document]:
    """Documents in the order of the data set, its validation split first; `max_documents`, `max_bytes` bound each.

    Raises ValueError at once when the hub cannot be reached.
    """
    require_network(f"data={data['name']} must download {data['path']}")
    splits = ["train"] if data["val_split"] is None else [data["val_split"], "train"]
    for split in splits:
        texts = joined(rows(data, split), data["document_start"])
        given = None if len(splits) == 1 else "train" if split == "train" else "val"
        for text in bounded(texts, data["max_documents"], data["max_bytes"]):
            yield text, given


def require_network(purpose: str) -> None:
    """Raise ValueError within seconds when the hub does not answer, so that no client retries for minutes."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # the class depends on the HTTP client of the installed huggingface_hub
        raise ValueError(
            f"{purpose}, but {constants.ENDPOINT} cannot be reached ({type(error).__name__}); connect to the network, "
            f"or give what needs none: a local folder, data=pydocs, or data=local with tokenizer=bpe"
        ) from None


def joined(rows: Iterable[str], start: str | None) -> Iterator[str]:
    """Rows as documents; with `start`, a document is the run of rows up to the next one that matches the pattern."""
    if start is None:
        yield from rows
        return
    document: list[str] = []
    for row in rows:
        if document and re.match(start, row):
            yield "".join(document)
            document = []
        document.append(row)
    yield "".join(document)


def bounded(texts: Iterable[str], max_documents: int | None, max_bytes: int | None) -> Iterator[str]:
    """The first texts, up to whichever limit comes first; the text that reaches `max_bytes` is not cut."""
    num_bytes = 0
    for number, text in enumerate(texts, start=1):
        yield text
        num_bytes += len(text.encode())
        if number == max_documents or (max_bytes is not None and num_bytes >= max_bytes):
            return


def rows(data: Mapping[str, Any], split: str) -> Iterator[str]:
    """The text column of a split, row by row as `readers.clean` gives it, "" for null.

    Raises ValueError for an unknown data set, subset, split or column, and for rows that hold no text or cannot be
    read.
    """
    from datasets import load_dataset

    path, column = data["path"], data["text_column"]
    try:
        table = load_dataset(path, data["subset"], split=split, revision=data["revision"], streaming=True)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"data.path={path!r} cannot be read from the hub: {first_line(error)}") from None
    if table.column_names is not None and column not in table.column_names:
        raise ValueError(f"data.text_column={column!r} is not in {path}, which has {', '.join(table.column_names)}")
    return _texts(table, column, path)


def _texts(table: Iterable[Mapping[str, Any]], column: str, path: str) -> Iterator[str]:
    try:
        for number, row in enumerate(table, start=1):
            yield "".join(clean([text_of(row.get(column), column, f"row {number}")]))
    except Exception as error:  # the class depends on the files of the data set and on who fetches them
        raise ValueError(f"data.path={path!r} cannot be read: {first_line(error)}") from None
