"""The plan of one run on this machine: shape, steps and batches, decided before the model is built."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from slm.composition.budget import shape_and_steps
from slm.data.loader import num_micro_batches_per_step
from slm.data.mixture import read_mixture
from slm.data.questions import read_tasks, scored_pairs
from slm.data.sources import MIX
from slm.model.config import ModelConfig
from slm.model.counts import flops_per_token, kv_cache_bytes, mixers_of_blocks, num_params
from slm.model.counts import state_bytes as decoding_state_bytes
from slm.runtime.machine import available_bytes, why_no_gpu, why_not_compiled
from slm.runtime.words import join_names, plural
from slm.training import memory
from slm.training.branching import Branch, find_branch
from slm.training.distillation import TeacherPlan, find_teacher
from slm.training.hardware import Hardware
from slm.training.initial import find_initial
from slm.training.parametrization import Rules, make_rules, with_multipliers
from slm.training.run_directory import RunDirectory

BYTES_PER_TOKEN = 3.5  # of English text in vocabularies of a few thousand ids: a round figure for an estimate of cost
TRAINING_FORWARDS = 3  # FLOPs of a training step in forward passes: the backward pass costs two


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run whose config is valid and fits this machine."""

    settings: Mapping[str, Any]
    """The config, as plain values."""
    hardware: Hardware
    model: ModelConfig
    """The shape, with the parametrization's multipliers."""
    rules: Rules
    """The parametrization's factors on initial weights and learning rates."""
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Sequences of one optimizer step, over all devices."""
    passes: memory.Passes
    branch: Branch | None
    """None for a run that starts at step 0 or at a checkpoint of its own."""
    initial: Mapping[str, Any] | None = None
    """The checkpoint of `init_from` (`find_initial`); None for a run that starts from random weights."""
    teacher: TeacherPlan | None = None
    """The teacher of a distilled run."""

    @property
    def micro_batch_size(self) -> int:
        """Sequences of one forward pass on one device."""
        return self.passes.size

    @property
    def accumulation(self) -> int:
        """Forward passes of one device in one optimizer step."""
        return num_micro_batches_per_step(self.batch_size, self.hardware.world_size, self.micro_batch_size)

    @property
    def padding(self) -> int:
        """Empty sequences that fill up one optimizer step, so that all its passes have the same size."""
        return self.accumulation * self.micro_batch_size * self.hardware.world_size - self.batch_size

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence."""
        return int(self.settings["train"]["sequence_length"])

    @property
    def document_masking(self) -> bool:
        """Whether tokens attend only to tokens of their own document."""
        return bool(self.settings["train"].get("document_masking"))  # older runs lack the key

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def train_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.batch_tokens

    @property
    def token_flops(self) -> float:
        """Exact training FLOPs per token."""
        return flops_per_token(self.model, self.sequence_length)

    @property
    def state_bytes(self) -> int:
        """Memory of weights, gradients and optimizer before any sharding."""
        return memory.optimizer_state_bytes(self.model, self.settings["optim"]["ema_decay"] is not None)

    @property
    def folder(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.settings["output_dir"])

    @property
    def cache_dir(self) -> Path:
        """The folder for corpora, tokenizers and measured matmul peaks."""
        return Path(os.path.expanduser(self.settings["cache_dir"]))


def make_plan(settings: Mapping[str, Any], hardware: Hardware) -> Plan:
    """Make the plan of a config that `check_settings` accepts.

    Raises `ValueError` for settings that do not fit together, and if the run cannot start from `branch_from`.
    """
    shape, steps = shape_and_steps(settings, devices=hardware.world_size)
    initial = find_initial(settings)
    # A checkpoint has the multipliers with which it was trained. A parametrization then changes learning rates alone.
    model = with_multipliers(settings["parametrization"], shape) if initial is None else shape
    is_completed = RunDirectory(settings["output_dir"]).result().get("status") == "completed"
    teacher = None if is_completed else find_teacher(settings, model)  # nothing more is learned, so it may have moved
    batch_size = int(settings["train"]["batch_tokens"]) // int(settings["train"]["sequence_length"])
    return Plan(
        settings=settings,
        hardware=hardware,
        model=model,
        rules=make_rules(settings["parametrization"], model),
        steps=steps,
        batch_size=batch_size,
        passes=_choose_passes(settings, hardware, model, batch_size, teacher),
        branch=find_branch(settings, steps=steps, devices=hardware.world_size),
        initial=initial,
        teacher=teacher,
    )


