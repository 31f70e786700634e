"""Training speed of mixers relative to full attention, or of families relative to mobilellm, compiled as in train.py.

    python benchmarks/mixer_throughput.py                                F S P L G at 256 and 1024 tokens per sequence
    python benchmarks/mixer_throughput.py --families                     each family at its tiny size
    python benchmarks/mixer_throughput.py SSSF LLLG --lengths 1024 --tokens 4096 --repetitions 7 chunk_size=128

A repetition is one forward and backward pass of each in turn, so that all run under the same load; figures are medians
over repetitions. Arguments with an equals sign are fields of the model. Prints one line per mixer and length: speed,
exact GFLOP/s and the ratio to the first.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from train_throughput import CONF, composed, preset_config

from slm.composition.budget import model_config
from slm.model import Decoder, ModelConfig
from slm.model.counts import flops_per_token
from slm.training.hardware import Hardware, resolve_hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", default=[], metavar="PATTERN|FIELD=NUMBER")
    parser.add_argument("--families", action="store_true", help="the families of conf/family in place of patterns")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--tokens", type=int, default=4096, help="of one pass, over all sequences")
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    changes = {name: int(value) for name, _, value in (word.partition("=") for word in args.words if "=" in word)}
    shapes = family_shapes() if args.families else pattern_shapes(args.preset, [w for w in args.words if "=" not in w])
    shapes = {name: dataclasses.replace(shape, **changes) for name, shape in shapes.items()}
    hardware = resolve_hardware(composed()["trainer"])
    print(f"{hardware.device_name}, {hardware.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for length in args.lengths:
        measure(shapes, hardware, length, args.tokens // length, args.repetitions)


def pattern_shapes(preset: str, patterns: list[str]) -> dict[str, ModelConfig]:
    """The preset with each pattern, full attention first."""
    patterns = patterns or ["S", "P", "L", "G"]
    return {pattern: dataclasses.replace(preset_config(preset), mixer_pattern=pattern) for pattern in ["F", *patterns]}


def family_shapes() -> dict[str, ModelConfig]:
    """Each family at its tiny size, mobilellm first."""
    names = sorted((path.stem for path in (CONF / "family").glob("*.yaml")), key=lambda name: name != "mobilellm")
    return {name: model_config(composed(f"family={name}")["model"]) for name in names}


def measure(shapes: dict[str, ModelConfig], hardware: Hardware, length: int, sequences: int, repetitions: int) -> None:
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 4 * len(shapes)  # else the ninth would run uncompiled, without a warning
    passes = [one_pass(config, hardware, length, sequences) for config in shapes.values()]
    for run in passes:  # compilation, allocation, caches
        run()
        run()
    seconds: list[list[float]] = [[] for _ in passes]
    for _ in range(repetitions):
        for times, run in zip(seconds, passes, strict=True):
            times.append(run())
    rates = [sequences * length / statistics.median(times) for times in seconds]
    for (name, config), rate in zip(shapes.items(), rates, strict=True):
        speed = f"{rate:,.0f} tok/s, {rate * flops_per_token(config, length) / 1e9:,.0f} GFLOP/s"
        print(f"{sequences}x{length} {name}: {speed}, {rate / rates[0]:.2f} of {next(iter(shapes))}", flush=True)


def one_pass(config: ModelConfig, hardware: Hardware, length: int, sequences: int) -> Callable[[], float]:
    torch.manual_seed(0)
    decoder = Decoder(config).to(hardware.accelerator)
    if hardware.compile:
        decoder.compile_blocks()
    tokens = torch.randint(config.vocab_size, (sequences, length + 1), device=hardware.accelerator)
    mixed = hardware.precision.endswith("-mixed")
    context = partial(torch.autocast, hardware.accelerator, hardware.matmul_dtype, enabled=mixed)

    def run() -> float:
        start = time.perf_counter()
        with context():
            loss = decoder.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        decoder.zero_grad()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main()
