"""Source `hub`: a text data set of the Hugging Face hub, streamed by `datasets`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from slm.data.readers import clean, first_line, text_of
from slm.data.sources import Document

_TIMEOUT_SECONDS = 5.0  # for the first answer of the hub
_MAX_PARTS = 1024
_OPTIONS = ("revision", "val_split", "text_column", "document_start", "max_documents", "max_bytes")


def key(data: Mapping[str, Any]) -> Any:
    """Return the options and nothing from the network, so that a cached corpus can be used offline."""
    for name in ("max_documents", "max_bytes"):
        if data[name] is not None and data[name] < 1:
            raise ValueError(f"data.{name}={data[name]} must be positive, or null for no limit")
    options = {"path": data["repo"], "subset": data["config"], **{name: data[name] for name in _OPTIONS}}
    # With these names, and without the usual split, keys are those of corpora that older versions cached.
    return options if data["split"] == "train" else {**options, "split": data["split"]}


def size(part: Mapping[str, Any]) -> int | None:
    """Return `max_bytes`: the size of a part is not known before it is read."""
    return part["max_bytes"]


def parts(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a copy of the config for each shard of the data set, validation first, with three more keys.

    They are `table` (the split's name on the hub), `split` ("train", "val" or None), and `shard` (index, number of
    shards). A table is one shard if `document_start`, `max_documents` or `max_bytes` is given, because these count from
    the table's first row. Raises ValueError without delay if the hub cannot be reached.
    """
    require_network(f"data={data['name']} must download {data['repo']}")
    is_undivided = any(data[name] is not None for name in ("document_start", "max_documents", "max_bytes"))
    split_by_table: dict[str, str | None] = {data["split"]: None}
    if data["val_split"] is not None:
        split_by_table = {data["val_split"]: "val", data["split"]: "train"}
    shards: list[dict[str, Any]] = []
    for table, split in split_by_table.items():
        num_shards = 1 if is_undivided else min(_MAX_PARTS, _table(data, table).num_shards)
        shards += [{**data, "table": table, "split": split, "shard": [i, num_shards]} for i in range(num_shards)]
    return shards


def documents(part: Mapping[str, Any]) -> Iterator[Document]:
    """Yield the documents of one of `parts` in order; `max_documents` and `max_bytes` limit each split."""
    index, num_shards = part["shard"]
    texts = join_rows(rows(part, part["table"], index, num_shards), part["document_start"])
    for text in limited(texts, part["max_documents"], part["max_bytes"]):
        yield text, part["split"]


def require_network(purpose: str) -> None:
    """Raise ValueError within seconds if the hub does not answer; huggingface_hub would retry for minutes."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # the class depends on the HTTP client of the installed huggingface_hub
        raise ValueError(
            f"{purpose}, but {constants.ENDPOINT} cannot be reached ({type(error).__name__}); connect to the network, "
            f"or use what needs no network: a local folder, data=pydocs, or data=local with tokenizer=bpe"
        ) from None


def join_rows(rows: Iterable[str], start_pattern: str | None) -> Iterator[str]:
    """Yield each row as a document; with a `start_pattern`, each row that matches begins a document."""
    if start_pattern is None:
        yield from rows
        return
    document: list[str] = []
    for row in rows:
        if document and re.match(start_pattern, row):
            yield "".join(document)
            document = []
        document.append(row)
    yield "".join(document)


def limited(texts: Iterable[str], max_documents: int | None, max_bytes: int | None) -> Iterator[str]:
    """Yield texts until one of the limits is reached. The text that reaches `max_bytes` is the last, and is not cut."""
    num_bytes = 0
    for number, text in enumerate(texts, start=1):
        yield text
        num_bytes += len(text.encode())
        if number == max_documents or (max_bytes is not None and num_bytes >= max_bytes):
            return


def rows(data: Mapping[str, Any], split: str, index: int = 0, num_shards: int = 1) -> Iterator[str]:
    """Yield the text column of a split, or of one of `num_shards` shards of the split, cleaned by `readers.clean`.

    A null becomes "". Raises ValueError for an unknown data set, config, split or column, and for rows that hold no
    text or cannot be read.
    """
    repo, column = data["repo"], data["text_column"]
    table = _table(data, split)
    if num_shards > 1:
        table = table.shard(num_shards=num_shards, index=index)
    if table.column_names is not None and column not in table.column_names:
        raise ValueError(f"data.text_column={column!r} is not in {repo}, which has {', '.join(table.column_names)}")
    return _texts(table, column, repo)


def _table(data: Mapping[str, Any], split: str) -> Any:
    from datasets import load_dataset

    repo = data["repo"]
    try:
        return load_dataset(repo, data["config"], split=split, revision=data["revision"], streaming=True)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        advice = ""
        if "scripts are no longer supported" in str(error):
            advice = "; data.revision=refs/convert/parquet data.config=null reads the hub's own copy, if there is one"
        raise ValueError(f"data.repo={repo!r} cannot be read from the hub: {first_line(error)}{advice}") from None


def _texts(table: Iterable[Mapping[str, Any]], column: str, repo: str) -> Iterator[str]:
    try:
        for number, row in enumerate(table, start=1):
            yield "".join(clean([text_of(row.get(column), column, f"row {number}")]))
    except Exception as error:  # the class depends on the file type and on the library that downloads the files
        raise ValueError(f"data.repo={repo!r} cannot be read: {first_line(error)}") from None
