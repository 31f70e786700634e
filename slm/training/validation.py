"""The validation of a run: its loss on one text or on each source of a mix, and a sample of what it generates.

Lightning's validation loop is not used: when a run is killed between a validation and the next checkpoint, that loop
repeats or skips validations, and metrics.csv then differs from an uninterrupted run's. Axes: B sequences, T tokens.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from slm.data.conversations import encode_prompt, end_of_turn_ids
from slm.data.corpus import Corpus
from slm.data.loader import Batch, val_batches
from slm.model.decoding import generate
from slm.model.loss import IGNORE
from slm.runtime.machine import float64_device
from slm.training.module import LanguageModel

SOURCE_METRICS = ("loss", "bits_per_byte")
"""Metrics of each source of a mix, in the columns `val/SOURCE/METRIC`."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Loss of a model on a text."""

    loss: float
    """Nats per token."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the text that was scored."""
    by_source: "Mapping[str, Score]" = field(default_factory=dict)
    """The score of each source of a mix."""

    def metrics(self) -> dict[str, float]:
        """Return the loss in nats per token, in bits per byte (comparable across tokenizers), and as a perplexity."""
        bits_per_byte = (self.loss * self.tokens / self.bytes / math.log(2)) if self.bytes else math.nan
        perplexity = math.exp(min(self.loss, 700.0))  # exp(710) overflows
        return {"loss": self.loss, "bits_per_byte": bits_per_byte, "perplexity": perplexity}

    def row(self) -> dict[str, float]:
        """Return the metrics under the names of their columns in metrics.csv."""
        row = {f"val/{name}": value for name, value in self.metrics().items()}
        for source, score in self.by_source.items():
            row |= {f"val/{source}/{name}": score.metrics()[name] for name in SOURCE_METRICS}
        return row


def source_columns(corpus: Corpus) -> list[str]:
    """Return the columns of metrics.csv for the sources of a mix."""
    return [f"val/{source}/{name}" for source in corpus.sources for name in SOURCE_METRICS]


def score(module: LanguageModel, corpus: Corpus, *, max_tokens: int | None = None) -> Score:
    """Score every validation token except the first, or `max_tokens` tokens spread evenly over the validation set.

    Each source of a mix is scored on an equal part of `max_tokens`. The loss of a mix is the mean over its sources,
    weighted by their shares of the run's training tokens; `bytes` are those that `tokens` tokens in these shares have.
    """
    if corpus.mixture is None:
        return _score(module, corpus, max_tokens)
    part = None if max_tokens is None else max(1, max_tokens // len(corpus.sources))
    by_source = {name: _score(module, source, part) for name, source in corpus.sources.items()}
    shares = corpus.mixture.shares
    tokens = sum(source.tokens for source in by_source.values())
    bytes_per_token = sum(shares[name] * source.bytes / source.tokens for name, source in by_source.items())
    loss = sum(shares[name] * source.loss for name, source in by_source.items())
    return Score(loss=loss, tokens=tokens, bytes=round(tokens * bytes_per_token), by_source=by_source)


@torch.no_grad()
def _score(module: LanguageModel, corpus: Corpus, max_tokens: int | None) -> Score:
    """Score the validation text of one corpus that is no mix. Of conversations, only what the assistant says is scored.

    Each process scores its share. Blocks run in the precision of training but uncompiled, so that the loss does not
    depend on compilation.
    """
    trainer, plan = module.trainer, module.plan
    batches = val_batches(
        corpus.val, sequence_length=plan.sequence_length, batch_size=plan.micro_batch_size, max_tokens=max_tokens
    )
    sum_device = float64_device(module.device)
    token_bytes = torch.as_tensor(corpus.val_bytes, device=sum_device)
    sums = torch.zeros(3, dtype=torch.float64, device=sum_device)  # nats, tokens, bytes
    for batch in share_batches(batches, trainer.global_rank, trainer.world_size):
        inputs, targets = batch.inputs.to(module.device), batch.targets.to(module.device)
        documents = module.documents(inputs, batch.documents)
        with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
            losses = module.decoder.token_losses(inputs, targets, documents)
        losses, targets = losses.to(sum_device), targets.to(sum_device)
        is_scored = targets != IGNORE
        target_bytes = token_bytes[targets.clamp(min=0)] * is_scored
        sums += torch.stack([losses.double().sum(), is_scored.sum().double(), target_bytes.sum().double()])
    nats, tokens, num_bytes = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
    return Score(loss=nats / tokens, tokens=int(tokens), bytes=round(num_bytes))


def share_batches(batches: Iterator[Batch], rank: int, world_size: int) -> Iterator[Batch]:
    """Yield every `world_size`-th batch, beginning with the batch at index `rank`.

    If the last round has too few batches, the ranks without one get the last batch with no target to score. All ranks
    thus make the same number of forward passes, as sharded weights require.
    """
    for index, batch in enumerate(batches):
        if index % world_size == rank:
            yield batch
    num_left_over = (index + 1) % world_size  # batches in the last round; 0 if it is full
    if num_left_over and rank >= num_left_over:
        yield batch._replace(targets=torch.full_like(batch.targets, IGNORE))


def sample_text(module: LanguageModel, corpus: Corpus, train: Mapping[str, Any]) -> str:
    """Generate a continuation of `train.sample_prompt`; "" if weights are sharded or `train.sample_tokens` is 0.

    If the run learns from conversations, generate the assistant's answer to the prompt as a message of the user.
    """
    is_sharded = any(hasattr(p, "full_tensor") for p in module.decoder.parameters())
    if is_sharded or not train["sample_tokens"]:
        return ""
    tokenizer, prompt = corpus.tokenizer, train["sample_prompt"]
    if corpus.holds_conversations:
        ids, stop_ids = encode_prompt([{"role": "user", "content": prompt}], tokenizer), end_of_turn_ids(tokenizer)
    else:
        ids, stop_ids = [tokenizer.separator_id, *tokenizer.encode(prompt)], [tokenizer.eos_id]
    options = {"max_new_tokens": train["sample_tokens"], "num_ids": tokenizer.vocab_size}
    new_ids = generate(module.decoder, ids, stop_id=stop_ids, **options)
    return ("\n" if corpus.holds_conversations else "") + tokenizer.decode(list(new_ids))
