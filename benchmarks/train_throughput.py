"""Training speed of slm beside transformers' and litgpt's Llama: same shape, batch, precision, optimizer and run.

    python benchmarks/train_throughput.py                     tiny (256 tokens per sequence) and mobilellm_125m (512)
    python benchmarks/train_throughput.py mobilellm_125m:2048:1 --repetitions 7 --peers transformers
    python benchmarks/train_throughput.py mobilellm_125m:512:1 --sharing      what it costs to use each block twice
    python benchmarks/train_throughput.py mobilellm_125m:2048:8 --memory      peak memory of two steps
    python benchmarks/train_throughput.py tiny:256:16 --profile               where the time of slm's step goes
    pip install --no-deps litgpt                              then litgpt is measured too

A shape is PRESET:SEQUENCE_LENGTH:SEQUENCES. One repetition is a whole optimizer step (forward, backward, clipping,
fused AdamW) of each in turn, so that all run under the same load; figures are medians over repetitions. Each has a
process of its own. slm runs as in train.py (compiled blocks if a compiler is found, freed memory kept), each peer as it
comes ("eager", with SDPA) and under `torch.compile`.
Prints per shape: tokens/s, GFLOP/s, MFU (exact FLOPs over the measured matmul peak) and the first and third quartile
of the time of a step, and slm's speed over that of the fastest peer. Needs the [test] extra (transformers).

--sharing takes turns with forward and backward passes of slm alone: the preset, its blocks used twice in place (as in
MobileLLM-LS), and one block. The first and the last give the time t of one block and of head and embedding. Prints
(t_LS - t_head) / (t_preset - t_head), which is 2 if a second use of a block costs as much as the first.

--memory trains slm as in train.py and transformers eager, each in a process of its own, which reads the peak of its
resident memory (VmHWM, so of Linux). Compilation counts; what the process held before the model was made does not. If
transformers is killed, its memory is that of a straight line through a quarter and half of the sequences.

--profile prints torch's profile of one step of slm: the time in each operator and compiled kernel, without its callees.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from slm.composition.budget import model_config
from slm.composition.resolvers import register
from slm.model import Decoder, ModelConfig
from slm.model.counts import flops_per_token, num_params
from slm.runtime.system import keep_freed_memory, peak_rss, reset_peak_rss, rss
from slm.training.hardware import Hardware, resolve_hardware
from slm.training.optim import full_grad_norm, make_adamw
from slm.training.speed import measure_matmul

CONF = Path(__file__).parents[1] / "conf"
PROFILED_ROWS = 15

Maker = Callable[[ModelConfig, Hardware], tuple[nn.Module, Callable[[Tensor], Tensor]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["tiny:256:16", "mobilellm_125m:512:4"])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--peers", nargs="*", default=[name for name in PEERS if find_spec(name)], choices=PEERS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sharing", action="store_true", help="the cost of using blocks twice, in place of speed")
    what.add_argument("--memory", action="store_true", help="peak memory, in place of speed")
    what.add_argument("--profile", action="store_true", help="a profile of slm's step, in place of speed")
    args = parser.parse_args()
    hardware = resolve_hardware(composed()["trainer"])
    keep_freed_memory()
    print(f"{hardware.device_name}, {hardware.precision}, torch {torch.__version__}", end="", flush=True)
    peak = (
        0.0
        if args.sharing or args.memory or args.profile
        else measure_matmul(hardware.accelerator, hardware.matmul_dtype)
    )
    print(f", peak {peak / 1e9:,.0f} GFLOP/s" if peak else "")
    for shape in args.shapes:
        config, tokens = config_and_tokens(shape, hardware)
        print(f"{shape.partition(':')[0]} {tokens.shape[0]}x{tokens.shape[1] - 1}", flush=True)
        if args.memory:
            compare_memory(shape)
        elif args.profile:
            print_profile(config, hardware, tokens)
        elif args.sharing:
            measure_sharing(config, hardware, tokens, args.repetitions)
        else:
            compare(shape, hardware, peak, args.repetitions, args.peers)


def composed(*overrides: str) -> dict[str, Any]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)  # type: ignore[return-value]


def preset_config(preset: str) -> ModelConfig:
    return model_config(composed(f"model={preset}")["model"])


def config_and_tokens(shape: str, hardware: Hardware) -> tuple[ModelConfig, Tensor]:
    """The preset of PRESET:SEQUENCE_LENGTH:SEQUENCES, and random ids of one token more per sequence."""
    preset, length, sequences = shape.split(":")
    config, rng = preset_config(preset), torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (int(sequences), int(length) + 1), generator=rng)
    return config, tokens.to(hardware.accelerator)


def compare(shape: str, hardware: Hardware, peak: float, repetitions: int, peers: list[str]) -> None:
    config, tokens = config_and_tokens(shape, hardware)
    names = ["slm", *(f"{peer} {kind}" for peer in peers for kind in ("eager", "compiled"))]
    with ExitStack() as stack:
        steps = {name: stack.enter_context(step_in_process(name, shape)) for name in names}
        seconds = interleaved(steps, repetitions)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    sequences, length = tokens.shape[0], tokens.shape[1] - 1
    flops = flops_per_token(config, length)
    for name, median in medians.items():
        rate = sequences * length / median
        gflops, mfu = rate * flops / 1e9, rate * flops / peak
        print(f"  {name:22s} {rate:9,.0f} tok/s {gflops:6,.0f} GFLOP/s MFU {mfu:4.0%}  {spread(seconds[name])}")
    if peers:
        fastest = min((name for name in medians if name != "slm"), key=medians.__getitem__)
        print(f"  slm is {medians[fastest] / medians['slm']:.2f}x as fast as {fastest}", flush=True)


@contextmanager
def step_in_process(name: str, shape: str) -> Iterator[Callable[[], float]]:
    """A function that takes a step of `name` in a process of its own, which waits between steps."""
    ours_end, its_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve_steps, args=(its_end, name, shape), daemon=True)
    process.start()
    its_end.close()

    def step() -> float:
        try:
            ours_end.send(None)
            return float(ours_end.recv())
        except (EOFError, BrokenPipeError):
            sys.exit(f"the process of {name} has ended")

    try:
        yield step
    finally:
        ours_end.close()  # which ends the process
        process.join(10)
        process.kill()


def serve_steps(connection: Connection, name: str, shape: str) -> None:
    hardware = resolve_hardware(composed()["trainer"])
    config, tokens = config_and_tokens(shape, hardware)
    if name == "slm":
        keep_freed_memory()
        make: Maker = ours
    else:
        peer, kind = name.split()
        make = PEERS[peer] if kind == "eager" else partial(compiled, PEERS[peer])
    step = step_of(make(config, hardware), tokens, hardware)
    with suppress(EOFError):
        while True:
            connection.recv()
            connection.send(step())


def interleaved(steps: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each step in each repetition, after two steps for compilation, allocation and caches."""
    for step in steps.values():
        step()
        step()
    rounds = [{name: step() for name, step in steps.items()} for _ in range(repetitions)]
    return {name: [times[name] for times in rounds] for name in steps}


