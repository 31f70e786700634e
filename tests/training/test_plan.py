"""The numbers of a plan, and what decoding is said to need, against what the model then needs."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.model import KVCache
from slm.model.counts import num_params
from slm.training.plan import make_plan, plan_lines
from tests.composing import composed
from tests.training.small import CPU, config


@given(st.integers(1, 600), st.integers(1, 24), st.integers(1, 64), st.integers(1, 5000))
def test_the_passes_of_devices_add_up_to_the_batch_or_a_little_more(
    sequences: int, devices: int, length: int, micro_tokens: int
) -> None:
    tokens = sequences * length
    settings = config(batch_tokens=tokens, sequence_length=length, tokens=tokens)
    hardware = replace(CPU, devices=devices, micro_batch_tokens=micro_tokens)
    if -sequences % devices >= 0.05 * sequences:
        with pytest.raises(ValueError, match=r"devices need \d+ additional empty sequences|is not a multiple"):
            make_plan(settings, hardware)
        return
    plan = make_plan(settings, hardware)
    assert plan.batch_tokens == tokens
    share, fitting = -(-sequences // devices), max(1, micro_tokens // length)
    assert plan.micro_batch_size * plan.accumulation * devices == sequences + plan.padding
    assert min(share, fitting) / 2 <= plan.micro_batch_size <= fitting
    assert plan.padding < devices * (plan.accumulation + 1)
    if sequences % devices == 0 and any(share % size == 0 for size in range(-(-min(share, fitting) // 2), fitting + 1)):
        assert plan.padding == 0


@pytest.mark.parametrize(
    ("devices", "passes", "size", "padding"),
    [(1, 16, 16, 0), (3, 8, 11, 8), (5, 4, 13, 4), (6, 4, 11, 8), (7, 3, 13, 17), (8, 2, 16, 0), (24, 1, 11, 8)],
)
def test_devices_that_do_not_divide_a_batch_take_few_large_passes(
    devices: int, passes: int, size: int, padding: int
) -> None:
    """Of 256 sequences, of which 16 fit. Divisors of the shares would be passes of one sequence or two."""
    settings = config(batch_tokens=256 * 32, sequence_length=32, tokens=256 * 32)
    plan = make_plan(settings, replace(CPU, devices=devices, micro_batch_tokens=16 * 32))
    assert (plan.accumulation, plan.micro_batch_size, plan.padding) == (passes, size, padding)
    (line,) = [line for line in plan_lines(plan) if line.startswith("tokens ")]
    assert (f"{padding} empty sequences" in line) == bool(padding)


def test_the_plan_says_which_blocks_a_cpu_does_not_compile() -> None:
    settings = config()
    for pattern, words in (("LF", "compiled except blocks with mixer L,"), ("GF", "compiled,")):
        settings["model"] = settings["model"] | {"mixer_pattern": pattern}
        (line,) = [x for x in plan_lines(make_plan(settings, replace(CPU, compile=True))) if x.startswith("hardware ")]
        assert f" {words}" in line


def test_the_three_budgets_mean_the_same_thing() -> None:
    params = num_params(make_plan(config(), CPU).model)
    by_tokens = make_plan(config(tokens=20 * params), CPU)
    assert make_plan(config(tokens_per_param=20), CPU).steps == by_tokens.steps
    assert make_plan(config(flops=6 * params * 20 * params), CPU).steps == by_tokens.steps
    assert by_tokens.train_tokens == 20 * params // 512 * 512


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ({"tokens": 511}, ["train.tokens=511", "511 tokens", "train.batch_tokens=512"]),
        ({"tokens_per_param": 1e-3}, ["train.tokens_per_param=0.001", "fewer than one step"]),
        ({"tokens_per_param": 1, "flops": 1e9}, ["tokens_per_param", "flops", "set one of them to null"]),
        ({"batch_tokens": 500}, ["train.batch_tokens=500", "480 or 512"]),
        ({"sequence_length": 4096}, ["train.sequence_length=4096", "max_position_embeddings=2048"]),
    ],
)
def test_arithmetic_that_cannot_work_is_refused(train: dict, named: list[str]) -> None:
    with pytest.raises(ValueError, match="train") as error:
        make_plan(config(**train), CPU)
    assert all(text in str(error.value) for text in named), str(error.value)


def test_a_step_to_keep_that_never_comes_is_refused() -> None:
    make_plan(config() | {"checkpoint": {"keep_steps": [19]}}, CPU)
    with pytest.raises(ValueError, match=r"checkpoint\.keep_steps=\[5, 20\] has 20, but the run ends at step 19"):
        make_plan(config() | {"checkpoint": {"keep_steps": [5, 20]}}, CPU)


@pytest.mark.parametrize("pattern", ["F", "SSP", "L", "GSLF"])
def test_the_plan_states_the_memory_that_a_cache_then_takes(pattern: str) -> None:
    settings = composed(f"model.mixer_pattern={pattern}", "model.sliding_window=[64,256]", "output_dir=x")
    plan = make_plan(settings, CPU)
    (line,) = [line for line in plan_lines(plan) if line.startswith("decoding ")]

    def cache_bytes(tokens: int, letters: str) -> int:
        cache = KVCache(plan.model, batch_size=1, max_length=tokens, dtype=torch.bfloat16)
        memories = zip(plan.model.mixer_letters, cache.memories, strict=True)
        return sum(t.nbytes for letter, memory in memories if letter in letters for t in memory.tensors)

    stated = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+)(?: bytes| after [\d,]+ \()", line)]
    keys = [cache_bytes(1, "FSP"), cache_bytes(1024, "FSP")] if set(pattern) & set("FSP") else []
    assert stated == keys + ([cache_bytes(1, "LG")] if set(pattern) & set("LG") else [])
