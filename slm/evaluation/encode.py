"""A text as one checkpoint's tokenizer cuts it: tokens, which of them are scored, and how many bytes each covers.

Notable: each token has its share of the bytes of the text, so bits per byte is exact for any part of it; if decoding
does not return the text, a note says so. A running text begins with BOS if the tokenizer's own rule says so, and then
all of it is scored; else its first token is context only. Separate documents are framed as in training.
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from slm.data import Tokenizer
from slm.data.tokenizer import LOSSY_NOTE
from slm.evaluation.texts import Text, document_of, read_run, run_documents
from slm.runtime.progress import progress

DOCUMENTS_PER_CALL = 1024
"""Documents that the tokenizer encodes in one call."""
LONG_TEXT = 4_000_000
"""Characters from which on encoding takes seconds and shows its progress."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tokens to score, in order. Legend: n tokens."""

    name: str
    fingerprint: str
    """Fingerprint of the text, whatever the tokenizer."""
    tokens: np.ndarray
    """(n,) int64."""
    scored: np.ndarray
    """(n,) bool: whether the prediction of a token counts; never of the first."""
    token_bytes: np.ndarray
    """(n,) int64: UTF-8 bytes of the text that a token covers; 0 for BOS and EOS."""
    document: np.ndarray
    """(n,) int32: number of the document that a token is in."""
    words: int | None
    """White-space separated words of the scored part of a running text."""
    notes: tuple[str, ...]
    """Sentences that a reader of the figures must know."""
    in_training: float | None = None
    """Share of the bytes that the checkpoint is known to have been trained on; None if unknown."""
    separator: int | None = None
    """The token that begins a document, if documents do not see each other; None if they do."""

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
    ValueError when nothing is left to score.
    """
    if text.separate:
        starts = range(0, len(text.documents), DOCUMENTS_PER_CALL)
        groups = (list(text.documents[start : start + DOCUMENTS_PER_CALL]) for start in starts)
        with _progress(sum(map(len, text.documents))) as advance:
            stream = _frame(text.name, text.fingerprint, groups, tokenizer, max_tokens, advance)
        notes = ["Documents are framed by the tokenizer's begin and end tokens; predictions of end tokens are scored."]
        if bos != "auto":
            notes.append(f"bos={bos} has no effect on separate documents.")
        if tokenizer.has_own_bos:  # text never gives that id
            stream = replace(stream, scored=stream.scored & (stream.tokens != tokenizer.bos_id))
    else:
        stream, notes = _encode_running_text(text, tokenizer, bos, max_tokens), []
    if not stream.num_scored:
        raise ValueError(
            f"{text.name}: a single token is left, with none before it to predict it from; "
            "give more text, or more max_tokens"
        )
    return replace(stream, notes=(*text.notes, *stream.notes, *notes))


def run_stream(run: Path, tokenizer: Tokenizer, *, cache_dir: Path, max_tokens: int | None = None) -> Stream:
    """The validation stream of a run directory of ours, token for token and masked as the run was validated on it.

    `tokenizer` is the one that the run saved. The text is looked for in `cache_dir` and in the run's own cache, else
    made again from its source in `cache_dir`. `max_tokens` keeps only its first tokens, framing included. Raises
    ValueError if the documents or the tokenizer are no longer those of the run.
    """
    config, fingerprints = read_run(run)
    if fingerprints["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(
            f"{run}: the tokenizer given has fingerprint {tokenizer.fingerprint} and the run was trained with "
            f"{fingerprints['tokenizer']}; use the tokenizer in {run / 'model'}"
        )
    try:
        groups = run_documents(config, fingerprints["data"], cache_dir)
    except ValueError as error:
        raise ValueError(f"the validation text of {run} is no longer available: {error}") from error
    stream = _frame(config["data"]["name"], fingerprints["data"], groups, tokenizer, max_tokens)
    notes = ["This is the validation text of the run, framed and counted as in training."]
    is_masked = config["train"].get("document_masking")  # older runs lack the key
    if is_masked:
        notes.append("Tokens see only their own document, as in training.")
    return replace(stream, notes=(*notes, *stream.notes), separator=tokenizer.separator_id if is_masked else None)


def _encode_running_text(text: Text, tokenizer: Tokenizer, bos: str, max_tokens: int | None) -> Stream:
    (content,) = text.documents
    with _progress(len(content)):
        encoded = tokenizer.encode(content)
        sizes, is_lossless = tokenizer.text_bytes(content, encoded)
    document = document_of(content, sizes, text.document_start)[:max_tokens]
    tokens, sizes = np.asarray(encoded, dtype=np.int64)[:max_tokens], sizes[:max_tokens]
    notes = [] if is_lossless else [LOSSY_NOTE]
    if len(tokens) < len(encoded):
        notes.append(_cut_note(max_tokens))
    has_bos = tokenizer.adds_bos if bos == "auto" else bos == "always"
    num_unscored_bytes = 0 if has_bos else int(sizes[:1].sum())
    scored_text = content.encode()[num_unscored_bytes : sizes.sum()].decode(errors="ignore")
    if has_bos:
        begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        tokens, sizes, document = np.r_[begin, tokens], np.r_[0, sizes], np.r_[document[:1], document]
    else:
        notes.append("The text does not begin with BOS, so its first token is context and not scored.")
    return Stream(
        name=text.name,
        fingerprint=text.fingerprint,
        tokens=tokens,
        scored=np.arange(len(tokens)) > 0,
        token_bytes=sizes,
        document=document,
        words=len(scored_text.split()) if is_lossless else None,
        notes=tuple(notes),
    )


def _frame(
    name: str,
    fingerprint: str,
    groups: Iterable[list[str]],
    tokenizer: Tokenizer,
    max_tokens: int | None,
    advance: Callable[[float], None] = lambda megabytes: None,
) -> Stream:
    """Documents between begin and end tokens, one after the other, up to `max_tokens` tokens.

    What opens the stream belongs to the first document.
    """
    opening = np.asarray(tokenizer.opening, dtype=np.int64)
    tokens, sizes, lengths, is_lossless = [opening], [0 * opening], [], True
    length, begin = len(opening), int(tokenizer.has_own_bos)
    pairs = (pair for group in groups for pair in zip(group, tokenizer.encode_batch(group), strict=True))
    for content, ids in pairs:
        framed = np.fromiter(tokenizer.framed(ids), dtype=np.int64)
        framed_sizes = np.zeros_like(framed)
        framed_sizes[begin : begin + len(ids)], gives_text_back = tokenizer.text_bytes(content, ids)
        is_lossless &= gives_text_back
        tokens.append(framed)
        sizes.append(framed_sizes)
        lengths.append(len(framed))
        length += len(framed)
        advance(len(content) / 1e6)
        if max_tokens is not None and length > max_tokens:
            break
    lengths[0] += len(opening)
    document = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    notes = [] if is_lossless else [LOSSY_NOTE]
    if max_tokens is not None and len(document) > max_tokens:
        notes.append(_cut_note(max_tokens))
    return Stream(
        name=name,
        fingerprint=fingerprint,
        tokens=np.concatenate(tokens)[:max_tokens],
        scored=np.arange(len(document[:max_tokens])) > 0,
        token_bytes=np.concatenate(sizes)[:max_tokens],
        document=document[:max_tokens],
        words=None,
        notes=tuple(notes),
    )


def _cut_note(max_tokens: int | None) -> str:
    return f"Only the first {max_tokens:,} tokens of the text are used."


def _progress(characters: int) -> AbstractContextManager[Callable[[float], None]]:
    if characters < LONG_TEXT:
        return nullcontext(lambda megabytes: None)
    return progress("data: encoding", characters / 1e6, "MB")