def spread(seconds: list[float]) -> str:
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return f"{1e3 * low:,.0f} to {1e3 * high:,.0f} ms"


def measure_sharing(config: ModelConfig, hardware: Hardware, tokens: Tensor, repetitions: int) -> None:
    """Forward and backward only: the optimizer takes as long for shared blocks, so it would flatter them."""
    shapes = {
        f"{config.num_layers} blocks": config,
        f"{config.num_layers} blocks, twice": dataclasses.replace(config, layer_sharing="immediate", num_repeats=2),
        "1 block": dataclasses.replace(config, num_layers=1),
    }
    steps = {name: step_of(ours(one, hardware), tokens, hardware, update=False) for name, one in shapes.items()}
    seconds = interleaved(steps, repetitions)
    for name, times in seconds.items():
        print(f"  {name:18s} {1e3 * statistics.median(times):9,.1f} ms  {spread(times)}")
    plain, shared, single = (statistics.median(times) for times in seconds.values())
    block = (plain - single) / (config.num_layers - 1)
    head = single - block
    print(f"  a block takes {1e3 * block:,.1f} ms, head and embedding {1e3 * head:,.1f} ms")
    print(f"  using blocks twice takes {(shared - head) / (plain - head):.2f}x the time of the blocks", flush=True)


def print_profile(config: ModelConfig, hardware: Hardware, tokens: Tensor) -> None:
    with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
        step = step_of(ours(config, hardware), tokens, hardware)
        step()
        step()
        with torch.profiler.profile() as profile:
            step()
    order = "self_cpu_time_total" if hardware.accelerator == "cpu" else "self_device_time_total"
    rows = sorted(profile.key_averages(), key=lambda row: getattr(row, order), reverse=True)
    total = sum(getattr(row, order) for row in rows)
    for row in rows[:PROFILED_ROWS]:
        microseconds = getattr(row, order)
        print(f"  {microseconds / total:5.1%} {microseconds / 1e3:9.1f} ms {row.count:6d} x  {row.key[:90]}")


def compare_memory(shape: str) -> None:
    needed, was_killed = {}, {}
    for name in MEMORY:
        before, peak, was_killed[name] = run_print_memory(name, shape)
        needed[name] = peak - before
        figures = f"{peak / 1e9:.2f} GB - {before / 1e9:.2f} GB before the model = {needed[name] / 1e9:.2f} GB"
        print(
            f"  {name:13s} {'killed, probably out of memory, at' if was_killed[name] else 'peak'} {figures}", flush=True
        )
    if was_killed["slm"]:
        print("  no ratio, since slm was killed")
        return
    if was_killed["transformers"]:
        needed["transformers"] = max(needed["transformers"], memory_by_line("transformers", shape))
    print(f"  slm needs {needed['slm'] / needed['transformers']:.2f}x the memory of transformers", flush=True)


