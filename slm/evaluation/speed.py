"""Measure memory, and the speed of prefill and decoding for one sequence, as on a phone.

Notable: repetitions alternate between a model with block sharing and the same tensors without sharing, so that other
load on the machine affects both equally. Loading is not included.
"""

import copy
import ctypes
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch

from slm.checkpoints.weights import dtype_name
from slm.model import Decoder
from slm.model.decoding import NextLogits, compiled_logits, eager_logits
from slm.model.interface import CausalLM
from slm.runtime import machine

MAX_SECONDS = 120.0  # no repetition begins after this time, because a repetition without a cache can take minutes


@machine.explain_compiler_error("speed.compile")
@torch.inference_mode()
def measure_speed(
    model: CausalLM, settings: Mapping[str, Any], *, progress: Callable[[float], None] = lambda amount: None
) -> dict[str, Any]:
    """Return the `speed` entry of results.json; `settings` is `speed` of conf/evaluate.yaml.

    Speeds are tokens/s for a batch of one sequence. Memory is the weights plus the growth of the process's memory
    during the measurement (without Python, torch and the compiler); None if the system does not report memory.
    `progress` is called with the share of the work done since its last call.
    """
    counts = model.counts()
    main_timer = _Timer(model, settings)
    timers = [main_timer]
    shares_blocks = isinstance(model, Decoder) and model.config.layer_sharing != "none"
    if isinstance(model, Decoder) and shares_blocks:
        timers.append(_Timer(without_sharing(model), settings))
    num_rounds = settings["repetitions"] + 1
    start = time.perf_counter()
    for round_index in range(num_rounds):
        is_warm_up = round_index == 0
        for timer in timers:
            timer.repeat(keep=not is_warm_up)
            progress(1 / num_rounds / len(timers))
        if is_warm_up:
            bytes_before = _reset_memory()
        elif time.perf_counter() - start > MAX_SECONDS:
            break
    peak = machine.peak_memory_bytes()
    growth = None if peak is None or bytes_before is None else peak - bytes_before
    return {
        **main_timer.medians(),
        "without_sharing": timers[-1].medians() if shares_blocks else None,
        "cache": settings["cache"],
        "compiled": main_timer.is_compiled,
        "dtype": dtype_name(model.dtype),
        "device": model.device.type,
        "device_name": machine.device_name(model.device.type),
        "threads": torch.get_num_threads(),
        "prompt_tokens": settings["prompt_tokens"],
        "new_tokens": settings["new_tokens"],
        "repetitions": len(main_timer.seconds),
        "peak_memory_bytes": None if growth is None else getattr(model, "held_bytes", counts.model_bytes) + growth,
        **{name: count for name, count in counts._asdict().items() if not name.startswith("params")},
    }


def check_speed(settings: Mapping[str, Any], num_positions: int) -> None:
    """Raise `ValueError` if the tokens do not fit into the positions."""
    if settings["prompt_tokens"] + settings["new_tokens"] > num_positions:
        raise ValueError(
            f"speed.prompt_tokens={settings['prompt_tokens']} and speed.new_tokens={settings['new_tokens']} do not fit "
            f"into the {num_positions} positions of the checkpoint: give fewer"
        )


def without_sharing(decoder: Decoder) -> Decoder:
    """Return a decoder with the same tensors that uses every block once."""
    new_decoder = copy.copy(decoder)
    new_decoder.config = dataclasses.replace(decoder.config, layer_sharing="none", num_repeats=1)
    return new_decoder


class _Timer:
    """Times a model. `seconds` holds the times (prefill, decoding) of each repetition that was kept."""

    def __init__(self, model: CausalLM, settings: Mapping[str, Any]) -> None:
        self.model, self.settings = model, settings
        may_compile = settings["compile"]  # true, false or "auto"
        if may_compile == "auto":
            may_compile = machine.can_compile(model.device.type)
        self.is_compiled = False
        self.next_logits: NextLogits = eager_logits(model)
        if settings["cache"] and may_compile and isinstance(model, Decoder):  # other models have no compiled step
            self.is_compiled, self.next_logits = True, compiled_logits(model)
        rng = torch.Generator().manual_seed(0)
        prompt = torch.randint(model.config.vocab_size, (1, settings["prompt_tokens"]), generator=rng)
        self.prompt_1T = prompt.to(model.device)  # one row, T tokens
        self.seconds: list[tuple[float, float]] = []

    def repeat(self, *, keep: bool) -> None:
        """Prefill and decode once; store the seconds if `keep`."""
        device = self.model.device
        cache = self.model.make_cache(1, self.settings["prompt_tokens"] + self.settings["new_tokens"])
        if self.is_compiled:  # let a GPU capture the decoding step of this cache before the clock starts
            self.next_logits(self.prompt_1T[:, :1], cache)
            cache.select(self.model.make_cache(1, 1), torch.zeros(1, dtype=torch.long, device=device))  # empties it
        start = _now(device)
        token = self.next_logits(self.prompt_1T, cache).argmax()
        prefill_end = _now(device)
        tokens_1T = self.prompt_1T
        for _ in range(self.settings["new_tokens"]):
            if self.settings["cache"]:
                token = self.next_logits(token.view(1, 1), cache).argmax()
            else:
                tokens_1T = torch.cat([tokens_1T, token.view(1, 1)], dim=1)
                token = self.model.head(self.model.hidden(tokens_1T)[:, -1]).argmax()
        if keep:
            self.seconds.append((prefill_end - start, _now(device) - prefill_end))

    def medians(self) -> dict[str, Any]:
        """Return the median tokens/s of prefill and decoding, with the slowest and fastest repetition as spread."""
        medians: dict[str, Any] = {}
        prefill_rates = [self.settings["prompt_tokens"] / prefill for prefill, _ in self.seconds]
        decode_rates = [self.settings["new_tokens"] / decoding for _, decoding in self.seconds]
        for name, rates in (("prefill", sorted(prefill_rates)), ("decode", sorted(decode_rates))):
            medians[f"{name}_tokens_per_second"] = statistics.median(rates)
            medians[f"{name}_spread"] = [rates[0], rates[-1]]
        return medians


def _now(device: torch.device) -> float:
    machine.synchronize(device.type)
    return time.perf_counter()


def _reset_memory() -> int | None:
    """Give free memory back and reset the peak; return the bytes held now, weights included, or None if unknown."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    machine.reset_peak_memory()
    return machine.resident_bytes()
