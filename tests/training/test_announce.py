"""What a run announces, against what it is then found to be."""

import re

import pytest
import torch

from slm.model import KVCache
from slm.training.announce import plan_lines
from slm.training.plan import make_plan
from tests.composing import composed
from tests.training.small import hardware


@pytest.mark.parametrize("pattern", ["F", "SSP", "L", "GSLF"])
def test_the_plan_says_what_decoding_will_remember(pattern: str) -> None:
    config = composed(f"model.mixer_pattern={pattern}", "model.sliding_window=[64,256]", "output_dir=x")
    plan = make_plan(config, hardware())
    (line,) = [line for line in plan_lines(config, plan, hardware()) if line.startswith("decoding ")]

    def kept(tokens: int, letters: str) -> int:
        cache = KVCache(plan.model, batch_size=1, max_length=tokens, dtype=torch.bfloat16)
        memories = zip(plan.model.mixers, cache.memories, strict=True)
        return sum(t.nbytes for letter, memory in memories if letter in letters for t in memory.tensors)

    said = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) (?:bytes|for)", line)]
    keys = [kept(1, "FSP"), kept(1024, "FSP")] if set(pattern) & set("FSP") else []
    assert said == keys + ([kept(1, "LG")] if set(pattern) & set("LG") else [])
