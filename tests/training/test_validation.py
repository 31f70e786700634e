import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slm.data import prepare
from slm.data.loader import Batch
from slm.training.validation import Score, score, share_batches
from tests.data.foreign import FOREIGN, save

CONF = Path(__file__).parents[2] / "conf"


@given(batches=st.integers(1, 20), world_size=st.integers(1, 5))
def test_ranks_score_every_batch_once_in_the_same_number_of_passes(batches: int, world_size: int) -> None:
    numbered = [Batch(torch.full((2, 3), n), torch.full((2, 3), n)) for n in range(batches)]
    shares = [list(share_batches(iter(numbered), rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    scored = sorted(int(targets[0, 0]) for share in shares for _, targets, *_ in share if targets[0, 0] != -100)
    assert scored == list(range(batches))


def test_bits_per_byte_is_the_length_of_an_ideal_code_over_the_length_of_the_text() -> None:
    """8 tokens at a chance of 1/16 each take 32 bits; over 16 bytes that is 2."""
    figures = Score(loss=math.log(16), tokens=8, bytes=16).metrics()
    assert figures["bits_per_byte"] == pytest.approx(2)
    assert figures["perplexity"] == pytest.approx(16)


def plain(file: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(CONF / file))


class Guesser:
    """Stands in for a module that gives every token a chance of a half, so that a token takes a bit."""

    plan = SimpleNamespace(sequence_length=32, micro_batch_size=4)
    device = torch.device("cpu")
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        strategy=SimpleNamespace(reduce=lambda sums, reduce_op: sums),
        global_rank=0,
        world_size=1,
    )

    def __init__(self) -> None:
        self.decoder = self

    def documents(self, inputs: torch.Tensor, given: None) -> None:
        """None is masked."""

    def token_losses(self, inputs: torch.Tensor, targets: torch.Tensor, documents: None) -> torch.Tensor:
        return (targets != -100) * math.log(2)


@pytest.mark.parametrize("name", FOREIGN)
def test_bits_per_byte_are_over_the_bytes_of_the_text_and_not_over_those_of_its_tokens(
    name: str, text_file: Path, tmp_path: Path
) -> None:
    held_out = "\n\n".join(text_file.read_text().split("\n\n")[:40]) + " river 語 ." * 300
    (tmp_path / "val.txt").write_text(held_out)
    paths = {"paths": str(text_file), "val_paths": str(tmp_path / "val.txt"), "max_document_bytes": None}
    tokenizer = plain("tokenizer/file.yaml") | {"path": str(save(name, tmp_path / name))}
    corpus = prepare(plain("data/local.yaml") | paths, tokenizer, cache_dir=tmp_path)
    of = score(Guesser(), corpus)
    assert of.bytes == len(held_out.encode())
    assert of.metrics()["bits_per_byte"] == pytest.approx((corpus.val.num_tokens - 1) / len(held_out.encode()))
    part = score(Guesser(), corpus, max_tokens=of.tokens // 4)
    assert part.tokens == pytest.approx(of.tokens / 4, rel=0.1)
    assert part.metrics()["bits_per_byte"] == pytest.approx(of.metrics()["bits_per_byte"], rel=0.1)