def _choose_passes(
    settings: Mapping[str, Any], hardware: Hardware, model: ModelConfig, batch_size: int, teacher: TeacherPlan | None
) -> memory.Passes:
    """Choose the passes of each device for a step that has `batch_size` sequences over all devices."""
    length = int(settings["train"]["sequence_length"])
    device = hardware.accelerator
    available = available_bytes(device, alone=hardware.world_size == 1)
    num_shards = hardware.world_size if hardware.strategy == "fsdp" else 1
    held_bytes = memory.optimizer_state_bytes(model, settings["optim"]["ema_decay"] is not None, num_shards=num_shards)
    held_bytes += teacher.bytes if teacher else 0
    estimate = partial(
        memory.activation_bytes,
        model,
        length=length,
        device=device,
        dtype=torch.float64 if hardware.precision == "64-true" else torch.float32,
        autocast_dtype=hardware.autocast_dtype,
        document_masking=bool(settings["train"].get("document_masking")),
        quantize=settings.get("quantize"),
        teacher=teacher,
    )
    return memory.choose_passes(
        batch_size,
        hardware.world_size,
        length,
        max_tokens=hardware.micro_batch_tokens,
        default_tokens=memory.DEFAULT_TOKENS[device],
        activation_checkpointing=hardware.activation_checkpointing,
        room=None if available is None else (memory.USABLE_SHARE * available - held_bytes),
        estimate=cache(estimate),
    )


def with_smaller_passes(plan: Plan) -> Plan | None:
    """Return the plan with passes that need less memory; None if its settings do not allow them."""
    hardware = plan.hardware
    if hardware.world_size > 1:  # all processes would have to agree on the new passes
        return None
    passes = memory.smaller_passes(
        plan.passes,
        plan.batch_size,
        plan.sequence_length,
        is_size_given=hardware.micro_batch_tokens is not None,
        may_checkpoint=hardware.activation_checkpointing == "auto",
    )
    return None if passes is None else replace(plan, passes=passes)


def plan_lines(plan: Plan) -> list[str]:
    """Return the lines that describe the plan before a run."""
    settings, model, hardware, length = plan.settings, plan.model, plan.hardware, plan.sequence_length
    has_shared_blocks = len(model.block_uses) > model.num_layers
    sharing_text = f", each used {model.num_repeats} times ({model.layer_sharing})" if has_shared_blocks else ""
    padding_text = f", {plan.padding} empty sequences per step" if plan.padding else ""
    masking_text = ", documents masked from each other" if plan.document_masking else ""
    devices = f"{hardware.world_size} x {hardware.accelerator}" if hardware.world_size > 1 else hardware.accelerator
    estimate = plan.passes.bytes
    activation_text = "not counting" if estimate is None else f"at most about {estimate / 1e9:.2f} GB for"
    lines = [
        f"run          {settings['name']}, seed {settings['seed']}, in {settings['output_dir']}",
        f"model        {settings['model']['family']}: {model.num_layers} blocks{sharing_text} x {model.hidden_size} "
        f"wide, {model.num_heads} heads ({model.kv_heads} KV) of {model.head_width}, FFN {model.intermediate_size}, "
        f"vocabulary {model.vocab_size:,}",
        f"parameters   {num_params(model):,} total, {num_params(model, non_embedding=True):,} non-embedding",
        f"tokens       {plan.train_tokens:,} ({plan.train_tokens / num_params(model):.2f} per parameter) in "
        f"{plan.steps:,} steps of {plan.batch_tokens:,} ({plan.accumulation} x {plan.passes.text(length)}"
        f"{padding_text}{masking_text})",
        f"FLOPs        {plan.token_flops:.3e} per token exactly, {flops_per_token(model, length, convention='6n'):.3e} "
        f"by 6N; {plan.train_tokens * plan.token_flops:.3e} in total",
        f"memory       {plan.state_bytes / 1e9:.2f} GB for weights, gradients and optimizer, "
        f"{activation_text} activations",
        f"decoding     cache per sequence: {_cache_sizes(model)}",
        f"optimizer    {settings['optim']['name']}, peak lr {settings['optim']['lr']}{_matrix_lr(plan)}, "
        f"{settings['schedule']['name']}",
        f"hardware     {devices}, {hardware.precision}, {_compilation(plan)}, {hardware.device_name}",
    ]
    if settings["data"]["source"] == MIX:
        mixture = read_mixture(settings["data"])
        lines.insert(4, f"mix          {'; '.join(mixture.describe(plan.steps))}")
    if settings["train"].get("eval_tasks"):
        lines.append(f"tasks        {_task_cost(plan)}")
    if hardware.accelerator == "cpu" and settings["trainer"]["accelerator"] == "auto" and (why := why_no_gpu()):
        lines.append(f"WARNING      the run is on the CPU, but {why}")
    if plan.teacher:
        lines.append(plan.teacher.line(length, plan.token_flops))
    if initial := plan.initial:
        seen = "" if initial["tokens_before"] is None else f", after {initial['tokens_before']:,} tokens"
        lines.append(f"weights      of {initial['checkpoint']} (fingerprint {initial['fingerprint']}{seen})")
    if branch := plan.branch:
        lines.append(f"branching    from step {branch.step} of {branch.trunk_name} ({branch.checkpoint})")
    return lines


