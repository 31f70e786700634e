"""`prepare` opens the corpus that a data config and a tokenizer config describe, and builds it if it is not cached.

Each corpus has two folders in the cache. The first holds the documents of both splits, which are independent of the
tokenizer. The second holds their tokens and the tokenizer. A mix has the folders of its sources, and one for the
tokenizer that is trained on all of them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.cache import cached, digest
from slm.data.conversations import template_of
from slm.data.documents import left_out_notes, read_documents, write_documents
from slm.data.encoding import write_tokens
from slm.data.hub import limited
from slm.data.mixture import Mixture, read_mixture
from slm.data.packing import ConversationStream
from slm.data.sources import MIX, source_of
from slm.data.stream import TokenStream
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import Plan, is_on_hub, load_tokenizer, plan_tokenizer
from slm.runtime.settings import prefixed

_TOKENS_SCHEMA = 2  # part of the key of token folders: increase it when their manifests get other contents
_CHAT_SCHEMA = 1  # the same for those of conversations, and for what is scored in them


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Training and validation text as tokens."""

    name: str
    fingerprint: str
    """Fingerprint of the documents and their split. The tokenizer has a fingerprint of its own. For conversations, also
    of the chat template, which says what is scored."""
    train: TokenStream
    val: TokenStream
    val_bytes: np.ndarray
    """(vocab_size,) float64: bytes attributed to each token id, scaled so that the validation tokens sum to the bytes
    of the validation text. Of conversations, only what is scored counts."""
    keeps_text: bool
    """Whether the validation text can be decoded from its tokens."""
    tokenizer: Tokenizer
    left_out: dict[str, int]
    """For each reason (`documents.LEFT_OUT`), how many documents are in neither split."""
    notes: tuple[str, ...]
    """Sentences on what was read and what was left out."""
    documents_fingerprint: str = ""
    """Fingerprint of the documents and their split alone; empty for a mix."""
    mixture: Mixture | None = None
    """The shares of the sources of a mix, whose `train` and `val` are the streams of its sources, one after another."""
    sources: Mapping[str, "Corpus"] = field(default_factory=dict)
    """The corpus of each source of a mix; empty for other data."""

    @property
    def holds_conversations(self) -> bool:
        """Whether only what an assistant says is scored."""
        return isinstance(self.train, ConversationStream)


def prepare(data: Mapping[str, Any], tokenizer: Mapping[str, Any], *, cache_dir: Path) -> Corpus:
    """Open the corpus that a data config and a tokenizer config (plain dicts) describe; build what is missing.

    Safe to call from several processes at once: one builds, the others wait. If no corpus can be built from the
    options, raises ValueError that names the config key.
    """
    plan = plan_tokenizer(tokenizer)
    if data["source"] == MIX:
        return _prepare_mix(data, plan, tokenizer.get("train_bytes"), cache_dir)
    return _prepare(data, plan, cache_dir)


def _prepare(data: Mapping[str, Any], plan: Plan, cache_dir: Path) -> Corpus:
    name = data["name"]
    template = template_of(data, plan.chat_template) if source_of(data).holds_conversations else None
    key = [_TOKENS_SCHEMA, _documents_key(data), plan.key, *([] if template is None else [_CHAT_SCHEMA, template])]
    folder = cache_dir / "tokens" / f"{name}-{digest(key)}"

    def build(partial_folder: Path) -> dict[str, Any]:
        documents, document_facts = prepare_documents(data, cache_dir=cache_dir)
        return write_tokens(partial_folder, documents, document_facts, plan, template)

    facts = cached(folder, build, what=f"the tokens of {name}")
    built_tokenizer = load_tokenizer(folder / "tokenizer", name=facts["tokenizer"]["name"])
    # Tokens of text do not depend on the template, so tokenizers with several templates may share the folder.
    built_tokenizer.chat_template = plan.chat_template if template is None else template
    stream_class = TokenStream if template is None else ConversationStream
    return Corpus(
        name=name,
        fingerprint=fingerprint_with(facts["fingerprint"], template),
        documents_fingerprint=facts["fingerprint"],
        train=stream_class(folder, facts["splits"]["train"]),
        val=stream_class(folder, facts["splits"]["val"]),
        val_bytes=_val_bytes(built_tokenizer, facts["splits"]["val"], facts["val_token_bytes"]),
        keeps_text=facts["keeps_text"],
        tokenizer=built_tokenizer,
        left_out=facts["left_out"],
        notes=(*source_of(data).notes(data), *left_out_notes(facts["left_out"])),
    )


