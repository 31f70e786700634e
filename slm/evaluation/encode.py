"""Encode a text with one checkpoint's tokenizer: tokens, which tokens are scored, and how many bytes each covers.

Notable:
- Each byte of the text is attributed to one token, so bits per byte is exact for any part of the text.
- A running text begins with BOS if the tokenizer's own rule says so. Without BOS, its first token is only context.
- Separate documents have begin and end tokens as in training.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from slm.data.chat_template import PLAIN_TEMPLATE
from slm.data.conversations import SCORED, Encoded, encode_conversation
from slm.data.mixture import read_mixture
from slm.data.sources import MIX
from slm.data.tokenizer import LOSSY_NOTE, Tokenizer
from slm.evaluation.texts import Text, document_of, read_run, sources_of_run, validation_documents
from slm.runtime.progress import progress

DOCUMENTS_PER_CALL = 1024  # number of documents that the tokenizer encodes in one call
LONG_TEXT_CHARACTERS = 4_000_000  # encoding a text of this length takes seconds, so longer texts show progress
CUT_NOTE = "Only the first {:,} tokens of the text are used."


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tokens to score, in order. Arrays have shape (n,) for n tokens."""

    name: str
    fingerprint: str  # of the text, independent of the tokenizer
    tokens: np.ndarray  # int64: token ids
    is_scored: np.ndarray  # bool: whether the prediction of a token counts; false for the first token
    token_bytes: np.ndarray  # int64: UTF-8 bytes of the text that a token covers; 0 for BOS and EOS
    document: np.ndarray  # int32: index of the document that a token is in
    words: int | None  # white-space separated words in the scored part of a running text; None if not counted
    notes: tuple[str, ...]  # caveats for the report, as sentences
    in_training: float | None = None  # share of the bytes that the checkpoint was trained on; None if unknown
    separator: int | None = None  # id of the token that begins a document; None if documents attend to each other
    weights: np.ndarray | None = None  # float64: weight of each token in means; None if all count the same
    conversation_starts: np.ndarray | None = None  # int64: positions, and the end; None if windows may cut documents
    masks_conversations: bool = False  # whether each conversation is alone in its windows

    @property
    def num_scored(self) -> int:
        """Number of tokens whose predictions count."""
        return int(self.is_scored.sum())

    @cached_property
    def segmentation(self) -> str:
        """Hash of where the text is cut into tokens, independent of token ids and of a BOS.

        Losses per token are comparable between checkpoints with equal segmentation.
        """
        byte_counts = self.token_bytes[self.token_bytes > 0]
        return hashlib.sha256(byte_counts.astype("<i4").tobytes()).hexdigest()[:16]


def encode(text: Text, tokenizer: Tokenizer, *, bos: str = "auto", max_tokens: int | None = None) -> Stream:
    """Return the stream of a text, or of its first `max_tokens` tokens (not counting a BOS before the text).

    `bos` says whether a running text begins with BOS: auto (the tokenizer's own rule), always, or never. In separate
    documents, EOS is scored and BOS is not. Raises ValueError if no token can be scored.
    """
    notes: list[str] = []
    if text.template is not None:
        template = text.template or tokenizer.chat_template or PLAIN_TEMPLATE
        stream = _encode_conversations(text.name, text.fingerprint, text.documents, tokenizer, template, max_tokens)
        stream = replace(stream, masks_conversations=True)
    elif text.separate:
        starts = range(0, len(text.documents), DOCUMENTS_PER_CALL)
        groups = (list(text.documents[start : start + DOCUMENTS_PER_CALL]) for start in starts)
        with _progress(sum(map(len, text.documents))) as advance:
            stream = _encode_documents(text.name, text.fingerprint, groups, tokenizer, max_tokens, advance)
        notes = ["Documents are framed by the tokenizer's begin and end tokens; predictions of end tokens are scored."]
        if bos != "auto":
            notes.append(f"bos={bos} has no effect on separate documents.")
        if tokenizer.has_own_bos:  # BOS differs from EOS, so all tokens with its id are begin tokens
            stream = replace(stream, is_scored=stream.is_scored & (stream.tokens != tokenizer.bos_id))
    else:
        stream = _encode_running_text(text, tokenizer, bos, max_tokens)
    if not stream.num_scored:
        raise ValueError(f"{text.name} has a single token, which is not scored: give more text or a larger max_tokens")
    return replace(stream, notes=(*text.notes, *stream.notes, *notes))


