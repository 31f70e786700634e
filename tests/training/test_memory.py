"""The memory of a pass is what the allocator hands out, and passes are chosen so that they fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from slm.model import Decoder
from slm.model.quantised import round_in_training
from slm.training import memory, speed
from slm.training import plan as plan_module
from slm.training.memory import MIN_TOKENS, Passes, activation_bytes, choose_micro_batch_size, choose_passes
from slm.training.plan import make_plan, plan_lines
from tests.training.small import CPU, config, random_decoder

SHAPE = {"vocab_size": 512, "hidden_size": 64, "num_heads": 4, "intermediate_size": 160, "num_layers": 4}
OPTIONS = {"length": 128, "dtype": torch.float32, "autocast_dtype": None, "document_masking": False}


def allocated_peak(decoder: Decoder, tokens: torch.Tensor) -> int:
    """The most bytes that torch's allocator has handed out in a pass and not got back, by its own log."""
    decoder.loss(tokens, tokens).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        decoder.loss(tokens, tokens).backward()
    events = [event for event in log.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("pattern", "quantize"), [("F", None), ("SL", None), ("F", "int8_dynamic")])
def test_the_estimate_is_the_memory_that_a_pass_then_takes(
    pattern: str, quantize: str | None, checkpointing: bool
) -> None:
    decoder = random_decoder(**SHAPE, mixer_pattern=pattern, sliding_window=32)
    decoder.activation_checkpointing = checkpointing
    if quantize:
        round_in_training(decoder, quantize)
    estimate = activation_bytes(decoder.config, checkpointing, 8, device="cpu", quantize=quantize, **OPTIONS)
    real = allocated_peak(decoder, torch.zeros(8, 128, dtype=torch.long))
    assert 0.95 * real < estimate < 1.15 * real


def test_an_estimate_draws_no_random_numbers() -> None:
    shape, before = random_decoder().config, torch.get_rng_state()
    assert activation_bytes(shape, False, 1, device="cpu", **OPTIONS) > 0
    assert torch.equal(torch.get_rng_state(), before)


