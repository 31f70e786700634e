import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from slm.data.stream import ShardWriter, TokenStream, split_facts
from tests.composing import choice
from tests.running import ROOT
from tests.seeds import seeded

WORDS = ["the", "a", "model", "learns", "word", "after", "short,", "data;", "17", "3.5", "café", "naïve", "語", "(yes)"]
PREPARE = """
import json, sys
from pathlib import Path
from slm.data import prepare
try:
    corpus = prepare(json.loads(sys.argv[1]), json.loads(sys.argv[2]), cache_dir=Path(sys.argv[3]))
    print(corpus.fingerprint, corpus.tokenizer.fingerprint, corpus.train.num_tokens)
except ValueError as error:
    print(error)
"""


@pytest.fixture
def config() -> Callable[..., dict[str, Any]]:
    return choice


@pytest.fixture
def python() -> Callable[..., subprocess.Popen[str]]:
    """Starts a script in another process, which can import slm wherever the tests run from."""

    def start(script: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def preparing(python: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts `prepare` in another process, between other lines; it prints fingerprints or what it refuses."""

    def start(
        data: dict, tokenizer: dict, cache: Path, before: str = "", after: str = "", **environment: str
    ) -> subprocess.Popen[str]:
        return python(before + PREPARE + after, json.dumps(data), json.dumps(tokenizer), cache, **environment)

    return start


@pytest.fixture
def paragraphs() -> list[str]:
    rng = random.Random(seeded())
    return [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) + f" number {i}." for i in range(300)]


@pytest.fixture
def book(tmp_path: Path, paragraphs: list[str]) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs))
    return path


@pytest.fixture
def stream_of(tmp_path: Path) -> Callable[..., TokenStream]:
    """A stream of given tokens, in shards of a given size."""
    made = 0

    def make(tokens: Sequence[int], shard_tokens: int = 1000, vocab_size: int = 1 << 16) -> TokenStream:
        nonlocal made
        made += 1
        folder = tmp_path / f"stream-{made}"
        folder.mkdir()
        writer = ShardWriter(folder, "train", vocab_size, shard_tokens)
        writer.write(tokens)
        return TokenStream(folder, split_facts(writer.shards, vocab_size, {"documents": 1, "bytes": len(tokens)}))

    return make
