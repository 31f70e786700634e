"""Read the text to evaluate on from any conf/data/NAME.yaml.

Notable:
- One running text stays one text, and several documents stay separate. Unlike in training, no document is cut.
- The fingerprint depends on the text alone. It shows whether two checkpoints were scored on the same text.
- Training documents are found in a text by their hashes, which are in the cache of the run. Only whole documents match,
  or whole pieces of a document that `data.max_document_bytes` cut. A share of 0 therefore does not prove that the run
  never saw the text.

| source                | what is read                                    | as                                     |
|-----------------------|-------------------------------------------------|----------------------------------------|
| hub, one row per line | `test_split`, else `val_split`                  | one text: rows joined by a blank line  |
| hub, other data sets  | `test_split`, else `val_split`, else as pydocs  | documents                              |
| local                 | `val_paths`, else `paths`                       | a plain file: one text; else documents |
| chat                  | `val_paths`, else `paths`                       | conversations                          |
| pydocs                | the documents that training keeps to validate   | documents                              |
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from slm.data import chat, hub, local
from slm.data.cache import cached, digest
from slm.data.conversations import template_of
from slm.data.corpus import prepare_documents
from slm.data.documents import left_out_notes, read_documents, text_hash, training_hashes, write_split
from slm.data.readers import ROW_SUFFIXES, pieces, suffix_of
from slm.data.sources import MIX, source_of
from slm.runtime.files import read_json_object
from slm.runtime.settings import RENAMED_KEYS


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text to score, not yet tokenized."""

    name: str
    documents: tuple[str, ...]  # one running text, or separate documents; none is blank
    separate: bool  # whether each document gets begin and end tokens; false for one running text
    document_start: str | None = None  # regex for the start of a document in a running text, to cluster standard errors
    notes: tuple[str, ...] = ()  # sentences on what was read and what was left out
    template: str | None = None  # how conversations are rendered: the text of a template, "" for the tokenizer's own

    @cached_property
    def fingerprint(self) -> str:
        """First 16 digits of a SHA-256: of a running text as in `sha256sum`, or of documents with their lengths."""
        encoded = [document.encode() for document in self.documents]
        if not self.separate:
            return hashlib.sha256(encoded[0]).hexdigest()[:16]
        with_lengths = [f"{len(document)}\n".encode() + document for document in encoded]
        return hashlib.sha256(b"".join(with_lengths)).hexdigest()[:16]


def read_text(data: Mapping[str, Any], *, document_start: str | None = None, cache_dir: Path) -> Text:
    """Return the text that `data` (conf/data/NAME.yaml as a plain dict) describes.

    Hub data is downloaded once to `cache_dir`. Raises ValueError if the text cannot be read or is blank.
    """
    name = data["name"]
    separate = True
    start_pattern = document_start or data.get("document_start")
    source = source_of(data)  # raises if the source is unknown
    try:
        re.compile(start_pattern or "")
    except re.error as error:
        raise ValueError(f"document_start={start_pattern!r} is not a regular expression: {error}") from None
    notes: list[str] = []
    if data["source"] == "local":
        files, note = local.files_to_evaluate(data)
        if note:
            notes.append(note)
        if name == "local":
            name = files[0].name if len(files) == 1 else f"{len(files)} files"
        documents = tuple(local.texts_to_evaluate(data))
        separate = len(files) > 1 or suffix_of(files[0]) in ROW_SUFFIXES
    elif data["source"] == "chat":
        documents = tuple(chat.texts_to_evaluate(data))
    elif data["source"] == "hub" and (split := data.get("test_split") or data["val_split"]):
        # The config tells whether rows are documents or lines of one text; the argument `document_start` cannot.
        separate = data["document_start"] is None
        documents = _rows(data, split, cache_dir)
        if not separate:
            documents = ("\n\n".join(documents),)
    else:
        folder, _ = prepare_documents(data, cache_dir=cache_dir)
        documents = tuple(chain.from_iterable(read_documents(folder, "val")))
    nonblank = tuple(document for document in documents if document.strip())
    if not nonblank:
        raise ValueError(f"data={data['name']}: {name} has no text to score: give a text that is not empty")
    notes += left_out_notes({"without_text": len(documents) - len(nonblank)})
    return Text(
        name=name,
        documents=nonblank,
        separate=separate,
        document_start=None if separate else start_pattern,
        notes=tuple(f"{note}." for note in notes),
        template=template_of(data, "") if source.holds_conversations else None,
    )


