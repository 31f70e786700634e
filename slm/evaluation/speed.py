"""Prefill and decoding speed of one sequence, and memory: what a phone's user waits for, measured one model at a time.

Notable: repetitions alternate between a model with block sharing and the same tensors without, so that other load on
the machine affects both equally. Loading is not included. Results are medians with the slowest and fastest repetition.
"""

from __future__ import annotations

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
from slm.model import Decoder, KVCache
from slm.model.counts import kv_cache_bytes, state_bytes
from slm.model.decoding import NextLogits, compiled_logits, eager_logits
from slm.runtime.machine import (
    can_compile,
    device_name,
    peak_memory_bytes,
    reset_peak_memory,
    resident_bytes,
    synchronize,
    why_not_compiled,
)

MAX_SECONDS = 120.0
"""No repetition begins later than this: without a cache, a repetition can take minutes."""

Entry = dict[str, Any]


@torch.inference_mode()
def measure_speed(
    decoder: Decoder, settings: Mapping[str, Any], *, progress: Callable[[float], None] = lambda amount: None
) -> Entry:
    """The `speed` entry of results.json; `settings` is `speed` of conf/evaluate.yaml.

    Tokens/s are those of a batch of one sequence. Memory is the weights and the most that was held besides while
    measuring, without what the process held before (Python, torch, the compiler), or None if the system does not tell.
    `progress` is called with shares of the work done.
    """
    config, weight = decoder.config, decoder.head_weight
    timed = _Timed(decoder, settings)
    unshared = None if config.layer_sharing == "none" else _Timed(without_sharing(decoder), settings)
    variants = [timed, unshared] if unshared else [timed]
    start = time.perf_counter()
    for number in range(settings["repetitions"] + 1):  # the first is the warm-up
        for variant in variants:
            variant.repeat(keep=number > 0)
            progress(1 / (settings["repetitions"] + 1) / len(variants))
        if number == 0:
            bytes_before = _reset_memory()
        elif time.perf_counter() - start > MAX_SECONDS:
            break
    peak = peak_memory_bytes()
    held = None if peak is None or bytes_before is None else peak - bytes_before
    model_bytes = sum(parameter.nbytes for parameter in decoder.parameters())
    return {
        **timed.medians(),
        "without_sharing": unshared.medians() if unshared else None,
        "cache": settings["cache"],
        "compiled": timed.compiled,
        "dtype": dtype_name(weight.dtype),
        "device": weight.device.type,
        "device_name": device_name(weight.device.type),
        "threads": torch.get_num_threads(),
        "prompt_tokens": settings["prompt_tokens"],
        "new_tokens": settings["new_tokens"],
        "repetitions": len(timed.seconds),
        "peak_memory_bytes": None if held is None else model_bytes + held,
        "model_bytes": model_bytes,
        "kv_bytes_per_token": kv_cache_bytes(config, 1, bytes_per_value=weight.element_size()),
        "kv_cache_bytes": kv_cache_bytes(config, config.max_position_embeddings, bytes_per_value=weight.element_size()),
        "state_bytes": state_bytes(config, bytes_per_value=max(4, weight.element_size())),
    }


def check_speed(settings: Mapping[str, Any], room: int, device: str) -> None:
    """Raise `ValueError` if the tokens do not fit into `room` positions, or if a compiler is required and missing."""
    if settings["prompt_tokens"] + settings["new_tokens"] > room:
        raise ValueError(
            f"speed.prompt_tokens={settings['prompt_tokens']} and speed.new_tokens={settings['new_tokens']} do not fit "
            f"into the {room} positions of the checkpoint: give fewer"
        )
    if settings["compile"] is True and (missing := why_not_compiled(device)):
        raise ValueError(f"speed.compile=true, but {missing}; with speed.compile=auto the step is not compiled")


def without_sharing(decoder: Decoder) -> Decoder:
    """The same tensors, every block used once."""
    plain = copy.copy(decoder)
    plain.config = dataclasses.replace(decoder.config, layer_sharing="none", num_repeats=1)
    return plain


class _Timed:
    """A decoder and the seconds that its repetitions took."""

    def __init__(self, decoder: Decoder, settings: Mapping[str, Any]) -> None:
        self.decoder, self.settings = decoder, settings
        compiles = settings["compile"]
        if compiles == "auto":
            compiles = can_compile(decoder.head_weight.device.type)
        self.compiled = settings["cache"] and compiles
        self.next_logits: NextLogits = (compiled_logits if self.compiled else eager_logits)(decoder)
        rng = torch.Generator().manual_seed(0)
        prompt = torch.randint(decoder.config.vocab_size, (1, settings["prompt_tokens"]), generator=rng)
        self.prompt_1T = prompt.to(decoder.head_weight.device)
        self.seconds: list[tuple[float, float]] = []

    def repeat(self, *, keep: bool) -> None:
        """Prefill and decode once."""
        device = self.decoder.head_weight.device
        cache = self._cache(self.settings["prompt_tokens"] + self.settings["new_tokens"])
        if self.compiled:  # a GPU captures the step of this cache, before the clock starts
            self.next_logits(self.prompt_1T[:, :1], cache)
            cache.select(self._cache(1), torch.zeros(1, dtype=torch.long, device=device))
        begin = _now(device)
        token = self.next_logits(self.prompt_1T, cache).argmax()
        filled = _now(device)
        tokens_1T = self.prompt_1T
        for _ in range(self.settings["new_tokens"]):
            if self.settings["cache"]:
                token = self.next_logits(token.view(1, 1), cache).argmax()
            else:
                tokens_1T = torch.cat([tokens_1T, token.view(1, 1)], dim=1)
                token = (self.decoder.hidden(tokens_1T)[:, -1] @ self.decoder.head_weight.T).argmax()
        if keep:
            self.seconds.append((filled - begin, _now(device) - filled))

    def _cache(self, length: int) -> KVCache:
        weight = self.decoder.head_weight
        return KVCache(self.decoder.config, batch_size=1, max_length=length, device=weight.device, dtype=weight.dtype)

    def medians(self) -> Entry:
        """Median tokens/s of both parts, and the slowest and fastest repetition."""
        medians: Entry = {}
        for part, name, count in ((0, "prefill", "prompt_tokens"), (1, "decode", "new_tokens")):
            rates = sorted(self.settings[count] / seconds[part] for seconds in self.seconds)
            medians[f"{name}_tokens_per_second"] = statistics.median(rates)
            medians[f"{name}_spread"] = [rates[0], rates[-1]]
        return medians


def _now(device: torch.device) -> float:
    synchronize(device.type)
    return time.perf_counter()


def _reset_memory() -> int | None:
    """Return free memory to the system and reset the peak; returns the bytes held now, weights included, if known."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory()
    return resident_bytes()
