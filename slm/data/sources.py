"""The functions that a data source must have, and the list of sources for `data.source`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

MIX = "mix"
"""Value of `data.source` for a mix of several sources."""
Document = tuple[str, str | None]
"""A text and its split: "train", "val", or None if the hash of the text decides."""


class Source(NamedTuple):
    """The functions of a data source. `key`, `parts` and `notes` take a data config as a plain dict."""

    key: Callable[[Mapping[str, Any]], Any]
    """Returns a JSON-like value that changes whenever the documents would change; raises ValueError for wrong options.
    Must be quick, because every run calls it."""
    documents: Callable[[Mapping[str, Any]], Iterator[Document]]
    """Yields the documents of a part in a fixed order; validation documents come first if the source has splits."""
    parts: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = lambda data: [data]
    """Returns a copy of the config for each part that can be read independently, with added keys that identify the
    part. Parts with `split="val"` hold only validation documents, and come first. By default there is one part."""
    size: Callable[[Mapping[str, Any]], int | None] = lambda part: None
    """Returns the approximate bytes of text in a part; None if unknown."""
    notes: Callable[[Mapping[str, Any]], list[str]] = lambda data: []
    """Returns sentences on what was read, such as the number of files."""
    holds_conversations: bool = False
    """Whether a document is the JSON text of a conversation, as `slm.data.conversations.conversation` returns it."""


SOURCES: dict[str, str | Source] = {
    "pydocs": "slm.data.docstrings",
    "local": "slm.data.local",
    "hub": "slm.data.hub",
    "chat": "slm.data.chat",
}
"""The source for each value of `data.source`: a `Source`, or a module of slm with functions of the same names."""


def register_source(name: str, source: Source) -> None:
    """Make a source available as `data.source=NAME`. Raises ValueError if a built-in source has the name."""
    if isinstance(SOURCES.get(name), str):
        raise ValueError(f"register_source({name!r}): give another name than those of slm, {', '.join(SOURCES)}")
    SOURCES[name] = source


def source_of(data: Mapping[str, Any]) -> Source:
    """Return the source that `data.source` names; raises ValueError if there is none."""
    source = SOURCES.get(str(data["source"]))
    if data["source"] == MIX:
        raise ValueError(f"data={data['name']} is a mix of sources: give one of them here, as in data=local")
    if source is None:
        known = ", ".join(SOURCES)
        raise ValueError(f"data.source={data['source']!r} is not one of {known}; extensions=[FILE] can add your own")
    if isinstance(source, Source):
        return source
    module = import_module(source)  # not at the top, because these modules import this one
    return Source(**{field: getattr(module, field) for field in Source._fields if hasattr(module, field)})
