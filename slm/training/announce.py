"""What a run says about itself before it starts, and when it ends."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.model.config import ModelConfig
from slm.model.counts import flops_per_token, kv_cache_bytes, num_params, state_bytes
from slm.runtime.words import duration
from slm.training.hardware import Hardware
from slm.training.plan import Plan

LONG_RUN_SECONDS = 3600


def plan_lines(config: Mapping[str, Any], plan: Plan, hardware: Hardware) -> list[str]:
    """The plan of a run, for people."""
    model = plan.model
    length = plan.sequence_length
    uses = len(model.block_uses)
    shared = f", each used {model.num_repeats} times ({model.layer_sharing})" if uses > model.num_layers else ""
    per_parameter = f"{plan.train_tokens / num_params(model):.2f} a parameter"
    masked = ", documents masked from each other" if plan.document_masking else ""
    where = f"{hardware.world_size} x {hardware.accelerator}" if hardware.world_size > 1 else hardware.accelerator
    return [
        f"run          {config['name']}, seed {config['seed']}, in {config['output_dir']}",
        f"model        {config['model']['family']}: {model.num_layers} blocks{shared} x {model.hidden_size} wide, "
        f"{model.num_heads} heads ({model.kv_heads} KV) of {model.head_width}, FFN {model.intermediate_size}, "
        f"vocabulary {model.vocab_size:,}",
        f"parameters   {num_params(model):,} total, {num_params(model, non_embedding=True):,} non-embedding",
        f"tokens       {plan.train_tokens:,} ({per_parameter}) in {plan.steps:,} steps of {plan.batch_tokens:,} "
        f"({plan.accumulation} x {plan.micro_batch_size} sequences of {length} a device{masked})",
        f"FLOPs        {flops_per_token(model, length):.3e} a token exact, "
        f"{flops_per_token(model, length, convention='6n'):.3e} as 6N; {plan.flops:.3e} in all",
        f"memory       {plan.state_bytes / 1e9:.2f} GB for weights, gradients and optimizer, before activations",
        f"decoding     remembers of one sequence {_remembered(model)}",
        f"optimizer    {config['optim']['name']}, peak lr {config['optim']['lr']}{_carried(config, plan)}, "
        f"{config['schedule']['name']}",
        f"hardware     {where}, {hardware.precision}, {'compiled' if hardware.compile else 'not compiled'}, "
        f"{hardware.device_name}",
    ]


def _remembered(model: ModelConfig) -> str:
    """What a cache holds, in words that are true of every mixer: windows forget, states do not grow."""
    context = model.max_position_embeddings
    first, all_of_them, state = kv_cache_bytes(model, 1), kv_cache_bytes(model, context), state_bytes(model)
    keys = f"{first:,} bytes of keys and values for a first token, {all_of_them:,} for {context:,} (bf16)"
    parts = [keys] * (first > 0) + [f"{state:,} bytes of state whatever the tokens (float32)"] * (state > 0)
    return " and ".join(parts)


def _carried(config: Mapping[str, Any], plan: Plan) -> str:
    """What the parametrisation makes of the learning rate."""
    name, hidden = config["parametrization"]["name"], plan.rules["hidden"]
    factor = hidden.muon_lr if config["optim"]["name"] == "muon" else hidden.lr
    return "" if name == "standard" else f" at the base of {name}, times {factor:.3g} for matrices of blocks"


def speed_lines(
    plan: Plan, tokens_per_second: float, peak: float, peak_source: str, memory: int, *, start_step: int
) -> list[str]:
    """Measured speed, and how long the run will take at it from `start_step` on."""
    seconds = (plan.steps - start_step) * plan.batch_tokens / tokens_per_second
    mfu = tokens_per_second * flops_per_token(plan.model, plan.sequence_length) / peak
    lines = [
        f"speed        {tokens_per_second:,.0f} tokens/s measured here, MFU {mfu:.0%} of {peak / 1e9:,.0f} GFLOP/s "
        f"({peak_source}), {memory / 1e9:.2f} GB of memory held",
        f"duration     about {duration(seconds)} of training",
    ]
    if seconds > LONG_RUN_SECONDS:
        lines.append(
            f"             that is over an hour: Ctrl-C saves a checkpoint, and the same command with "
            f"output_dir continues; train.tokens={plan.batch_tokens * 20} would be a short try"
        )
    return lines


def ending_lines(result: Mapping[str, Any], folder: Path, sample: str) -> list[str]:
    """How the run ended."""
    lines = [f"{result['status']} after {duration(result['wall_seconds'])}: {folder}"]
    if result["val"]:
        val = result["val"]
        lines.append(
            f"validation   loss {val['loss']:.4f} nats/token, {val['bits_per_byte']:.4f} bits/byte, "
            f"perplexity {val['perplexity']:.2f} on {val['tokens']:,} tokens"
        )
    if sample:
        lines.append(f"sample       {sample}")
    if result["status"] == "interrupted":
        lines.append(f"continue     the same command with output_dir={shlex.quote(str(folder))}")
    if result["status"] == "diverged":
        lines.append("hint         a lower optim.lr or a longer schedule.warmup_fraction usually helps")
    return lines