def _compilation(plan: Plan) -> str:
    if plan.hardware.compile:
        mixers = dict(zip(plan.model.mixer_letters, mixers_of_blocks(plan.model), strict=True))
        skipped = [letter for letter, mixer in mixers.items() if not mixer.compiles_on_cpu]
        is_partial = skipped and plan.hardware.accelerator == "cpu"
        return f"compiled except blocks with mixer {' and '.join(skipped)}" if is_partial else "compiled"
    if plan.settings["trainer"]["compile"] is False:
        return "not compiled"
    return f"not compiled because {why_not_compiled(plan.hardware.accelerator)}"


def _cache_sizes(model: ModelConfig) -> str:
    """Describe the size of a sequence's cache. Its keys and values grow with the context; its states do not."""
    texts: list[str] = []
    context = model.max_position_embeddings
    if start_bytes := kv_cache_bytes(model, 1):
        full_bytes = kv_cache_bytes(model, context)
        texts.append(f"{start_bytes:,} bytes of keys and values after 1 token, {full_bytes:,} after {context:,} (bf16)")
    if constant_bytes := decoding_state_bytes(model):
        texts.append(f"{constant_bytes:,} bytes of state, constant (float32)")
    return " and ".join(texts)


def _task_cost(plan: Plan) -> str:
    """Describe the questions of `train.eval_tasks`, and estimate what scoring them costs beside the training."""
    train = plan.settings["train"]
    tasks = read_tasks(train["eval_tasks"], "train.eval_tasks", train.get("eval_task_limit"))
    counts = join_names([f"{plural(len(records), 'question')} of {name}" for name, records in tasks.items()])
    pairs = [pair for records in tasks.values() for record in records for pair in scored_pairs(record)]
    num_bytes = sum(len(text.encode()) for pair in pairs for text in pair)
    num_tokens = num_bytes / (1 if plan.settings["tokenizer"]["kind"] == "bytes" else BYTES_PER_TOKEN)
    validations = math.ceil(plan.steps / train["eval_every"])
    share = validations * num_tokens / TRAINING_FORWARDS / plan.train_tokens
    return (
        f"{counts} at each of {validations:,} validations, about {num_tokens * validations:,.0f} tokens "
        f"forward, {share:.1%} of the training's FLOPs"
    )


def _matrix_lr(plan: Plan) -> str:
    """Say by which factor the parametrization changes the learning rate of hidden matrices."""
    name, hidden = plan.settings["parametrization"]["name"], plan.rules["hidden"]
    factor = hidden.muon_lr if plan.settings["optim"]["name"] == "muon" else hidden.lr
    return "" if name == "standard" else f" at the base shape of {name}, times {factor:.3g} for matrices of blocks"