def run_stream(
    run: Path, tokenizer: Tokenizer, *, cache_dir: Path, max_tokens: int | None = None, source: str | None = None
) -> Stream:
    """Return the validation stream of a run of train.py, with the tokens and masks of the run's own validation.

    `tokenizer` is the tokenizer that the run saved. `max_tokens` limits the stream, begin and end tokens included. The
    sources of a mix follow each other, with equal parts of `max_tokens`, and their tokens are weighted by the mix's
    shares, as in training; `source` selects one source. Raises ValueError if the documents (`validation_documents`) or
    the tokenizer have changed since the run, or if it has no such source.
    """
    config, fingerprints = read_run(run)
    if fingerprints["tokenizer"] != tokenizer.fingerprint:
        raise ValueError(
            f"{run}: the given tokenizer has fingerprint {tokenizer.fingerprint}, but the run was trained with "
            f"{fingerprints['tokenizer']}; use the tokenizer in {run / 'model'}"
        )
    sources = sources_of_run(config, fingerprints, source)
    if max_tokens is not None and len(sources) > 1:
        max_tokens = max(2, max_tokens // len(sources))
    is_masked = bool(config["train"].get("document_masking"))  # older runs lack the key
    streams = {}
    for name, (source_config, fingerprint) in sources.items():
        try:
            groups = validation_documents(source_config, fingerprint, cache_dir)
        except ValueError as error:
            raise ValueError(f"the validation text of {run} is no longer available: {error}") from error
        if "documents" in fingerprints:
            template = tokenizer.chat_template or PLAIN_TEMPLATE
            conversations = chain.from_iterable(groups)
            stream = _encode_conversations(name, fingerprints["data"], conversations, tokenizer, template, max_tokens)
            return replace(stream, masks_conversations=is_masked)
        streams[name] = _encode_documents(name, fingerprint, groups, tokenizer, max_tokens)
    notes = ["This is the validation text of the run, framed and counted as in training."]
    if config["data"]["source"] != MIX or source is not None:
        (stream,) = streams.values()
    else:
        mixture = read_mixture(config["data"])
        stream = _mixed_stream(config["data"]["name"], fingerprints["data"], streams, mixture.shares)
        notes.append("Its sources are weighted by their shares of the training tokens.")
    separator = None
    if is_masked:
        notes.append("Tokens attend only to their own document, as in training.")
        separator = tokenizer.separator_id
    return replace(stream, notes=(*notes, *stream.notes), separator=separator)


def _mixed_stream(name: str, fingerprint: str, streams: Mapping[str, Stream], shares: Mapping[str, float]) -> Stream:
    """Join the streams of the sources of a mix. Their weights sum to the number of scored tokens."""
    num_scored = sum(stream.num_scored for stream in streams.values())
    documents, weights, num_documents = [], [], 0
    for source, stream in streams.items():
        documents.append(stream.document + num_documents)
        num_documents += int(stream.document[-1]) + 1
        weights.append(np.full(len(stream.tokens), shares[source] * num_scored / stream.num_scored))
    return Stream(
        name=name,
        fingerprint=fingerprint,
        tokens=np.concatenate([stream.tokens for stream in streams.values()]),
        is_scored=np.concatenate([stream.is_scored for stream in streams.values()]),
        token_bytes=np.concatenate([stream.token_bytes for stream in streams.values()]),
        document=np.concatenate(documents),
        words=None,
        notes=tuple(dict.fromkeys(note for stream in streams.values() for note in stream.notes)),
        weights=np.concatenate(weights),
    )


def _encode_running_text(text: Text, tokenizer: Tokenizer, bos: str, max_tokens: int | None) -> Stream:
    (content,) = text.documents
    with _progress(len(content)):
        encoded = tokenizer.encode(content)
        token_bytes, is_lossless = tokenizer.text_bytes(content, encoded)
    document = document_of(content, token_bytes, text.document_start)[:max_tokens]
    tokens, token_bytes = np.asarray(encoded, dtype=np.int64)[:max_tokens], token_bytes[:max_tokens]
    notes = [] if is_lossless else [LOSSY_NOTE]
    if len(tokens) < len(encoded):
        notes.append(CUT_NOTE.format(max_tokens))
    has_bos = tokenizer.adds_bos if bos == "auto" else bos == "always"
    num_unscored_bytes = 0 if has_bos else int(token_bytes[:1].sum())
    scored_bytes = content.encode()[num_unscored_bytes : token_bytes.sum()]
    scored_text = scored_bytes.decode(errors="ignore")  # without characters that are cut at an end
    if has_bos:
        tokens = np.r_[tokenizer.separator_id, tokens]
        token_bytes = np.r_[0, token_bytes]
        document = np.r_[document[:1], document]
    else:
        notes.append("The text does not begin with BOS, so its first token is only context and is not scored.")
    return Stream(
        name=text.name,
        fingerprint=text.fingerprint,
        tokens=tokens,
        is_scored=np.arange(len(tokens)) > 0,
        token_bytes=token_bytes,
        document=document,
        words=len(scored_text.split()) if is_lossless else None,
        notes=tuple(notes),
    )


def _encode_documents(
    name: str,
    fingerprint: str,
    groups: Iterable[list[str]],
    tokenizer: Tokenizer,
    max_tokens: int | None,
    advance: Callable[[float], None] = lambda megabytes: None,
) -> Stream:
    """Return the stream of all documents in `groups`, each between begin and end tokens, cut to `max_tokens` tokens."""
    tokens_before = np.asarray(tokenizer.ids_before_stream, dtype=np.int64)  # they belong to the first document
    # One array per document, after one for the tokens before the first.
    tokens, token_bytes = [tokens_before], [np.zeros_like(tokens_before)]
    num_tokens = len(tokens_before)
    is_lossless = True
    num_begin_tokens = int(tokenizer.has_own_bos)
    encoded = (pair for group in groups for pair in zip(group, tokenizer.encode_batch(group), strict=True))
    for content, ids in encoded:
        tokens.append(np.fromiter(tokenizer.with_begin_and_end(ids), dtype=np.int64))
        token_bytes.append(np.zeros_like(tokens[-1]))
        text_bytes, is_document_lossless = tokenizer.text_bytes(content, ids)
        token_bytes[-1][num_begin_tokens : num_begin_tokens + len(ids)] = text_bytes
        is_lossless &= is_document_lossless
        num_tokens += len(tokens[-1])
        advance(len(content) / 1e6)
        if max_tokens is not None and num_tokens > max_tokens:
            break
    lengths = [len(document_tokens) for document_tokens in tokens[1:]]
    lengths[0] += len(tokens_before)
    document = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    notes = [] if is_lossless else [LOSSY_NOTE]
    if max_tokens is not None and len(document) > max_tokens:
        notes.append(CUT_NOTE.format(max_tokens))
    document = document[:max_tokens]
    return Stream(
        name=name,
        fingerprint=fingerprint,
        tokens=np.concatenate(tokens)[:max_tokens],
        is_scored=np.arange(len(document)) > 0,
        token_bytes=np.concatenate(token_bytes)[:max_tokens],
        document=document,
        words=None,
        notes=tuple(notes),
    )


def _encode_conversations(
    name: str, fingerprint: str, documents: Iterable[str], tokenizer: Tokenizer, template: str, max_tokens: int | None
) -> Stream:
    """Return the stream of conversations, or of the first that have at least `max_tokens` tokens together."""
    encoded: list[Encoded] = []
    num_tokens = 0
    for document in documents:
        if max_tokens is not None and num_tokens >= max_tokens:
            break
        encoded.append(encode_conversation(document, tokenizer, template))
        num_tokens += len(encoded[-1].ids)
    lengths = [len(talk.ids) for talk in encoded]
    notes = ["Only what the assistant says is scored, in windows of whole conversations; a stride has no effect."]
    if not all(talk.keeps_text for talk in encoded):
        notes.append(LOSSY_NOTE)
    return Stream(
        name=name,
        fingerprint=fingerprint,
        tokens=np.concatenate([np.asarray(talk.ids, dtype=np.int64) for talk in encoded]),
        is_scored=np.concatenate([talk.marks for talk in encoded]) & SCORED > 0,
        token_bytes=np.concatenate([talk.token_bytes for talk in encoded]),
        document=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        words=None,
        notes=tuple(notes),
        conversation_starts=np.cumsum([0, *lengths]),
    )


def _progress(num_characters: int) -> AbstractContextManager[Callable[[float], None]]:
    if num_characters < LONG_TEXT_CHARACTERS:
        return nullcontext(lambda megabytes: None)
    return progress("data: encoding", num_characters / 1e6, "MB")