def _rows(data: Mapping[str, Any], split: str, cache_dir: Path) -> tuple[str, ...]:
    """Return the rows of the split; if each row is a document, at most `max_documents` rows and `max_bytes` bytes."""
    options = {"path": data["repo"], "subset": data["config"]}  # names under which older versions cached texts
    options |= {name: data[name] for name in ("revision", "text_column", "document_start")}
    limits: dict[str, Any] = {}
    if data["document_start"] is None:
        limits = {name: data[name] for name in ("max_documents", "max_bytes")}
    folder = cache_dir / "evaluation" / f"{data['name']}-{digest([options, limits, split])}"

    def build(build_folder: Path) -> dict[str, Any]:
        hub.require_network(f"data={data['name']} must download {data['repo']}")
        rows = hub.limited(hub.rows(data, split), limits.get("max_documents"), limits.get("max_bytes"))
        return write_split(build_folder, split, rows)

    cached(folder, build, what=f"the {split} split of {data['name']}")
    return tuple(chain.from_iterable(read_documents(folder, split)))


def read_run(run: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Return the resolved config of a run, and its corpus.json with the fingerprints of data and tokenizer."""
    import yaml

    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        old_names = {f"data.{key}": value for key, value in config["data"].items()}
        config["data"] = {"split": "train"} | {
            RENAMED_KEYS.get(key, key).removeprefix("data."): value for key, value in old_names.items()
        }
        return config, json.loads((run / "corpus.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{run} is not a run directory whose config.yaml and corpus.json can be read ({type(error).__name__}); "
            "give the output_dir of a run of train.py"
        ) from None


def sources_of_run(
    config: Mapping[str, Any], fingerprints: Mapping[str, Any], source: str | None = None
) -> dict[str, tuple[dict[str, Any], str]]:
    """Return the run's config and the fingerprint of its documents, for each source of a mix or only for `source`.

    In each config, `data` is that of the source. Other data count as one source. Raises ValueError if a run has no such
    source.
    """
    data = config["data"]
    known = data["sources"] if data["source"] == MIX else {}
    if source is not None and source not in known:
        has = f"has the sources {', '.join(known)}" if known else "is not a mix: leave source out"
        raise ValueError(f"source={source}: the text of the run, data={data['name']}, {has}")
    if not known:  # the fingerprint `data` of conversations depends on the chat template too
        return {data["name"]: (dict(config), fingerprints.get("documents", fingerprints["data"]))}
    names = known if source is None else [source]
    return {name: ({**config, "data": known[name]}, fingerprints["sources"][name]) for name in names}


def cached_folder(config: Mapping[str, Any], fingerprint: str, cache_dir: Path) -> Path | None:
    """Return the folder of a run's documents in `cache_dir` or the run's own cache; None if neither has them."""
    for cache in (cache_dir, Path(os.path.expanduser(config["cache_dir"]))):
        for manifest in sorted((cache / "documents").glob(f"{glob.escape(config['data']['name'])}-*/manifest.json")):
            if read_json_object(manifest).get("fingerprint") == fingerprint:
                return manifest.parent
    return None


def validation_documents(config: Mapping[str, Any], fingerprint: str, cache_dir: Path) -> Iterator[list[str]]:
    """Return an iterator over lists of the validation documents of the training run that `config` describes.

    If no cache has them, they are built in `cache_dir` from their source. Raises ValueError if they have changed.
    """
    data = config["data"]
    folder = cached_folder(config, fingerprint, cache_dir)
    if folder is not None:
        return read_documents(folder, "val")
    folder, manifest = prepare_documents(data, cache_dir=cache_dir)
    if manifest["fingerprint"] != fingerprint:
        raise ValueError(
            f"data={data['name']} is no longer the text of the run: its fingerprint was {fingerprint} and is now "
            f"{manifest['fingerprint']}; restore the files, package versions or cache_dir that the run was trained "
            "with, or evaluate on another text"
        )
    return read_documents(folder, "val")


@dataclass(frozen=True)
class TrainingDocuments:
    """The training documents of a run, as hashes."""

    sources: Sequence[tuple[Sequence[np.ndarray], int | None]]
    """For each source of a mix, or for the only one: `text_hash` of every document, one array per file of the cache,
    and the size of the pieces into which longer documents were cut (None if documents were not cut)."""

    def share_of_bytes(self, texts: Sequence[str]) -> float:
        """Return the share of the bytes of `texts` that are in training documents; of a mix, of the one source that has
        most of them."""
        return max(self._share_of_bytes(texts, *source) for source in self.sources)

    def _share_of_bytes(self, texts: Sequence[str], hashes: Sequence[np.ndarray], max_bytes: int | None) -> float:
        cut_texts = [piece for text in texts for piece in pieces([text.encode()], max_bytes)]
        byte_counts = np.array([len(piece) for piece in cut_texts])
        was_trained_on = self._contains([piece.decode() for piece in cut_texts], hashes)
        return float(byte_counts[was_trained_on].sum() / byte_counts.sum())

    def share_of_questions(self, questions: Sequence[Sequence[str]]) -> float:
        """Return the share of questions with a text that is a training document. A question is a list of texts."""
        texts = [text for question in questions for text in question]
        all_hashes = [file_hashes for hashes, _ in self.sources for file_hashes in hashes]
        was_trained_on = dict(zip(texts, self._contains(texts, all_hashes), strict=True))
        return sum(any(was_trained_on[text] for text in question) for question in questions) / len(questions)

    @staticmethod
    def _contains(texts: Sequence[str], hashes: Sequence[np.ndarray]) -> np.ndarray:
        text_hashes = np.array([text_hash(text) for text in texts], dtype=np.uint64)
        return np.logical_or.reduce([np.isin(text_hashes, file_hashes) for file_hashes in hashes])


def training_documents(run: Path | None, cache_dir: Path) -> TrainingDocuments | None:
    """Return the training documents of a run; None without a run, or if no cache has its documents any more."""
    if run is None:
        return None
    sources = []
    for config, fingerprint in sources_of_run(*read_run(run)).values():
        folder = cached_folder(config, fingerprint, cache_dir)
        hashes = [] if folder is None else list(training_hashes(folder))
        if not hashes:
            return None
        sources.append((hashes, config["data"].get("max_document_bytes")))
    return TrainingDocuments(sources)


def document_of(text: str, token_bytes_n: np.ndarray, document_start: str | None) -> np.ndarray:
    """Return the index (n,) of the document in which each of n tokens of a running text begins.

    `token_bytes_n` are the bytes of each token. Documents begin at the matches of `document_start`, if it is given.
    """
    if document_start is None:
        return np.zeros(len(token_bytes_n), dtype=np.int32)
    starts = [match.start() for match in re.finditer(document_start, text, re.MULTILINE)]
    cuts = [0, *starts[1:]]  # the first match does not cut: the text before it belongs to the first document
    # The last document needs no length: every token that begins after the others is in it.
    lengths = [len(text[start:stop].encode()) for start, stop in pairwise(cuts)]
    offset_n = np.cumsum(token_bytes_n) - token_bytes_n  # of the first byte of each token
    return np.searchsorted(np.cumsum(lengths), offset_n, side="right").astype(np.int32)
