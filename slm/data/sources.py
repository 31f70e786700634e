"""Where documents come from: the registry of sources that `data.source` names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Document(NamedTuple):
    """One text; `split` is "train" or "val" where the source says so, None where its hash is to decide."""

    text: str
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A kind of source; both functions take the plain dict of conf/data/NAME.yaml.

    `key` checks the options and gives a JSON-like value that changes whenever the documents would: quick, as every
    run asks for it. `documents` yields them in a fixed order, those given as validation first. `size` is about how many
    bytes of text they are, for the progress display; None where that is not known. `notes` are sentences on what the
    options mean here.
    """

    key: Callable[[Mapping[str, Any]], Any]
    documents: Callable[[Mapping[str, Any]], Iterator[Document]]
    size: Callable[[Mapping[str, Any]], int | None]
    notes: Callable[[Mapping[str, Any]], list[str]] = lambda data: []


def source_of(data: Mapping[str, Any]) -> Source:
    """The source that `data.source` names; ValueError if there is none of that name."""
    from slm.data import hub, local, pydocs

    sources = {
        "pydocs": Source(key=pydocs.key, documents=pydocs.documents, size=lambda data: None),
        "local": Source(key=local.key, documents=local.documents, size=local.size, notes=local.notes),
        "hub": Source(key=hub.key, documents=hub.documents, size=lambda data: data["max_bytes"]),
    }
    if data["source"] not in sources:
        raise ValueError(f"data.source={data['source']!r} is not one of {', '.join(sources)}")
    return sources[data["source"]]
