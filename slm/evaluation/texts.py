"""Texts to evaluate on: any conf/data/NAME.yaml, read as evaluation reads it and not as training does.

Notable: one running text stays one text; what is several documents stays several. Files are read by the readers that
training has, uncut. The fingerprint is that of the text alone, so results of different tokenizers and checkpoints can
be held against each other by it.

| source                    | what is read                               | as                                     |
|---------------------------|--------------------------------------------|----------------------------------------|
| hub, whose rows are lines | `test_split`, else `val_split`             | one text: rows joined by a blank line  |
| hub, else                 | the same, else what training keeps by hash | documents                              |
| local                     | `val_paths`, else `paths`                  | a plain file: one text; else documents |
| pydocs                    | what training keeps for validation         | documents                              |
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from slm.data import hub, local
from slm.data.cache import cached, digest
from slm.data.corpus import prepare_documents
from slm.data.documents import left_out_notes, read_documents, source_of, write_split
from slm.data.readers import ROW_SUFFIXES, suffix_of


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is scored, before any tokenizer saw it."""

    name: str
    documents: tuple[str, ...]
    """One running text, or separate documents; none is blank."""
    separate: bool
    """Whether the documents are to stand between begin and end tokens; false for one running text."""
    document_start: str | None = None
    """Pattern of the lines that begin a document inside a running text; it only serves the standard error."""
    notes: tuple[str, ...] = ()
    """What was read and what was left out, sentences."""

    @cached_property
    def fingerprint(self) -> str:
        """Of a running text the start of its SHA-256, as `sha256sum` prints it; else over length and text of each."""
        if not self.separate:
            return hashlib.sha256(self.documents[0].encode()).hexdigest()[:16]
        found = hashlib.sha256()
        for document in map(str.encode, self.documents):
            found.update(f"{len(document)}\n".encode() + document)
        return found.hexdigest()[:16]


def read_text(data: Mapping[str, Any], *, document_start: str | None = None, cache_dir: Path) -> Text:
    """The text of `data`, the plain dict of a conf/data/NAME.yaml; of the hub it is fetched once into `cache_dir`.

    `document_start` takes the place of `data.document_start`. Raises ValueError, in one sentence, for what cannot be
    read, and for a text that is empty or white space alone.
    """
    name, separate = data["name"], True
    start = document_start or data.get("document_start")
    source_of(data)  # refuses an unknown one
    _check_pattern(start)
    notes: list[str] = []
    if data["source"] == "local":
        name, documents, separate, notes = _local(data)
    elif data["source"] == "hub" and _split(data):
        separate = data["document_start"] is None
        documents = _rows(data, cache_dir)
        if not separate:
            documents = ("\n\n".join(documents),)
    else:
        folder, _ = prepare_documents(data, cache_dir=cache_dir)
        documents = tuple(chain.from_iterable(read_documents(folder, "val")))
    kept = tuple(document for document in documents if document.strip())
    if not kept:
        raise ValueError(f"data={data['name']}: {name} holds no text to score; give one that is not empty")
    notes += left_out_notes({"without_text": len(documents) - len(kept)})
    return Text(
        name=name,
        documents=kept,
        separate=separate,
        document_start=None if separate else start,
        notes=tuple(f"{note}." for note in notes),
    )


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"document_start={pattern!r} is no regular expression: {error}") from None


def _local(data: Mapping[str, Any]) -> tuple[str, tuple[str, ...], bool, list[str]]:
    files, note = local.files_to_evaluate(data)
    texts = tuple(local.texts_to_evaluate(data))
    name = data["name"] if data["name"] != "local" else files[0].name if len(files) == 1 else f"{len(files)} files"
    return name, texts, len(files) > 1 or suffix_of(files[0]) in ROW_SUFFIXES, [note] if note else []


def _split(data: Mapping[str, Any]) -> str | None:
    # .get: a run that was configured before there was a test_split has none in its config.yaml
    return data.get("test_split") or data["val_split"]


def _rows(data: Mapping[str, Any], cache_dir: Path) -> tuple[str, ...]:
    """Rows of the split; those of a data set whose rows are documents up to its limits."""
    split = _split(data)
    options = {name: data[name] for name in ("path", "subset", "revision", "text_column", "document_start")}
    limits = {name: data[name] for name in ("max_documents", "max_bytes") if data["document_start"] is None}
    folder = cache_dir / "evaluation" / f"{data['name']}-{digest([options, limits, split])}"

    def build(folder: Path) -> dict[str, Any]:
        hub.require_network(f"data={data['name']} must download {data['path']}")
        rows = hub.rows(data, str(split))
        return write_split(folder, str(split), hub.bounded(rows, limits.get("max_documents"), limits.get("max_bytes")))

    cached(folder, build, what=f"the {split} split of {data['name']}")
    return tuple(chain.from_iterable(read_documents(folder, str(split))))


def run_facts(run: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The resolved config of a run and the fingerprints of what it was trained on."""
    import yaml

    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
        if (run / "corpus.json").exists():
            return config, json.loads((run / "corpus.json").read_text())
        result = json.loads((run / "result.json").read_text())
        return config, {name: result[name]["fingerprint"] for name in ("data", "tokenizer")}
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise ValueError(
            f"{run} is no run directory whose config.yaml and corpus.json can be read ({type(error).__name__}); "
            "give the output_dir of a run of train.py"
        ) from None


def cached_documents(config: Mapping[str, Any], fingerprint: str, cache_dir: Path) -> Path | None:
    """The folder of the documents of the run that `config` describes, in `cache_dir` or in the cache of the run."""
    for cache in (cache_dir, Path(os.path.expanduser(config["cache_dir"]))):
        for manifest in sorted((cache / "documents").glob(f"{glob.escape(config['data']['name'])}-*/manifest.json")):
            if _fingerprint_in(manifest) == fingerprint:
                return manifest.parent
    return None


def _fingerprint_in(manifest: Path) -> str | None:
    """None for a damaged manifest: what is in its folder is not used, and made again."""
    try:
        return str(json.loads(manifest.read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_documents(config: Mapping[str, Any], fingerprint: str, cache_dir: Path) -> Iterator[list[str]]:
    """The validation documents, in lists, of the run of ours that `config` describes.

    They are looked for by their fingerprint, in `cache_dir` and in the cache of the run, then made again from their
    source in `cache_dir`. Raises ValueError where that gives other documents.
    """
    data = config["data"]
    if (found := cached_documents(config, fingerprint, cache_dir)) is not None:
        return read_documents(found, "val")
    folder, facts = prepare_documents(data, cache_dir=cache_dir)
    if facts["fingerprint"] != fingerprint:
        raise ValueError(
            f"data={data['name']} is not the text of the run any more: its fingerprint is {facts['fingerprint']} now "
            f"and was {fingerprint}; restore the files, package versions or cache_dir that the run was trained with, "
            "or evaluate on another text"
        )
    return read_documents(folder, "val")
