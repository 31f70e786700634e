"""Training speed of slm and of transformers' Llama: same shape, batch, precision, optimizer, machine and run.

    python benchmarks/train_throughput.py                     tiny (256 tokens per sequence) and mobilellm_125m (1024)
    python benchmarks/train_throughput.py mobilellm_125m:2048:1 --repetitions 7

A shape is PRESET:SEQUENCE_LENGTH:SEQUENCES. One repetition is a whole optimizer step (forward, backward, clipping,
fused AdamW) of each in turn, so that both run under the same load; figures are medians over repetitions. slm runs as in
train.py (compiled blocks if a compiler is found), transformers with its defaults: eager, with SDPA. Prints one line per
shape: tokens/s, GFLOP/s and MFU (exact FLOPs over the measured matmul peak) of each, and the ratio.
Needs the [test] extra (transformers).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
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
from slm.training.hardware import Hardware, resolve_hardware
from slm.training.optim import full_grad_norm, make_adamw
from slm.training.speed import measure_matmul

CONF = Path(__file__).parents[1] / "conf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["tiny:256:16", "mobilellm_125m:1024:2"])
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    hardware = resolve_hardware(composed()["trainer"])
    peak = measure_matmul(hardware.accelerator, hardware.matmul_dtype)
    print(f"{hardware.device_name}, {hardware.precision}, torch {torch.__version__}, peak {peak / 1e9:,.0f} GFLOP/s")
    for shape in args.shapes:
        preset, length, sequences = shape.split(":")
        config = preset_config(preset)
        print(compare(preset, config, hardware, peak, int(length), int(sequences), args.repetitions), flush=True)


def composed(*overrides: str) -> dict[str, Any]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)  # type: ignore[return-value]


def preset_config(preset: str) -> ModelConfig:
    return model_config(composed(f"model={preset}")["model"])


def compare(
    name: str, config: ModelConfig, hardware: Hardware, peak: float, length: int, sequences: int, repetitions: int
) -> str:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (sequences, length + 1), generator=rng).to(hardware.accelerator)
    steps = [step_of(make(config, hardware), tokens, hardware) for make in (ours, transformers_llama)]
    for step in steps:  # compilation, allocation, caches
        step()
        step()
    seconds: list[list[float]] = [[], []]
    for _ in range(repetitions):
        for times, step in zip(seconds, steps, strict=True):
            times.append(step())
    rates = [sequences * length / statistics.median(times) for times in seconds]
    flops = flops_per_token(config, length)
    figures = [f"{r:,.0f} tok/s {r * flops / 1e9:,.0f} GFLOP/s MFU {r * flops / peak:.0%}" for r in rates]
    return f"{name} {sequences}x{length}: ours {figures[0]}; transformers {figures[1]}; {rates[0] / rates[1]:.2f}x"


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


def step_of(
    model_and_loss: tuple[nn.Module, Callable[[Tensor], Tensor]], tokens: Tensor, hardware: Hardware
) -> Callable[[], float]:
    """Returns a function that takes one optimizer step and returns its duration in seconds."""
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
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, full_grad_norm(parameters))
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        return time.perf_counter() - start

    return step


if __name__ == "__main__":
    main()
