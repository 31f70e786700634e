"""The contract of a data source, and the sources by the value of `data.source`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

Document = tuple[str, str | None]
"""A text and its split: "train", "val", or None where the hash of the text decides."""


class Source(NamedTuple):
    """The functions of a source's module; each takes the plain dict of conf/data/NAME.yaml."""

    key: Callable[[Mapping[str, Any]], Any]
    """A JSON-like value that changes whenever the documents would; raises ValueError for wrong options. Must be quick:
    every run asks for it."""
    documents: Callable[[Mapping[str, Any]], Iterator[Document]]
    """The documents of a part in a fixed order, validation documents first where the source gives the splits."""
    parts: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = lambda data: [data]
    """The config once for each part that can be read independently, with what says which part it is. Parts with
    `split="val"` hold validation documents alone, and come first. By default there is one part."""
    size: Callable[[Mapping[str, Any]], int | None] = lambda part: None
    """About how many bytes of text a part has; None where unknown."""
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