CHANGES: list[dict[str, Any]] = [{"mixer_pattern": letter, "sliding_window": 8} for letter in "FSPLG"]
CHANGES += [{"layer_sharing": "immediate", "num_repeats": 2}, {"position": "alibi"}]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("documents", [False, True])
def test_checkpointing_changes_no_bit_of_loss_and_gradients(changes: dict[str, Any], documents: bool) -> None:
    tokens = torch.arange(48).view(2, 24) % 20
    numbers = (torch.arange(48).view(2, 24) % 24 >= 10).long() if documents else None
    ends = []
    for checkpointing in (False, True):
        decoder = random_decoder(num_layers=2, **changes)
        decoder.activation_checkpointing = checkpointing
        loss = decoder.loss(tokens, tokens, numbers)
        loss.backward()
        ends.append([loss, *(p.grad for p in decoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_compiled_blocks_are_computed_again_to_the_same_gradients() -> None:
    tokens = torch.arange(48).view(2, 24) % 20
    gradients = []
    for checkpointing in (False, True):
        torch._dynamo.reset()
        decoder = random_decoder()
        for block in decoder.layers:
            block.compile(dynamic=False, backend="aot_eager")
        decoder.activation_checkpointing = checkpointing
        decoder.loss(tokens, tokens).backward()
        gradients.append([p.grad for p in decoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def linear(fixed: int, each: int) -> Callable[[bool, int], int]:
    """Memory that grows by `each` byte a sequence, or by a tenth with checkpointing."""
    return lambda checkpointing, size: fixed + (each // 10 if checkpointing else each) * size


@given(st.integers(1, 512), st.sampled_from([256, 2048]), st.integers(0, 10**4), st.integers(10, 10**3), st.booleans())
def test_the_largest_passes_that_fit_are_taken(
    sequences: int, length: int, fixed: int, each: int, checkpointing: bool
) -> None:
    estimate, room = linear(fixed, each), 10**4 + 8000
    passes = choose_passes(
        sequences,
        1,
        length,
        max_tokens=None,
        default_tokens=32768,
        activation_checkpointing=checkpointing,
        room=room,
        estimate=estimate,
    )
    assert 1 <= passes.size <= min(sequences, 32768 // length)
    assert estimate(checkpointing, passes.size) <= room
    is_all = passes.size == choose_micro_batch_size(sequences, 1, 32768 // length)
    assert is_all or estimate(checkpointing, 2 * passes.size + 1) > room  # sizes below half are for no fewer passes
    assert passes.bytes == estimate(checkpointing, passes.size)


@pytest.mark.parametrize(
    ("max_tokens", "room", "size", "is_on"),
    [
        (None, 10**6, 16, False),  # all that is of use
        (None, 900, 8, False),
        (None, 250, 2, False),  # MIN_TOKENS
        (None, 150, 8, True),
        (None, 5, 1, True),  # nothing fits by the estimate, which is an upper bound
        (16384, 900, 8, False),
        (32768, 900, 16, True),
    ],
)
def test_auto_checkpointing_is_for_passes_that_do_not_fit(
    max_tokens: int | None, room: int, size: int, is_on: bool
) -> None:
    passes = choose_passes(
        64,
        1,
        MIN_TOKENS // 2,
        max_tokens=max_tokens,
        default_tokens=32768,
        activation_checkpointing="auto",
        room=room,
        estimate=linear(10, 100),
    )
    assert (passes.size, passes.activation_checkpointing) == (size, is_on)


def test_a_plan_fits_the_memory_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MIN_TOKENS", 256)
    settings = config(batch_tokens=2048, sequence_length=128, tokens=65536)
    on_cpu = make_plan(settings, CPU)
    assert (on_cpu.micro_batch_size, on_cpu.passes.activation_checkpointing) == (16, False)
    least = {size: activation_bytes(on_cpu.model, size == 1, size, device="cpu", **OPTIONS) for size in (1, 4)}
    for size, activations in least.items():
        available = 1.01 * (on_cpu.state_bytes + activations) / memory.USABLE_SHARE
        monkeypatch.setattr(plan_module, "available_bytes", lambda *_, available=available, **__: available)
        plan = make_plan(settings, CPU)
        assert plan.passes == Passes(size=size, activation_checkpointing=size == 1, bytes=activations)
        assert plan.micro_batch_size * plan.accumulation == 16
        assert any(f"at most about {activations / 1e9:.2f} GB for activations" in line for line in plan_lines(plan))


def test_passes_that_do_not_fit_after_all_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, bool]] = []
    resets: list[int] = []
    monkeypatch.setattr(speed, "reset_peak_memory", lambda: resets.append(len(tried)))

    def measure(decoder: Decoder, plan: Any, teacher: Any, strategy: Any) -> tuple[float, int]:
        tried.append((plan.micro_batch_size, decoder.activation_checkpointing))
        if len(tried) < 4:
            raise torch.OutOfMemoryError
        return 1.0, 1

    monkeypatch.setattr(speed, "measure_speed", measure)
    plan = make_plan(config(batch_tokens=32768, sequence_length=1024, tokens=65536), CPU)
    found, _ = speed._measure_fitting(random_decoder(), plan)
    assert tried == [(8, False), (4, False), (4, True), (2, True)]  # 4 sequences are MIN_TOKENS
    assert resets == [1, 2, 3]  # or the memory of the run would be that of passes that did not fit
    assert (found.micro_batch_size, found.accumulation, found.batch_size) == (2, 16, 32)
    given = replace(plan, hardware=replace(CPU, micro_batch_tokens=8192, activation_checkpointing=False))
    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):  # what was asked for is not changed
        speed._measure_fitting(random_decoder(), given)
