"""Where the constants of slm/model come from: attention kernels and loss chunks, timed in whole training steps.

    python benchmarks/cpu_choices.py

Attention: a step of a preset with blocked matmuls beside the same step with torch's SDPA, by sequence length.
Loss: head and cross-entropy, forward and backward, by tokens a chunk, beside plain logits. Medians, interleaved.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from train_throughput import composed, ours, preset_config, step_of

from slm.model import layers, loss
from slm.training.hardware import resolve_hardware


def main() -> None:
    for preset, lengths in (("tiny", (128, 256, 512, 1024)), ("mobilellm_125m", (512, 1024, 2048))):
        for length in lengths:
            print(attention(preset, length, tokens=4096 if preset == "tiny" else 2048), flush=True)
    for vocab, width, tokens in ((4096, 128, 4096), (32000, 576, 2048)):
        print(chunks(vocab, width, tokens), flush=True)


def attention(preset: str, length: int, tokens: int, repetitions: int = 5) -> str:
    config, hardware = preset_config(preset), resolve_hardware(composed("trainer=cpu")["trainer"])
    batch = torch.randint(config.vocab_size, (tokens // length, length + 1))
    steps = []
    for limit in (length, 0):  # blocked matmuls, then SDPA; each is chosen when its first step compiles
        torch._dynamo.reset()
        layers.CPU_MATMUL_ATTENTION_MAX_TOKENS = limit
        step = step_of(ours(config, hardware), batch, hardware)
        step()
        steps.append((limit, step))
    times = interleaved([lambda s=s, limit=limit: with_limit(limit, s) for limit, s in steps], repetitions)
    blocked, sdpa = (tokens / t for t in times)
    return f"attention {preset} T={length}: blocked {blocked:,.0f} tok/s, SDPA {sdpa:,.0f} tok/s; {blocked / sdpa:.2f}x"


def with_limit(limit: int, step: Callable[[], float]) -> float:
    layers.CPU_MATMUL_ATTENTION_MAX_TOKENS = limit
    return step()


def chunks(vocab: int, width: int, tokens: int) -> str:
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = (torch.randn(vocab, width) * 0.02).requires_grad_()
    targets = torch.randint(vocab, (tokens,))

    def timed(size: int | None) -> float:
        if size is not None:
            loss.CHUNK_TOKENS["cpu"] = size
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            plain = size is None
            value = (
                F.cross_entropy((hidden @ weight.T).float(), targets)
                if plain
                else loss.cross_entropy(hidden, weight, targets)
            )
        value.backward()
        return time.perf_counter() - start

    sizes = [64, 128, 256, 512, 1024, None]
    times = interleaved([lambda size=size: timed(size) for size in sizes], 5)
    figures = [f"{'plain' if size is None else size}: {1e3 * t:.0f} ms" for size, t in zip(sizes, times, strict=True)]
    return f"loss V={vocab} D={width} N={tokens}: " + ", ".join(figures)


def interleaved(actions: list[Callable[[], float]], repetitions: int) -> list[float]:
    for action in actions:
        action()
    rounds = [[action() for action in actions] for _ in range(repetitions)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


if __name__ == "__main__":
    main()