def _prepare_mix(data: Mapping[str, Any], plan: Plan, train_bytes: int | None, cache_dir: Path) -> Corpus:
    """Open or build the corpus of each source, with one tokenizer. `train_bytes` is `tokenizer.train_bytes`."""
    mixture = read_mixture(data)
    if plan.is_trained:
        plan = _plan_for_mix(data, mixture, plan, train_bytes, cache_dir)
    sources = {}
    for name in mixture.names:
        with prefixed(f"data.sources.{name}"):
            sources[name] = _prepare(data["sources"][name], plan, cache_dir)
    corpora = list(sources.values())
    identity = [mixture.identity, [[name, corpus.fingerprint] for name, corpus in sources.items()]]
    left_out = {reason: sum(corpus.left_out[reason] for corpus in corpora) for reason in corpora[0].left_out}
    return Corpus(
        name=data["name"],
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        train=TokenStream.joined([corpus.train for corpus in corpora]),
        val=TokenStream.joined([corpus.val for corpus in corpora]),
        val_bytes=corpora[0].tokenizer.token_bytes.astype(np.float64),  # a source has a scale of its own
        keeps_text=all(corpus.keeps_text for corpus in corpora),
        tokenizer=corpora[0].tokenizer,
        left_out=left_out,
        notes=tuple(f"{name}: {note}" for name, corpus in sources.items() for note in corpus.notes),
        mixture=mixture,
        sources=sources,
    )


def _plan_for_mix(
    data: Mapping[str, Any], mixture: Mixture, plan: Plan, train_bytes: int | None, cache_dir: Path
) -> Plan:
    """Return a plan whose tokenizer is trained on all sources: on `train_bytes` of text, divided by their shares."""
    sources = {name: data["sources"][name] for name in mixture.names}
    shares = {name: round(share, 9) for name, share in mixture.shares.items()}
    key = [plan.key, [[name, _documents_key(source), shares[name]] for name, source in sources.items()]]
    folder = cache_dir / "tokenizers" / f"{data['name']}-{digest(key)}"

    def texts() -> Iterator[list[str]]:
        for name, source in sources.items():
            with prefixed(f"data.sources.{name}"):
                documents, _ = prepare_documents(source, cache_dir=cache_dir)
            share = None if train_bytes is None else max(1, round(shares[name] * train_bytes))
            yield from (
                [text] for text in limited(chain.from_iterable(read_documents(documents, "train")), None, share)
            )

    def build(partial_folder: Path) -> dict[str, Any]:
        plan.make(texts).save(partial_folder)
        return {}

    def make(texts_of_source: object) -> Tokenizer:
        cached(folder, build, what=f"the tokenizer of {data['name']}")
        return load_tokenizer(folder, name=plan.name)

    return replace(plan, key=key, make=make)


def fingerprint_with(documents_fingerprint: str, template: str | None) -> str:
    """Return `Corpus.fingerprint` for documents that are conversations with a chat template, or, with None, texts."""
    return documents_fingerprint if template is None else digest([documents_fingerprint, template])


def check_sources(data: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """Raise the ValueError that `prepare` would raise for wrong options and paths. Quick, and downloads nothing."""
    if data["source"] == MIX:
        for name in read_mixture(data).names:
            with prefixed(f"data.sources.{name}"):
                _documents_key(data["sources"][name])
    else:
        _documents_key(data)  # raises ValueError for wrong options
    if not is_on_hub(tokenizer):
        plan_tokenizer(tokenizer)


def _val_bytes(tokenizer: Tokenizer, split: Mapping[str, Any], total_token_bytes: int) -> np.ndarray:
    """Return `Corpus.val_bytes`: the byte length of each id, scaled to sum to the bytes of the validation text.

    `split` is the manifest's entry for the validation split, and `total_token_bytes` the unscaled byte length of all
    its tokens. If this length is 0, all ids count for the same number of bytes.
    """
    if total_token_bytes:
        return tokenizer.token_bytes * (split["bytes"] / total_token_bytes)
    num_scored = max(1, split["tokens"] - 1)  # the first token of the stream is not scored
    return np.full(tokenizer.vocab_size, split["bytes"] / num_scored)


def prepare_documents(data: Mapping[str, Any], *, cache_dir: Path) -> tuple[Path, dict[str, Any]]:
    """Return the documents folder of a data config, built if missing, and the manifest of the folder."""
    name = data["name"]
    folder = cache_dir / "documents" / f"{name}-{digest(_documents_key(data))}"
    return folder, cached(folder, lambda partial: write_documents(partial, data), what=f"the documents of {name}")


def _documents_key(data: Mapping[str, Any]) -> list[Any]:
    return [source_of(data).key(data), data["val_fraction"]]
