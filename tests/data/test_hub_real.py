"""The real hub: streams a little of each data set and fetches a released tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm.data import prepare

pytestmark = pytest.mark.hub


@pytest.mark.parametrize("name", ["wikitext2", "wikitext103", "tinystories", "fineweb_edu"])
def test_a_data_set_of_the_hub_becomes_a_corpus(
    name: str, config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    corpus = prepare(config("data", name, max_bytes=300_000), config("tokenizer", "bytes"), cache_dir=tmp_path)
    assert 0 < corpus.train.num_bytes <= 400_000
    assert corpus.val.num_bytes > 0


def test_a_released_tokenizer_is_fetched(config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time.\n\n" * 2000)
    data = config("data", "local", paths=str(tmp_path / "text.txt"), max_document_bytes=1000)
    corpus = prepare(data, config("tokenizer", "file", path="HuggingFaceTB/SmolLM2-135M"), cache_dir=tmp_path)
    assert corpus.tokenizer.vocab_size == 49152
