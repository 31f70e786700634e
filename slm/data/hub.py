"""Source `hub`: a text data set of the Hugging Face hub, streamed through `datasets`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from slm.data.readers import clean, text_of
from slm.data.sources import Document

_TIMEOUT = 5.0  # seconds to the first answer of the hub; its own clients go on trying for minutes


def key(data: Mapping[str, Any]) -> Any:
    """The options alone: what is cached stays usable without network."""
    for name in ("max_documents", "max_bytes"):
        if data[name] is not None and data[name] < 1:
            raise ValueError(f"data.{name}={data[name]} wants to be positive, or null for everything")
    names = (
        "path",
        "subset",
        "revision",
        "val_split",
        "text_column",
        "document_start",
        "max_documents",
        "max_bytes",
    )
    return {name: data[name] for name in names}


def documents(data: Mapping[str, Any]) -> Iterator[Document]:
    """Documents in the order of the data set, its validation split first; `max_documents`, `max_bytes` bound each.

    Raises ValueError at once when the hub cannot be reached.
    """
    require_network(f"data={data['name']} wants to download {data['path']}")
    own = data["val_split"] is not None
    if own:
        yield from (Document(text, "val") for text in _split(data, data["val_split"]))
    yield from (Document(text, "train" if own else None) for text in _split(data, "train"))


def require_network(purpose: str) -> None:
    """Raise ValueError within seconds when the hub does not answer, so that no client retries for minutes."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
    except Exception as error:  # which class depends on the HTTP client of the installed huggingface_hub
        raise ValueError(
            f"{purpose}, and {constants.ENDPOINT} cannot be reached ({type(error).__name__}); connect to the network, "
            f"or choose what needs none, such as data=pydocs or data=local with tokenizer=bpe"
        ) from None


def joined(rows: Iterable[str], start: str | None) -> Iterator[str]:
    """Rows as documents; with `start`, a document is the run of rows up to the next one that matches the pattern."""
    if start is None:
        yield from rows
        return
    opens, held = re.compile(start), list[str]()
    for row in rows:
        if opens.match(row) and held:
            yield "".join(held)
            held = []
        held.append(row)
    yield "".join(held)


def bounded(texts: Iterable[str], max_documents: int | None, max_bytes: int | None) -> Iterator[str]:
    """The first texts, up to whichever limit comes first; the text that reaches `max_bytes` is still whole."""
    size = 0
    for number, text in enumerate(texts, start=1):
        yield text
        size += len(text.encode())
        if number == max_documents or (max_bytes is not None and size >= max_bytes):
            return


def rows(data: Mapping[str, Any], split: str) -> Iterator[str]:
    """The text column of a split, row by row as `readers.clean` gives it, "" for null.

    Raises ValueError when there is no such thing, and for rows that hold no text or cannot be read.
    """
    from datasets import load_dataset

    try:
        found = load_dataset(data["path"], data["subset"], split=split, revision=data["revision"], streaming=True)
    except (FileNotFoundError, ValueError) as error:  # no such data set; no such subset or split
        raise ValueError(
            f"data.path={data['path']!r} cannot be read from the hub: {str(error).splitlines()[0]}"
        ) from None
    column = data["text_column"]
    if found.column_names is not None and column not in found.column_names:
        raise ValueError(
            f"data.text_column={column!r} is not in {data['path']}, which has {', '.join(found.column_names)}"
        )
    return _texts(found, column, data["path"])


def _texts(found: Iterable[Mapping[str, Any]], column: str, path: str) -> Iterator[str]:
    try:
        for number, row in enumerate(found, start=1):
            yield "".join(clean([text_of(row.get(column), column, f"row {number}")]))
    except Exception as error:  # which class depends on the files of the data set and on who fetches them
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"data.path={path!r} cannot be read: {said}") from None


def _split(data: Mapping[str, Any], split: str) -> Iterator[str]:
    return bounded(joined(rows(data, split), data["document_start"]), data["max_documents"], data["max_bytes"])