def memory_by_line(name: str, shape: str) -> int:
    """The bytes of a shape by a line through those of a quarter and of half of its sequences."""
    preset_and_length, _, sequences = shape.rpartition(":")
    counts = [max(1, int(sequences) // 4), max(2, int(sequences) // 2)]
    measured = []
    for count in counts:
        before, peak, was_killed = run_print_memory(name, f"{preset_and_length}:{count}")
        if was_killed:
            sys.exit(f"{name} was killed with {count} sequences too: measure a smaller shape")
        measured.append(peak - before)
    slope = (measured[1] - measured[0]) / (counts[1] - counts[0])
    needed = round(measured[1] + slope * (int(sequences) - counts[1]))
    figures = " and ".join(f"{bytes_ / 1e9:.2f}" for bytes_ in measured)
    print(f"  {name:13s} {figures} GB with {counts[0]} and {counts[1]} sequences, so {needed / 1e9:.2f} GB", flush=True)
    return needed


def run_print_memory(name: str, shape: str) -> tuple[int, int, bool]:
    """Returns resident bytes before the model was made, their peak, and whether the system killed the process."""
    code = "import sys, train_throughput; train_throughput.print_memory(*sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # sys.path has the folder of this script
    command = [sys.executable, "-c", code, name, shape]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        values = [int(line) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)  # tells the peak of a killed process too
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == -signal.SIGKILL and values:
        return values[0], 1024 * usage.ru_maxrss, True
    if process.returncode:
        sys.exit(f"{name} failed with exit code {process.returncode}")
    return values[0], values[1], False


def print_memory(name: str, shape: str) -> None:
    """Print the resident bytes before the model is made and the peak of two steps. Needs a process of its own."""
    with suppress(OSError):
        # If memory runs out, the system kills this process, not the one that reports it.
        Path("/proc/self/oom_score_adj").write_text("1000")
    hardware = resolve_hardware(composed()["trainer"])
    config, tokens = config_and_tokens(shape, hardware)
    if name == "slm":
        keep_freed_memory()
    reset_peak_rss()
    print(rss(), flush=True)
    step = step_of(MEMORY[name](config, hardware), tokens, hardware)
    step()
    step()
    print(peak_rss(), flush=True)


def ours(config: ModelConfig, hardware: Hardware) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    decoder = Decoder(config).to(hardware.accelerator)
    if hardware.compile:
        decoder.compile_blocks()
    return decoder, lambda tokens: decoder.loss(tokens[:, :-1], tokens[:, 1:])


def transformers_llama(config: ModelConfig, hardware: Hardware) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_width,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=config.tie_embeddings,
            use_cache=False,
        )
    ).to(hardware.accelerator)
    assert sum(p.numel() for p in model.parameters()) == num_params(config)
    # transformers shifts labels itself and scores T - 1 of T tokens, so it gets T + 1 to score as many as slm.
    return model, lambda tokens: model(tokens, labels=tokens).loss


def litgpt_llama(config: ModelConfig, hardware: Hardware) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    torch.manual_seed(0)
    model = GPT(
        Config(
            n_layer=config.num_layers,
            n_embd=config.hidden_size,
            n_head=config.num_heads,
            n_query_groups=config.kv_heads,
            head_size=config.head_width,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size,
            block_size=config.max_position_embeddings,
            intermediate_size=config.intermediate_size,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
        )
    ).to(hardware.accelerator)
    if config.tie_embeddings:
        model.lm_head.weight = model.transformer.wte.weight
    assert sum(p.numel() for p in model.parameters()) == num_params(config)

    # `chunk_size=0`: as in its pretraining script
    return model, lambda tokens: chunked_cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], chunk_size=0)


def compiled(make: Maker, config: ModelConfig, hardware: Hardware) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    model, loss_of = make(config, hardware)
    return model, torch.compile(loss_of, dynamic=False)


PEERS: dict[str, Maker] = {"transformers": transformers_llama, "litgpt": litgpt_llama}
MEMORY: dict[str, Maker] = {"slm": ours, "transformers": transformers_llama}


def step_of(
    model_and_loss: tuple[nn.Module, Callable[[Tensor], Tensor]],
    tokens: Tensor,
    hardware: Hardware,
    *,
    update: bool = True,
) -> Callable[[], float]:
    """Returns a function that takes one optimizer step and returns its duration in seconds.

    Without `update`, the step is forward and backward only.
    """
    model, loss_of = model_and_loss
    optim: dict[str, Any] = {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    if isinstance(model, Decoder):
        optimizer = make_adamw(model, optim)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True, **optim)
    parameters = list(model.parameters())
    mixed = hardware.precision.endswith("-mixed")
    context = partial(torch.autocast, hardware.accelerator, hardware.matmul_dtype, enabled=mixed)

    def step() -> float:
        start = time.perf_counter()
        with context():
            loss = loss_of(tokens)
        loss.backward()
        if update:
            torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, full_grad_norm(parameters))
            optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    return step


if __name__ == "__main__":
    main()
