"""Make the shards of a corpus: the tokens of its documents and, of conversations, a mark for each token."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.conversations import SCORED, encode_conversation, rendered
from slm.data.documents import SPLITS, document_files, read_documents, read_file, text_bytes
from slm.data.packing import NUM_MARKS
from slm.data.parts import Part, build_parts
from slm.data.stream import ShardWriter, split_facts
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import Plan, load_tokenizer


def write_tokens(
    folder: Path, documents: Path, document_facts: Mapping[str, Any], plan: Plan, template: str | None = None
) -> dict[str, Any]:
    """Make the tokenizer and encode both splits; returns the manifest. `document_facts` is the documents' manifest.

    Documents are conversations if `template` is their chat template, which then becomes the tokenizer's own.
    """
    tokenizer_folder = folder / "tokenizer"
    if not tokenizer_folder.exists():  # it exists if an earlier build was killed after making it
        made = plan.make(lambda: _texts(documents, template))
        made.chat_template = made.chat_template if template is None else template
        made.save(folder / "tokenizer.new")
        (folder / "tokenizer.new").rename(tokenizer_folder)
    tokenizer = load_tokenizer(tokenizer_folder, name=plan.name)
    parts = []
    for split in SPLITS:
        for index, path in enumerate(document_files(documents, split)):
            begins_stream = index == 0
            parts.append(Part(arguments=(split, str(path), begins_stream), num_bytes=text_bytes(path)))
    encode = encode_file if template is None else encode_conversations
    results = build_parts(folder, "tokens", encode, parts, task="data: encoding")
    splits = {}
    for split, counts in document_facts["splits"].items():
        in_split = [result for result in results if result["split"] == split]
        if template is not None:
            counts = {**counts, "bytes": sum(result["scored_bytes"] for result in in_split)}
        shards = [shard for result in in_split for shard in result["shards"]]
        splits[split] = split_facts(shards, tokenizer.vocab_size, counts)
        if template is not None:
            mark_shards = [shard for result in in_split for shard in result["marks"]]
            splits[split]["marks"] = split_facts(mark_shards, NUM_MARKS, counts)
    return {
        "fingerprint": document_facts["fingerprint"],
        "left_out": document_facts["left_out"],
        "tokenizer": {name: getattr(tokenizer, name) for name in ("name", "fingerprint", "vocab_size")},
        "val_token_bytes": sum(result["token_bytes"] for result in results if result["split"] == "val"),
        "keeps_text": all(result["keeps_text"] for result in results if result["split"] == "val"),
        "splits": splits,
    }


def encode_file(
    folder: Path, number: int, split: str, documents_file: str, begins_stream: bool, advance: Callable[[float], None]
) -> dict[str, Any]:
    """Encode the Parquet file `documents_file` of a split into shards. `build_parts` calls this function."""
    tokenizer = _cached_tokenizer(str(folder / "tokenizer"))
    writer = ShardWriter(folder, f"{split}-{number:05d}", tokenizer.vocab_size)
    if begins_stream:
        writer.write(tokenizer.ids_before_stream)
    total_token_bytes, keeps_text = 0, True
    for texts in read_file(Path(documents_file)):
        encoded = tokenizer.encode_batch(texts)
        writer.write(chain.from_iterable(map(tokenizer.with_begin_and_end, encoded)))
        if split == "val":  # these facts describe only the validation text
            total_token_bytes += sum(int(tokenizer.token_bytes[ids].sum()) for ids in encoded)
            keeps_text = keeps_text and all(map(tokenizer.keeps, texts, encoded))
        advance(sum(len(text.encode()) for text in texts) / 1e6)
    facts = {"split": split, "token_bytes": total_token_bytes, "keeps_text": keeps_text}
    return {**facts, "shards": writer.shards, "files": [shard["file"] for shard in writer.shards]}


def encode_conversations(
    folder: Path, number: int, split: str, documents_file: str, begins_stream: bool, advance: Callable[[float], None]
) -> dict[str, Any]:
    """Encode a Parquet file of conversations into shards of tokens and of marks. `build_parts` calls this function."""
    tokenizer = _cached_tokenizer(str(folder / "tokenizer"))
    assert tokenizer.chat_template is not None
    writer = ShardWriter(folder, f"{split}-{number:05d}", tokenizer.vocab_size)
    mark_writer = ShardWriter(folder, f"{split}-marks-{number:05d}", NUM_MARKS)
    total_token_bytes, scored_bytes, keeps_text = 0, 0, True
    for documents in read_file(Path(documents_file)):
        encoded = [encode_conversation(document, tokenizer, tokenizer.chat_template) for document in documents]
        ids, marks = np.concatenate([talk.ids for talk in encoded]), np.concatenate([talk.marks for talk in encoded])
        writer.write(ids)
        mark_writer.write(marks)
        total_token_bytes += int(tokenizer.token_bytes[ids[(marks & SCORED) > 0]].sum())
        scored_bytes += sum(int(talk.token_bytes[(talk.marks & SCORED) > 0].sum()) for talk in encoded)
        keeps_text = keeps_text and all(talk.keeps_text for talk in encoded)
        advance(sum(len(document.encode()) for document in documents) / 1e6)
    facts = {"split": split, "token_bytes": total_token_bytes, "keeps_text": keeps_text, "scored_bytes": scored_bytes}
    files = [shard["file"] for shard in writer.shards + mark_writer.shards]
    return {**facts, "shards": writer.shards, "marks": mark_writer.shards, "files": files}


def _texts(documents: Path, template: str | None) -> Iterator[list[str]]:
    """Yield the training texts to train a tokenizer on; conversations without special tokens."""
    for batch in read_documents(documents, "train"):
        yield batch if template is None else [rendered(document, template) for document in batch]


@lru_cache(maxsize=1)
def _cached_tokenizer(folder: str) -> Tokenizer:
    return load_tokenizer(Path(folder))
