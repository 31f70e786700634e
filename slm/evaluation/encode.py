"""A text as one checkpoint's tokenizer sees it: tokens, which of them are scored, and the bytes each stands for.

Notable: bytes are those of the text, shared out token by token, so bits per byte is exact for any part of it; where a
tokenizer does not give the text back, a note says so. A running text begins with BOS where the tokenizer's own rule
says so, and then all of it is scored; else its first token is context only. Separate documents are framed as in
training.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm.composition.settings import BEFORE_KEYS
from slm.data import Tokenizer
from slm.data.tokenizer import LOSSY_NOTE
from slm.evaluation.byte_counts import document_of
from slm.evaluation.protocols import BOS_RULES
from slm.evaluation.texts import Text, run_documents, run_facts
from slm.runtime.progress import progress

_GROUP = 1024  # documents of one call of the tokenizer
_LONG = 4_000_000  # characters, from which on encoding takes seconds and shows it


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tokens to score, in order. Legend: n tokens."""

    name: str
    fingerprint: str
    """Of the text, whatever the tokenizer."""
    tokens: np.ndarray
    """(n,) int64."""
    scored: np.ndarray
    """(n,) bool: whether the prediction of a token counts; never of the first."""
    token_bytes: np.ndarray
    """(n,) int64: UTF-8 bytes of the text that a token stands for; 0 for BOS and EOS."""
    document: np.ndarray
    """(n,) int32: number of the document that a token is in."""
    words: int | None
    """White-space separated words of the scored part of a running text."""
    notes: tuple[str, ...]
    """What a reader of the figures must know, whole sentences."""
    in_training: float | None = None
    """Share of the bytes that the checkpoint is known to have been trained on; None where that cannot be known."""
    separator: int | None = None
    """The token that documents begin with where they do not see each other; None where they do."""

    @property
    def num_scored(self) -> int:
        """Tokens whose predictions count."""
        return int(self.scored.sum())

    @cached_property
    def segmentation(self) -> str:
        """Identifies where the text is cut into tokens, whatever their ids and with or without BOS.

        Losses per token compare between checkpoints for which this is equal.
        """
        sizes = self.token_bytes[self.token_bytes > 0]
        return hashlib.sha256(sizes.astype("<i4").tobytes()).hexdigest()[:16]


def encode(text: Text, tokenizer: Tokenizer, *, bos: str = "auto", max_tokens: int | None = None) -> Stream:
    """The stream of a text, or of its first `max_tokens` tokens (a BOS before the text not counted).

    `bos` says whether a running text begins with BOS: auto (the tokenizer's own rule), always, or never. Of separate
    documents EOS is scored, as in training (the model must say where a document ends), and BOS is not. Raises
    ValueError for settings that mean nothing, and when nothing is left to score.
    """
    if bos not in BOS_RULES:
        raise ValueError(f"bos={bos!r} must be one of {', '.join(BOS_RULES)}")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1, or null for the whole text")
    read = _separate if text.separate else _running
    stream = read(text, tokenizer, bos, max_tokens)
    if not stream.num_scored:
        raise ValueError(
            f"{text.name}: a single token is left, with none before it to predict it from; "
            "give more text, or more max_tokens"
        )
    return replace(stream, notes=(*text.notes, *stream.notes))


def run_stream(
    run: Path, tokenizer: Tokenizer, *, cache_dir: Path | None = None, max_tokens: int | None = None
) -> Stream:
    """The validation stream of a run directory of ours, token for token and masked as the run was validated on it.

    `tokenizer` is the one that the run saved. The text is looked for in `cache_dir` and in the run's own cache, else
    made again from its source in `cache_dir` (by default the run's). `max_tokens` leaves only so many at its start,
    framing included. Raises ValueError where the documents or the tokenizer are not those of the run any more.
    """
    config, prints = run_facts(run)
    if prints["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(
            f"{run}: the tokenizer given has fingerprint {tokenizer.fingerprint} and the run was trained with "
            f"{prints['tokenizer']}; use the tokenizer in {run / 'model'}"
        )
    folder = Path(os.path.expanduser(config["cache_dir"])) if cache_dir is None else cache_dir
    try:
        groups = run_documents(config, prints["data"], folder)
    except ValueError as error:
        raise ValueError(f"the validation text of {run} cannot be had again: {error}") from error
    frames = list(_frames(groups, tokenizer))
    tokens, sizes, document = _joined(frames, tokenizer)
    masked = config["train"].get("document_masking", BEFORE_KEYS["train.document_masking"])
    notes = ["This is the validation text of the run, framed and counted as in training."]
    if masked:
        notes.append("No token sees another document than its own, as in training.")
    if not all(frame.kept for frame in frames):
        notes.append(LOSSY_NOTE)
    if max_tokens is not None and max_tokens < len(tokens):
        tokens, sizes, document = tokens[:max_tokens], sizes[:max_tokens], document[:max_tokens]
        notes.append(_part(max_tokens))
    return Stream(
        name=config["data"]["name"],
        fingerprint=prints["data"],
        tokens=tokens,
        scored=np.arange(len(tokens)) > 0,
        token_bytes=sizes,
        document=document,
        words=None,
        notes=tuple(notes),
        separator=tokenizer.separator_id if masked else None,
    )


