"""`prepare` opens the corpus that the configs of data and tokenizer describe, and builds it if it is not in the cache.

The cache has two folders for a corpus: one of its documents, split and independent of the tokenizer, and one of the
tokens made from them, with the tokenizer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.cache import cached, digest
from slm.data.documents import (
    SPLITS,
    document_files,
    left_out_notes,
    read_documents,
    read_file,
    text_bytes,
    write_documents,
)
from slm.data.parts import Part, build_parts
from slm.data.sources import source_of
from slm.data.stream import ShardWriter, TokenStream, split_facts
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import Plan, is_on_hub, load_tokenizer, plan_tokenizer

_TOKENS_SCHEMA = 2  # part of the key of token folders: raise it when what their manifests hold changes


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Training and validation text as tokens."""

    name: str
    fingerprint: str
    """Fingerprint of the documents and their split. The tokenizer has a fingerprint of its own."""
    train: TokenStream
    val: TokenStream
    val_bytes: np.ndarray
    """(vocab_size,) float64: bytes of validation text that a token of each id counts for; their sum is the text's."""
    keeps_text: bool
    """Whether the validation text can be decoded from its tokens."""
    tokenizer: Tokenizer
    left_out: dict[str, int]
    """How many documents are in neither split, by reason (`documents.LEFT_OUT`)."""
    notes: tuple[str, ...]
    """Sentences on what was read and what was left out."""


def prepare(data: Mapping[str, Any], tokenizer: Mapping[str, Any], *, cache_dir: Path) -> Corpus:
    """Open the corpus of conf/data/NAME.yaml under conf/tokenizer/NAME.yaml (plain dicts); build what is missing.

    Safe to call from several processes at once: one builds, the others wait. Raises ValueError, which names the config
    key, for options from which no corpus can be built.
    """
    plan, name = plan_tokenizer(tokenizer), data["name"]
    folder = cache_dir / "tokens" / f"{name}-{digest([_TOKENS_SCHEMA, _documents_key(data), plan.key])}"

    def build(folder: Path) -> dict[str, Any]:
        documents, facts = prepare_documents(data, cache_dir=cache_dir)
        return write_tokens(folder, documents, facts, plan)

    facts = cached(folder, build, what=f"the tokens of {name}")
    built_tokenizer = load_tokenizer(folder / "tokenizer", name=facts["tokenizer"]["name"])
    return Corpus(
        name=name,
        fingerprint=facts["fingerprint"],
        train=TokenStream(folder, facts["splits"]["train"]),
        val=TokenStream(folder, facts["splits"]["val"]),
        val_bytes=_val_bytes(built_tokenizer, facts["splits"]["val"], facts["val_token_bytes"]),
        keeps_text=facts["keeps_text"],
        tokenizer=built_tokenizer,
        left_out=facts["left_out"],
        notes=(*source_of(data).notes(data), *left_out_notes(facts["left_out"])),
    )


def check_sources(data: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """Raise the ValueError that `prepare` would raise for wrong options and paths. Quick, and downloads nothing."""
    _documents_key(data)
    if not is_on_hub(tokenizer):
        plan_tokenizer(tokenizer)


def _val_bytes(tokenizer: Tokenizer, split: Mapping[str, Any], token_bytes: int) -> np.ndarray:
    """`Corpus.val_bytes`: the bytes of each id by itself, scaled so that all tokens together have those of the text.

    `split` is the validation split in the manifest, and `token_bytes` the sum over its tokens before scaling. If that
    is 0, all ids count for the same number of bytes.
    """
    if token_bytes:
        return tokenizer.token_bytes * (split["bytes"] / token_bytes)
    num_scored = max(1, split["tokens"] - 1)  # the first token of the stream is not scored
    return np.full(tokenizer.vocab_size, split["bytes"] / num_scored)


def prepare_documents(data: Mapping[str, Any], *, cache_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The folder with the documents of conf/data/NAME.yaml, which `read_documents` takes, and its manifest."""
    name = data["name"]
    folder = cache_dir / "documents" / f"{name}-{digest(_documents_key(data))}"

    return folder, cached(folder, lambda folder: write_documents(folder, data), what=f"the documents of {name}")


def _documents_key(data: Mapping[str, Any]) -> list[Any]:
    """What the documents and their split depend on."""
    return [source_of(data).key(data), data["val_fraction"]]


def write_tokens(folder: Path, documents: Path, facts: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Make the tokenizer and encode both splits into shards; returns what the manifest of the token folder holds.

    `facts` is the manifest of the folder `documents`.
    """
    saved = folder / "tokenizer"
    if not saved.exists():  # else of a killed build
        plan.make(lambda: read_documents(documents, "train")).save(folder / "tokenizer.new")
        (folder / "tokenizer.new").rename(saved)
    tokenizer = load_tokenizer(saved, name=plan.name)
    files = [(split, path) for split in SPLITS for path in document_files(documents, split)]
    is_first = {path: number == 0 or files[number - 1][0] != split for number, (split, path) in enumerate(files)}
    parts = [Part((split, str(path), is_first[path]), text_bytes(path)) for split, path in files]
    results = build_parts(folder, "tokens", encode_file, parts, task="data: encoding")
    shards = {split: [s for part in results if part["split"] == split for s in part["shards"]] for split in SPLITS}
    splits = facts["splits"]
    return {
        "fingerprint": facts["fingerprint"],
        "left_out": facts["left_out"],
        "tokenizer": {name: getattr(tokenizer, name) for name in ("name", "fingerprint", "vocab_size")},
        "val_token_bytes": sum(part["token_bytes"] for part in results),
        "keeps_text": all(part["keeps_text"] for part in results),
        "splits": {split: split_facts(shards[split], tokenizer.vocab_size, splits[split]) for split in SPLITS},
    }


def encode_file(
    folder: Path, number: int, split: str, documents: str, is_first: bool, advance: Callable[[float], None]
) -> dict[str, Any]:
    """Encode one Parquet file of a split into shards; `parts.Work`. The first file of a split opens the stream."""
    tokenizer = _tokenizer_of(str(folder / "tokenizer"))
    writer = ShardWriter(folder, f"{split}-{number:05d}", tokenizer.vocab_size)
    writer.write(tokenizer.opening if is_first else [])
    token_bytes, keeps_text = 0, True
    for texts in read_file(Path(documents)):
        encoded = tokenizer.encode_batch(texts)
        writer.write(chain.from_iterable(map(tokenizer.framed, encoded)))
        if split == "val":
            token_bytes += sum(int(tokenizer.token_bytes[ids].sum()) for ids in encoded)
            keeps_text = keeps_text and all(map(tokenizer.keeps, texts, encoded))
        advance(sum(len(text.encode()) for text in texts) / 1e6)
    files = [shard["file"] for shard in writer.shards]
    written = {"split": split, "shards": writer.shards, "files": files}
    return {**written, "token_bytes": token_bytes, "keeps_text": keeps_text}


@lru_cache(maxsize=1)
def _tokenizer_of(folder: str) -> Tokenizer:
    return load_tokenizer(Path(folder))
