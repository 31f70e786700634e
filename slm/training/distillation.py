"""Learn from a teacher's predictions as well as from the text: the config group `distill`.

Notable: the teacher is not a part of the Lightning module, so checkpoints, averages, shards and the optimizer do not
see it. Each device has all of it. It computes in its own dtype, without gradients and outside the run's autocast.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slm.checkpoints.load import inspect, load
from slm.checkpoints.location import Provenance
from slm.checkpoints.weights import dtype_name
from slm.model.config import ModelConfig
from slm.model.counts import flops_per_token, num_params
from slm.model.decoder import Decoder
from slm.model.loss import SoftTargets
from slm.runtime.address import named, split_revision

KEY = "distill.teacher"


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """A teacher that has been checked, but not loaded."""

    settings: Mapping[str, Any]
    """The config group `distill`."""
    provenance: Provenance
    tokenizer: str
    """Fingerprint of its tokenizer."""

    @property
    def model(self) -> ModelConfig:
        """The teacher's shape."""
        return self.provenance.config

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights and products."""
        name = self.settings["dtype"]
        return getattr(torch, self.provenance.stored_dtype if name == "auto" else name)

    @property
    def bytes(self) -> int:
        """Memory of its weights on each device."""
        return num_params(self.model) * self.dtype.itemsize

    def flops_per_token(self, length: int) -> float:
        """Return the FLOPs of its forward pass, a third of those of training."""
        return flops_per_token(self.model, length) / 3

    def line(self, length: int, student_flops: float) -> str:
        """Describe it for the plan, with the share by which it adds to the student's FLOPs per token."""
        flops = self.flops_per_token(length)
        return (
            f"teacher      {self.provenance.checkpoint} (fingerprint {self.provenance.fingerprint}): "
            f"{num_params(self.model):,} parameters, {self.bytes / 1e9:.2f} GB in {dtype_name(self.dtype)}; "
            f"{flops:.3e} FLOPs per token, {flops / student_flops:.0%} more than without it"
        )

    def record(self, length: int) -> dict[str, Any]:
        """Return what result.json says of the distillation."""
        return {
            **self.settings,
            "dtype": dtype_name(self.dtype),
            "revision": self.provenance.revision,
            "fingerprint": self.provenance.fingerprint,
            "params_total": num_params(self.model),
            "flops_per_token": self.flops_per_token(length),
        }

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raise `ValueError` if the run's tokenizer has another `fingerprint`."""
        if fingerprint != self.tokenizer:
            raise ValueError(
                f"{KEY}={self.provenance.checkpoint} has another tokenizer than the run, so its predictions are for "
                "other tokens: give tokenizer=file and as tokenizer.path the folder of the teacher's tokenizer.json"
            )


def find_teacher(settings: Mapping[str, Any], model: ModelConfig) -> TeacherPlan | None:
    """Check the teacher of a run of the shape `model`; None if the run has none.

    Raises `ValueError` if it cannot be loaded, or cannot teach this model. Its tokenizer is compared later.
    """
    distill = settings.get("distill")
    if distill is None:
        return None
    provenance, tokenizer = inspect(KEY, distill["teacher"])
    teacher, length, given = provenance.config, int(settings["train"]["sequence_length"]), distill["teacher"]
    if teacher.vocab_size != model.vocab_size:
        raise ValueError(
            f"{KEY}={given} predicts {teacher.vocab_size:,} tokens and the model {model.vocab_size:,}: train with the "
            f"teacher's tokenizer and model.vocab_size={teacher.vocab_size}"
        )
    if teacher.max_position_embeddings < length:
        raise ValueError(
            f"train.sequence_length={length} is longer than the context of {KEY}={given}, "
            f"{teacher.max_position_embeddings} tokens: train on shorter sequences, or choose another teacher"
        )
    if distill["top_k"] is not None and distill["top_k"] > teacher.vocab_size:
        raise ValueError(
            f"distill.top_k={distill['top_k']} is more than the {teacher.vocab_size:,} tokens of the vocabulary: "
            "lower it, or set it to null for all of them"
        )
    return TeacherPlan(settings=distill, provenance=provenance, tokenizer=tokenizer.fingerprint)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A loaded teacher."""

    decoder: Decoder
    settings: Mapping[str, Any]

    @torch.no_grad()
    def soft_targets(self, tokens_BT: Tensor, documents_BT: Tensor | None) -> SoftTargets:
        """Return what the student of these tokens must predict. Moves the teacher to the device of the tokens."""
        if self.decoder.head_weight.device != tokens_BT.device:
            self.decoder.to(tokens_BT.device)
        with torch.autocast(tokens_BT.device.type, enabled=False):
            hidden_NE = self.decoder.hidden(tokens_BT, documents_BT=documents_BT).flatten(0, 1)
        top_k = self.settings["top_k"]
        return SoftTargets(
            hidden_NE=hidden_NE,
            weight_VE=self.decoder.head_weight,
            temperature=float(self.settings["temperature"]),
            weight=float(self.settings["weight"]),
            top_k=None if top_k is None else int(top_k),
        )


def load_teacher(plan: TeacherPlan, *, compiled_for: str | None) -> Teacher:
    """Load a teacher; its blocks are compiled if `compiled_for` is a type of device."""
    with named(KEY):
        path, revision = split_revision(plan.settings["teacher"])
        decoder = load(path, revision=revision, dtype=plan.dtype).decoder
    if compiled_for is not None:
        decoder.compile_blocks(compiled_for)
    return Teacher(decoder=decoder, settings=plan.settings)