def _running(text: Text, tokenizer: Tokenizer, bos: str, max_tokens: int | None) -> Stream:
    """One text, tokenised whole."""
    (content,) = text.documents
    with _shown(len(content)):
        encoded = tokenizer.encode(content)
        sizes, kept = tokenizer.text_bytes(content, encoded)
    ids, notes = np.asarray(encoded, dtype=np.int64), [] if kept else [LOSSY_NOTE]
    document = document_of(content, sizes, text.document_start)
    if max_tokens is not None and max_tokens < len(ids):
        ids, sizes, document = ids[:max_tokens], sizes[:max_tokens], document[:max_tokens]
        notes.append(_part(max_tokens))
    has_bos = tokenizer.adds_bos if bos == "auto" else bos == "always"
    skipped = 0 if has_bos else int(sizes[:1].sum())
    scored = content.encode()[skipped : sizes.sum()]
    words = len(scored.decode(errors="ignore").split()) if kept else None
    if has_bos:
        begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        ids, sizes, document = np.r_[begin, ids], np.r_[0, sizes], np.r_[document[:1], document]
    else:
        notes.append("The text does not begin with BOS, so its first token is context and not scored.")
    return Stream(
        name=text.name,
        fingerprint=text.fingerprint,
        tokens=ids,
        scored=np.arange(len(ids)) > 0,
        token_bytes=sizes,
        document=document.astype(np.int32),
        words=words,
        notes=tuple(notes),
    )


def _separate(text: Text, tokenizer: Tokenizer, bos: str, max_tokens: int | None) -> Stream:
    """Documents one after the other, between begin and end."""
    notes = ["Documents stand between the tokenizer's begin and end tokens, and predictions of the end count."]
    if bos != "auto":
        notes.append(f"bos={bos} is for one running text and changes nothing here.")
    groups = (list(text.documents[start : start + _GROUP]) for start in range(0, len(text.documents), _GROUP))
    frames, length = list[_Frame](), len(tokenizer.opening)
    with _shown(sum(map(len, text.documents))) as advance:
        for frame in _frames(groups, tokenizer):
            frames.append(frame)
            length += len(frame.tokens)
            advance(frame.characters / 1e6)
            if max_tokens is not None and length >= max_tokens:
                notes.append(_part(max_tokens))
                break
    if not all(frame.kept for frame in frames):
        notes.append(LOSSY_NOTE)
    tokens, sizes, document = _joined(frames, tokenizer)
    scored = np.arange(len(tokens)) > 0
    if tokenizer.has_own_bos:
        scored &= tokens != tokenizer.bos_id  # text never gives that id
    return Stream(
        name=text.name,
        fingerprint=text.fingerprint,
        tokens=tokens[:max_tokens],
        scored=scored[:max_tokens],
        token_bytes=sizes[:max_tokens],
        document=document[:max_tokens],
        words=None,
        notes=tuple(notes),
    )


class _Frame(NamedTuple):
    """A document between begin and end."""

    tokens: np.ndarray
    sizes: np.ndarray
    """Bytes of its text that each token stands for."""
    kept: bool
    """Whether the tokens give the text back."""
    characters: int


def _frames(groups: Iterable[list[str]], tokenizer: Tokenizer) -> Iterator[_Frame]:
    begin = int(tokenizer.has_own_bos)
    for contents in groups:
        for content, ids in zip(contents, tokenizer.encode_batch(contents), strict=True):
            tokens = np.fromiter(tokenizer.framed(ids), dtype=np.int64)
            sizes = np.zeros_like(tokens)
            sizes[begin : begin + len(ids)], kept = tokenizer.text_bytes(content, ids)
            yield _Frame(tokens, sizes, kept, len(content))


def _joined(frames: list[_Frame], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, bytes and number of the document of each; what opens the stream belongs to the first document."""
    opening = np.asarray(tokenizer.opening, dtype=np.int64)
    lengths = [len(frame.tokens) for frame in frames]
    lengths[0] += len(opening)
    tokens = np.concatenate([opening, *(frame.tokens for frame in frames)])
    sizes = np.concatenate([0 * opening, *(frame.sizes for frame in frames)])
    return tokens, sizes, np.repeat(np.arange(len(frames), dtype=np.int32), lengths)


def _part(max_tokens: int) -> str:
    return f"Only the first {max_tokens:,} tokens of the text are used."


def _shown(characters: int) -> AbstractContextManager[Callable[[float], None]]:
    if characters < _LONG:
        return nullcontext(lambda amount: None)
    return progress("data: encoding", characters / 1e6, "MB")
