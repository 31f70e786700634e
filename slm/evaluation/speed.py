"""Prefill and decoding speed of one sequence, and memory: what a phone's user waits for, measured one model at a time.

Notable: repetitions take turns between a model with block sharing and the same tensors without, so that both meet the
same machine; loading is not in it; what is reported is the median, with the slowest and fastest beside it.
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
from torch import Tensor

from slm.checkpoints.weights import dtype_name
from slm.model import Decoder, KVCache
from slm.model.counts import kv_cache_bytes, state_bytes
from slm.model.decoding import NextLogits, compiled_logits, eager_logits
from slm.runtime.machine import can_compile, device_name, peak_memory_bytes, reset_peak_memory, resident_bytes

PATIENCE_SECONDS = 120.0
"""From here on no further repetition is begun: without a cache, one can take minutes."""

Entry = dict[str, Any]


@torch.inference_mode()
def measure_speed(
    decoder: Decoder, settings: Mapping[str, Any], *, progress: Callable[[float], None] = lambda amount: None
) -> Entry:
    """The `speed` entry of results.json; `settings` is `speed` of conf/evaluate.yaml.

    Tokens/s are those of a batch of one sequence; memory is the weights and the most that was held besides while
    measuring, without what the process held before: Python, torch, the compiler. `progress` is called with shares of
    the whole that are done. Raises `ValueError` if the tokens do not fit into the model's context.
    """
    config, weight = decoder.config, decoder.head_weight
    context = config.max_position_embeddings
    check_room(settings, context)
    variants = {"as_is": _Timed(decoder, settings)}
    if config.layer_sharing != "none":
        variants["without_sharing"] = _Timed(without_sharing(decoder), settings)
    start = time.perf_counter()
    for number in range(settings["repetitions"] + 1):  # the first is the warm-up
        for timed in variants.values():
            timed.repeat(keep=number > 0)
            progress(1 / (settings["repetitions"] + 1) / len(variants))
        if number == 0:
            held = _start_of_memory()
        if number > 0 and time.perf_counter() - start > PATIENCE_SECONDS:
            break
    model_bytes = sum(parameter.nbytes for parameter in decoder.parameters())
    return {
        **variants["as_is"].medians(),
        "without_sharing": variants["without_sharing"].medians() if len(variants) > 1 else None,
        "cache": settings["cache"],
        "compiled": variants["as_is"].compiled,
        "dtype": dtype_name(weight.dtype),
        "device": weight.device.type,
        "device_name": device_name(weight.device.type),
        "threads": torch.get_num_threads(),
        "prompt_tokens": settings["prompt_tokens"],
        "new_tokens": settings["new_tokens"],
        "repetitions": len(variants["as_is"].seconds),
        "peak_memory_bytes": model_bytes + peak_memory_bytes() - held,
        "model_bytes": model_bytes,
        "kv_bytes_per_token": kv_cache_bytes(config, 1, bytes_per_value=weight.element_size()),
        "kv_cache_bytes": kv_cache_bytes(config, context, bytes_per_value=weight.element_size()),
        "state_bytes": state_bytes(config, bytes_per_value=max(4, weight.element_size())),
    }


def check_compiler(wanted: bool | str, device: str) -> None:
    """Raise `ValueError` if compilation is asked for where there is no compiler."""
    if wanted is True and not can_compile(device):
        raise ValueError("speed.compile=true needs a C++ compiler (g++ or clang++), and there is none on PATH")


def check_room(settings: Mapping[str, Any], room: int) -> None:
    """Raise `ValueError` if the tokens do not fit into `room` positions."""
    if settings["prompt_tokens"] + settings["new_tokens"] > room:
        raise ValueError(
            f"speed.prompt_tokens={settings['prompt_tokens']} and speed.new_tokens={settings['new_tokens']} do not fit "
            f"into the {room} positions of the checkpoint: give fewer"
        )


def without_sharing(decoder: Decoder) -> Decoder:
    """The same tensors, every block used once."""
    plain = copy.copy(decoder)
    plain.config = dataclasses.replace(decoder.config, layer_sharing="none", num_repeats=1)
    return plain


class _Timed:
    """A decoder and the seconds that its repetitions took."""

    def __init__(self, decoder: Decoder, settings: Mapping[str, Any]) -> None:
        self.decoder, self.settings = decoder, settings
        wanted, device = settings["compile"], decoder.head_weight.device.type
        self.compiled = settings["cache"] and (can_compile(device) if wanted == "auto" else wanted)
        self.next_logits: NextLogits = (compiled_logits if self.compiled else eager_logits)(decoder)
        rng = torch.Generator().manual_seed(0)
        prompt = torch.randint(decoder.config.vocab_size, (1, settings["prompt_tokens"]), generator=rng)
        self.prompt_1T = prompt.to(decoder.head_weight.device)
        self.seconds: list[tuple[float, float]] = []

    def repeat(self, *, keep: bool) -> None:
        """Prefill and decode once."""
        device = self.decoder.head_weight.device
        length = self.settings["prompt_tokens"] + self.settings["new_tokens"]
        cache = KVCache(
            self.decoder.config, batch_size=1, max_length=length, device=device, dtype=self.decoder.head_weight.dtype
        )
        begin = _now(device)
        token = self.next_logits(self.prompt_1T, cache).argmax()
        filled = _now(device)
        step = self._with_cache if self.settings["cache"] else self._without_cache
        step(token, cache)
        if keep:
            self.seconds.append((filled - begin, _now(device) - filled))

    def _with_cache(self, token: Tensor, cache: KVCache) -> None:
        for _ in range(self.settings["new_tokens"]):
            token = self.next_logits(token.view(1, 1), cache).argmax()

    def _without_cache(self, token: Tensor, cache: KVCache) -> None:
        tokens_1T = self.prompt_1T
        for _ in range(self.settings["new_tokens"]):
            tokens_1T = torch.cat([tokens_1T, token.view(1, 1)], dim=1)
            token = (self.decoder.hidden(tokens_1T)[:, -1] @ self.decoder.head_weight.T).argmax()

    def medians(self) -> Entry:
        """Median tokens/s of both parts, and the slowest and fastest repetition."""
        found: Entry = {}
        for part, name, count in ((0, "prefill", "prompt_tokens"), (1, "decode", "new_tokens")):
            rates = sorted(self.settings[count] / seconds[part] for seconds in self.seconds)
            found[f"{name}_tokens_per_second"] = statistics.median(rates)
            found[f"{name}_spread"] = [rates[0], rates[-1]]
        return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _start_of_memory() -> int:
    """Bytes held now, weights included, when all that is free has been returned to the system; the peak starts here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory()
    return resident_bytes()
