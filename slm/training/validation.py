"""Loss on the validation stream: every token but the first is scored once.

Lightning's validation loop is not used: when a run is killed between a validation and the next checkpoint, that loop
repeats or skips validations, and then metrics.csv differs from that of an uninterrupted run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slm.data import Corpus, val_batches
from slm.model.loss import IGNORE
from slm.training.module import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Score:
    """Loss of a model on a text."""

    loss: float
    """Nats per token."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the text that was scored."""

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text, comparable across tokenizers."""
        return self.loss * self.tokens / self.bytes / math.log(2) if self.bytes else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss), per token."""
        return math.exp(min(self.loss, 700.0))  # exp(710) overflows

    def figures(self) -> dict[str, float]:
        """The loss in its three units."""
        return {"loss": self.loss, "bits_per_byte": self.bits_per_byte, "perplexity": self.perplexity}


@torch.no_grad()
def score(module: LanguageModel, corpus: Corpus, *, max_tokens: int | None = None) -> Score:
    """Score the validation stream, or `max_tokens` tokens spread evenly over it; each process scores its share.

    Blocks run uncompiled, in the precision of training, so that the loss does not depend on compilation.
    """
    trainer = module.trainer
    batches = val_batches(
        corpus.val,
        sequence_length=module.plan.sequence_length,
        batch_size=module.plan.micro_batch_size,
        max_tokens=max_tokens,
    )
    token_bytes = torch.as_tensor(corpus.val_bytes, device=module.device)
    sums = torch.zeros(3, dtype=torch.float64, device=module.device)  # nats, tokens, bytes
    for inputs, targets in share_batches(batches, trainer.global_rank, trainer.world_size):
        sums += _sums(module, inputs.to(module.device), targets.to(module.device), token_bytes)
    nats, tokens, num_bytes = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
    return Score(loss=nats / tokens, tokens=int(tokens), bytes=round(num_bytes))


def _sums(module: LanguageModel, inputs: Tensor, targets: Tensor, token_bytes: Tensor) -> Tensor:
    """Nats, scored tokens and their bytes in a batch [3], float64."""
    with torch.compiler.set_stance("force_eager"), module.trainer.precision_plugin.forward_context():
        losses = module.decoder.token_losses(inputs, targets, module.documents(inputs))
    is_scored = targets != IGNORE
    num_bytes = token_bytes[targets.clamp(min=0)] * is_scored
    return torch.stack([losses.double().sum(), is_scored.sum().double(), num_bytes.sum().double()])


def share_batches(
    batches: Iterator[tuple[Tensor, Tensor]], rank: int, world_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `rank`: every `world_size`-th one.

    If the last round has too few batches, the remaining ranks get one in which no target is scored. All ranks then make
    the same number of forward passes, which sharded weights need.
    """
    for number, (inputs, targets) in enumerate(batches):
        if number % world_size == rank:
            yield inputs, targets
    num_in_last_round = (number + 1) % world_size
    if num_in_last_round and rank >= num_in_last_round:
        yield inputs, torch.full_like(targets, IGNORE)
