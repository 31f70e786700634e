"""`prepare`: from the two config dicts to an open corpus, built at most once.

Two folders in the cache: documents (split, independent of the tokenizer) and, from them, tokens with their tokenizer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from slm.data.cache import cached, digest
from slm.data.documents import SPLITS, read_documents, write_documents
from slm.data.progress import progress
from slm.data.sources import source_of
from slm.data.stream import ShardWriter, TokenStream
from slm.data.tokenizer import Tokenizer, load_tokenizer
from slm.data.vocabulary import Plan, plan_tokenizer


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Training and validation text as tokens; `fingerprint` is that of the documents and their split alone."""

    name: str
    fingerprint: str
    train: TokenStream
    val: TokenStream
    tokenizer: Tokenizer


def prepare(data: Mapping[str, Any], tokenizer: Mapping[str, Any], *, cache_dir: Path) -> Corpus:
    """Open the corpus of conf/data/NAME.yaml under conf/tokenizer/NAME.yaml (plain dicts), building what is missing.

    Safe to call from several processes at once: one builds, the others wait. Raises ValueError, naming the config
    key, for options that give no corpus.
    """
    source, plan = source_of(data), plan_tokenizer(tokenizer)
    documents_key = [source.key(data), data["val_fraction"]]
    name = data["name"]
    documents = cache_dir / "documents" / f"{name}-{digest(documents_key)}"
    tokens = cache_dir / "tokens" / f"{name}-{digest([documents_key, plan.key])}"

    def build_documents(folder: Path) -> dict[str, Any]:
        texts = source.documents(data)
        return write_documents(folder, texts, data["val_fraction"], name=name, size=source.size(data))

    def build_tokens(folder: Path) -> dict[str, Any]:
        facts = cached(documents, build_documents, what=f"the documents of {name}")
        return write_tokens(folder, documents, facts, plan)

    facts = cached(tokens, build_tokens, what=f"the tokens of {name}")
    return Corpus(
        name=name,
        fingerprint=facts["fingerprint"],
        train=TokenStream(tokens, facts["splits"]["train"]),
        val=TokenStream(tokens, facts["splits"]["val"]),
        tokenizer=load_tokenizer(tokens / "tokenizer", name=facts["tokenizer"]["name"]),
    )


def write_tokens(folder: Path, documents: Path, facts: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Make the tokenizer, encode both splits into shards; returns the manifest of the token folder."""
    tokenizer = plan.make(lambda: read_documents(documents, "train"))
    tokenizer.save(folder / "tokenizer")
    writers = {split: ShardWriter(folder, split, tokenizer.vocab_size) for split in SPLITS}
    size = sum(counts["bytes"] for counts in facts["splits"].values())
    with progress("encoding", size / 1e6, "MB") as advance:
        for split, writer in writers.items():
            writer.write(_opening(tokenizer))
            for texts in read_documents(documents, split):
                writer.write(chain.from_iterable(_framed(tokenizer, ids) for ids in tokenizer.encode_batch(texts)))
                advance(sum(len(text.encode()) for text in texts) / 1e6)
    return {
        "fingerprint": facts["fingerprint"],
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "splits": {split: writer.facts(facts["splits"][split]) for split, writer in writers.items()},
    }


def _begins(tokenizer: Tokenizer) -> bool:
    return tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.eos_id


def _opening(tokenizer: Tokenizer) -> list[int]:
    """What stands before the first document, so that a stream starts with a special token and all text is scored."""
    return [] if _begins(tokenizer) else [tokenizer.eos_id]


def _framed(tokenizer: Tokenizer, ids: list[int]) -> Iterator[int]:
    """[BOS] document [EOS], or document [EOS] where one token does both."""
    begin = [tokenizer.bos_id] if _begins(tokenizer) and tokenizer.bos_id is not None else []
    return chain(begin, ids, [tokenizer.eos_id])
