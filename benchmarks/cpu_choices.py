"""Measurements behind the constants of slm/model: attention kernels and loss chunks, timed in whole training steps.

    python benchmarks/cpu_choices.py [attention] [loss] [matvec] [products] [freed]   all by default
    python benchmarks/cpu_choices.py smallest    one shape of each, to check that they run

Attention: a step of a preset with blocked matmuls and with torch's SDPA, by sequence length.
Loss: head and cross-entropy, forward and backward, by tokens per chunk, and with full logits. Interleaved; medians.
Matvec: GB/s at which matrix-vector products read their weights, in several ways.
Products: GFLOP/s of products without gradients, by torch's choice of library and by oneDNN.
Freed: processor time of a training step, if freed memory is returned to the system and if it is kept.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from train_throughput import composed, config_and_tokens, ours, preset_config, step_of

from slm.model import loss
from slm.model.mixers import softmax
from slm.runtime.system import keep_freed_memory
from slm.training.hardware import resolve_hardware


def main() -> None:
    wanted = sys.argv[1:] or ["attention", "loss", "matvec", "products", "freed"]
    if wanted == ["smallest"]:
        print(attention("tiny", 32, tokens=32, repetitions=1), chunks(64, 8, 64), matvec(torch.float32, 2), sep="\n")
        print(products(torch.float32, rows=2), freed("tiny:64:1", steps=1), sep="\n")
        return
    for preset, lengths in (("tiny", (128, 256, 512, 1024)), ("mobilellm_125m", (512, 1024, 2048))):
        for length in lengths if "attention" in wanted else ():
            print(attention(preset, length, tokens=4096 if preset == "tiny" else 2048), flush=True)
    for vocab, width, tokens in ((4096, 128, 4096), (32000, 576, 2048)) if "loss" in wanted else ():
        print(chunks(vocab, width, tokens), flush=True)
    for dtype in (torch.float32, torch.bfloat16) if "matvec" in wanted else ():
        print(matvec(dtype), flush=True)
    for dtype in (torch.float32, torch.bfloat16) if "products" in wanted else ():
        print(products(dtype), flush=True)
    if "freed" in wanted:
        print(freed("mobilellm_125m:512:1"), flush=True)


def attention(preset: str, length: int, tokens: int, repetitions: int = 5) -> str:
    config, hardware = preset_config(preset), resolve_hardware(composed("trainer=cpu")["trainer"])
    batch = torch.randint(config.vocab_size, (tokens // length, length + 1))
    steps = []
    for limit in (length, 0):  # blocked matmuls, then SDPA; the choice is made when the first step compiles
        torch._dynamo.reset()
        softmax.CPU_BLOCKED_ATTENTION_MAX_TOKENS = limit
        step = step_of(ours(config, hardware), batch, hardware)
        step()
        steps.append((limit, step))
    times = interleaved([lambda s=s, limit=limit: with_limit(limit, s) for limit, s in steps], repetitions)
    blocked, sdpa = (tokens / t for t in times)
    return f"attention {preset} T={length}: blocked {blocked:,.0f} tok/s, SDPA {sdpa:,.0f} tok/s; {blocked / sdpa:.2f}x"


def with_limit(limit: int, step: Callable[[], float]) -> float:
    softmax.CPU_BLOCKED_ATTENTION_MAX_TOKENS = limit
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


@torch.inference_mode()
def matvec(dtype: torch.dtype, matrices: int = 90, rows: int = 1536, columns: int = 576) -> str:
    """Time products with more matrices than fit into the processor's caches."""
    weights = [torch.randn(rows, columns).to(dtype) for _ in range(matrices)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 1) for weight in weights]
    x = torch.randn(1, columns).to(dtype)
    compiled = torch.compile(lambda weight: (weight * x[0]).sum(1))
    ways: dict[str, Callable[[], object]] = {
        "F.linear": lambda: [F.linear(x, weight) for weight in weights],
        "mv": lambda: [torch.mv(weight, x[0]) for weight in weights],
        "multiply and sum": lambda: [(weight * x[0]).sum(1) for weight in weights],
        "compiled": lambda: [compiled(weight) for weight in weights],
        "oneDNN packed": lambda: [torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "") for w in packed],
    }

    def timed(way: Callable[[], object]) -> float:
        start = time.perf_counter()
        way()
        return time.perf_counter() - start

    times = interleaved([lambda way=way: timed(way) for way in ways.values()], 7)
    size = matrices * weights[0].nbytes
    figures = [f"{name} {size / t / 1e9:.0f} GB/s" for name, t in zip(ways, times, strict=True)]
    return f"matvec {str(dtype)[6:]}: " + ", ".join(figures)


@torch.inference_mode()
def products(dtype: torch.dtype, rows: int = 512) -> str:
    """Time the products of a prompt of `rows` tokens with the widest weight of the 125M shape."""
    x, weight = torch.randn(rows, 576).to(dtype), torch.randn(1536, 576).to(dtype)

    def timed(product: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(20):
            product()
        return (time.perf_counter() - start) / 20

    def onednn() -> object:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    times = interleaved([lambda: timed(lambda: F.linear(x, weight)), lambda: timed(onednn)], 7)
    figures = [2 * weight.numel() * rows / t / 1e9 for t in times]
    return f"products {str(dtype)[6:]}: F.linear {figures[0]:.0f} GFLOP/s, oneDNN {figures[1]:.0f} GFLOP/s"


def freed(shape: str, steps: int = 5) -> str:
    context = multiprocessing.get_context("spawn")
    figures = {}
    for name in ("returned", "kept"):
        with context.Pool(1) as pool:  # a process of its own
            user, system = pool.apply(processor_seconds, (shape, name == "kept", steps))
        figures[name] = f"{name}: {1e3 * user:,.0f} ms, system {1e3 * system:,.0f} ms"
    return f"freed memory {shape}, a step: " + "; ".join(figures.values())


def processor_seconds(shape: str, keeps_memory: bool, steps: int) -> tuple[float, float]:
    if keeps_memory:
        keep_freed_memory()
    hardware = resolve_hardware(composed("trainer=cpu")["trainer"])
    config, tokens = config_and_tokens(shape, hardware)
    step = step_of(ours(config, hardware), tokens, hardware)
    for _ in range(2):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(steps):
        step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime - before.ru_utime) / steps, (after.ru_stime - before.ru_stime) / steps


def interleaved(actions: list[Callable[[], float]], repetitions: int) -> list[float]:
    for action in actions:
        action()
    rounds = [[action() for action in actions] for _ in range(repetitions)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


if __name__ == "__main__":
    main()
