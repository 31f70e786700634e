"""Training speed of slm beside transformers' and litgpt's Llama: same shape, batch, precision, optimizer and run.

    python benchmarks/train_throughput.py                     tiny (256 tokens per sequence) and mobilellm_125m (512)
    python benchmarks/train_throughput.py mobilellm_125m:2048:1 --repetitions 7 --peers transformers
    pip install --no-deps litgpt                              then litgpt is measured too

A shape is PRESET:SEQUENCE_LENGTH:SEQUENCES. One repetition is a whole optimizer step (forward, backward, clipping,
fused AdamW) of each in turn, so that all run under the same load; figures are medians over repetitions. slm runs as in
train.py (compiled blocks if a compiler is found), each peer as it comes ("eager", with SDPA) and under `torch.compile`.
Prints per shape: tokens/s, GFLOP/s, MFU (exact FLOPs over the measured matmul peak) and the first and third quartile
of the time of a step, and slm's speed over that of the fastest peer. Needs the [test] extra (transformers).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
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

Maker = Callable[[ModelConfig, Hardware], tuple[nn.Module, Callable[[Tensor], Tensor]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["tiny:256:16", "mobilellm_125m:512:4"])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--peers", nargs="*", default=[name for name in PEERS if find_spec(name)], choices=PEERS)
    args = parser.parse_args()
    hardware = resolve_hardware(composed()["trainer"])
    peak = measure_matmul(hardware.accelerator, hardware.matmul_dtype)
    print(f"{hardware.device_name}, {hardware.precision}, torch {torch.__version__}, peak {peak / 1e9:,.0f} GFLOP/s")
    for shape in args.shapes:
        preset, length, sequences = shape.split(":")
        print(f"{preset} {sequences}x{length}")
        compare(preset_config(preset), hardware, peak, int(length), int(sequences), args.repetitions, args.peers)


def composed(*overrides: str) -> dict[str, Any]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)  # type: ignore[return-value]


def preset_config(preset: str) -> ModelConfig:
    return model_config(composed(f"model={preset}")["model"])


def compare(
    config: ModelConfig,
    hardware: Hardware,
    peak: float,
    length: int,
    sequences: int,
    repetitions: int,
    peers: list[str],
) -> None:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (sequences, length + 1), generator=rng).to(hardware.accelerator)
    makers = {"slm": ours}
    for name in peers:
        makers |= {f"{name} eager": PEERS[name], f"{name} compiled": partial(compiled, PEERS[name])}
    steps = {name: step_of(make(config, hardware), tokens, hardware) for name, make in makers.items()}
    for step in steps.values():  # compilation, allocation, caches
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            seconds[name].append(step())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    flops = flops_per_token(config, length)
    for name, median in medians.items():
        rate = sequences * length / median
        gflops, mfu = rate * flops / 1e9, rate * flops / peak
        low, _, high = statistics.quantiles(seconds[name], n=4) if repetitions > 1 else [median] * 3
        spread = f"{1e3 * low:,.0f} to {1e3 * high:,.0f} ms"
        print(f"  {name:22s} {rate:9,.0f} tok/s {gflops:6,.0f} GFLOP/s MFU {mfu:4.0%}  {spread}")
    if peers:
        fastest = min((name for name in medians if name != "slm"), key=medians.__getitem__)
        print(f"  slm is {medians[fastest] / medians['slm']:.2f}x as fast as {fastest}", flush=True)


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
