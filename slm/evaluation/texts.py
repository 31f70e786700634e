"""Texts to evaluate on: any conf/data/NAME.yaml, read as evaluation reads it and not as training does.

Notable: one running text stays one text, and several documents stay several. Files are read by training's readers,
uncut. The fingerprint depends on the text alone, so it tells whether results of different tokenizers and checkpoints
are of one text. Whether a run was trained on a text is told by the hashes of its training documents in the caches: only
whole documents are found (of a long text the pieces that `data.max_document_bytes` cut it into), so a share of 0 does
not prove that it was not.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from slm.data import hub, local
from slm.data.cache import cached, digest
from slm.data.corpus import prepare_documents
from slm.data.documents import left_out_notes, read_documents, source_of, text_hash, training_hashes, write_split
from slm.data.readers import ROW_SUFFIXES, pieces, suffix_of


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text to score, before any tokenizer saw it."""

    name: str
    documents: tuple[str, ...]
    """One running text, or separate documents; none is blank."""
    separate: bool
    """Whether there are documents, to stand between begin and end tokens; false for one running text."""
    document_start: str | None = None
    """Pattern of the lines that begin a document inside a running text; only the standard error uses it."""
    notes: tuple[str, ...] = ()
    """Sentences on what was read and what was left out."""

    @cached_property
    def fingerprint(self) -> str:
        """First 16 digits of a SHA-256: of a running text as `sha256sum` has it, or of documents with their lengths."""
        if not self.separate:
            return hashlib.sha256(self.documents[0].encode()).hexdigest()[:16]
        framed = (f"{len(document)}\n".encode() + document for document in map(str.encode, self.documents))
        return hashlib.sha256(b"".join(framed)).hexdigest()[:16]


def read_text(data: Mapping[str, Any], *, document_start: str | None = None, cache_dir: Path) -> Text:
    """The text of `data`, the plain dict of a conf/data/NAME.yaml; one on the hub is fetched once into `cache_dir`.

    `document_start` replaces `data.document_start`. Raises ValueError, in one sentence, for what cannot be read, and
    for a text that is empty or only white space.
    """
    name, separate = data["name"], True
    start = document_start or data.get("document_start")
    source_of(data)  # refuses an unknown one
    try:
        re.compile(start or "")
    except re.error as error:
        raise ValueError(f"document_start={start!r} is no regular expression: {error}") from None
    notes: list[str] = []
    if data["source"] == "local":
        files, note = local.files_to_evaluate(data)
        notes += [note] if note else []
        if name == "local":
            name = files[0].name if len(files) == 1 else f"{len(files)} files"
        documents = tuple(local.texts_to_evaluate(data))
        separate = len(files) > 1 or suffix_of(files[0]) in ROW_SUFFIXES
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


def _split(data: Mapping[str, Any]) -> str | None:
    # .get: the config.yaml of a run from before there was a test_split has none.
    return data.get("test_split") or data["val_split"]


def _rows(data: Mapping[str, Any], cache_dir: Path) -> tuple[str, ...]:
    """Rows of the split; if rows are documents, up to the limits of the data set."""
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
            f"{run} is not a run directory whose config.yaml and corpus.json can be read ({type(error).__name__}); "
            "give the output_dir of a run of train.py"
        ) from None


def cached_documents(config: Mapping[str, Any], fingerprint: str, cache_dir: Path) -> Path | None:
    """The folder of the documents of the run that `config` describes, in `cache_dir` or in the run's cache, if any."""
    for cache in (cache_dir, Path(os.path.expanduser(config["cache_dir"]))):
        for manifest in sorted((cache / "documents").glob(f"{glob.escape(config['data']['name'])}-*/manifest.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged manifest: its folder is made again
                if json.loads(manifest.read_text())["fingerprint"] == fingerprint:
                    return manifest.parent
    return None


def run_documents(config: Mapping[str, Any], fingerprint: str, cache_dir: Path) -> Iterator[list[str]]:
    """The validation documents, in lists, of the run of ours that `config` describes.

    They are looked for by their fingerprint, in `cache_dir` and in the run's cache, else made again from their source
    in `cache_dir`. Raises ValueError if that gives other documents.
    """
    data = config["data"]
    cached_folder = cached_documents(config, fingerprint, cache_dir)
    if cached_folder is not None:
        return read_documents(cached_folder, "val")
    folder, facts = prepare_documents(data, cache_dir=cache_dir)
    if facts["fingerprint"] != fingerprint:
        raise ValueError(
            f"data={data['name']} is no longer the text of the run: its fingerprint is {facts['fingerprint']} now "
            f"and was {fingerprint}; restore the files, package versions or cache_dir that the run was trained with, "
            "or evaluate on another text"
        )
    return read_documents(folder, "val")


@dataclass(frozen=True)
class TrainingDocuments:
    """`text_hash` of all training documents of a run, and the bytes at which long ones were cut."""

    hashes: np.ndarray
    max_bytes: int | None

    def share_of_bytes(self, texts: Iterable[str]) -> float:
        """The share of the bytes of some texts that are in training documents."""
        cut = [piece for text in texts for piece in pieces([text.encode()], self.max_bytes)]
        sizes = np.array([len(piece) for piece in cut])
        return float(sizes[self._contain([piece.decode() for piece in cut])].sum() / sizes.sum())

    def share_of_questions(self, questions: Sequence[Sequence[str]]) -> float:
        """The share of questions of which any of the texts given for each is a training document."""
        contained = self._contain([text for texts in questions for text in texts])
        starts = np.cumsum([0, *(len(texts) for texts in questions[:-1])])
        return float(np.logical_or.reduceat(contained, starts).mean())

    def _contain(self, texts: Sequence[str]) -> np.ndarray:
        return np.isin(np.array([text_hash(text) for text in texts], dtype=np.uint64), self.hashes)


def training_documents(run: Path | None, cache_dir: Path) -> TrainingDocuments | None:
    """What a run was trained on; None without a run, or if no cache has its documents any more."""
    if run is None:
        return None
    config, fingerprints = run_facts(run)
    folder = cached_documents(config, fingerprints["data"], cache_dir)
    hashes = None if folder is None else training_hashes(folder)
    return None if hashes is None else TrainingDocuments(hashes, config["data"].get("max_document_bytes"))


def document_of(text: str, sizes_n: np.ndarray, document_start: str | None) -> np.ndarray:
    """Number (n,) of the document in which each token of a running text begins, given the bytes of each token.

    Documents begin at the matches of `document_start`; without a pattern there is one.
    """
    if document_start is None:
        return np.zeros(len(sizes_n), dtype=np.int32)
    # What stands before the first match belongs to the document that it opens.
    cuts = [0, *(match.start() for match in re.finditer(document_start, text, re.MULTILINE))][2:]
    lengths = [len(text[start:stop].encode()) for start, stop in zip([0, *cuts], cuts, strict=False)]
    return np.searchsorted(np.cumsum(lengths), np.cumsum(sizes_n) - sizes_n, side="right").astype(np.int32)
