"""What a run writes down while it trains: a row of metrics every few steps, validation, samples, checkpoints.

One callback, because the order matters: at a step the row is complete before the checkpoint is written, so a run that
is killed at any moment and continued writes the same rows again. Nothing here waits for the device between rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from slm.data import Corpus
from slm.model.counts import flops_per_token
from slm.model.decoding import generate
from slm.runtime.progress import Progress
from slm.tracking import Trackers
from slm.training.checkpointing import BEST, LAST, keep_as, kept_name
from slm.training.interrupt import Interrupt
from slm.training.module import LanguageModel
from slm.training.validation import score

COLUMNS = (
    "tokens",
    "train/loss",
    "train/grad_norm",
    "train/lr",
    "train/skipped_steps",
    "val/loss",
    "val/bits_per_byte",
    "val/perplexity",
    "time/tokens_per_second",
    "time/mfu",
    "time/seconds",
)
"""Columns of metrics.csv. Those under `time/` differ from run to run; all others are functions of the config."""

# How many nats above a uniform guess a mean loss must be for the run to count as lost.
HOPELESS_NATS = 1.0


STATUS = {
    "train/loss": "loss {:.3f}",
    "val/loss": "val {:.3f}",
    "val/bits_per_byte": "({:.3f} bits/byte)",
    "time/tokens_per_second": "{:,.0f} tok/s",
    "time/mfu": "MFU {:.0%}",
}
"""What the progress shows of the newest rows."""


@dataclass
class Journal(L.Callback):
    """Logs, validates, samples and saves at the steps the config names; ends a run that is interrupted or diverges."""

    folder: Path
    """Where checkpoints go."""
    corpus: Corpus
    train: Mapping[str, Any]
    checkpoint: Mapping[str, Any]
    max_skipped_in_a_row: int
    flops_per_second_peak: float
    interrupt: Interrupt
    progress: Progress
    branched_from: Mapping[str, Any] | None = None
    """`name` of the run and `step` that this one started at; None for step 0."""
    trackers: Trackers | None = None
    """None on all processes but the first."""

    status: str = "completed"
    val: dict[str, Any] | None = None
    """The newest validation: `Score`'s fields."""
    train_loss: float | None = None
    """Mean training loss of the newest row."""
    sample: str = ""
    """The newest generated text."""
    skipped_steps: int = 0
    best_loss: float = float("inf")
    train_seconds: float = 0.0
    """Time spent on training steps, over all resumptions."""
    seconds: float = 0.0
    """Time since the start of the fit, over all resumptions."""
    _latest: dict[str, float] = field(default_factory=dict)
    _step: int = 0
    _row_steps: int = 0  # timed since the last row or the start of this process
    _hopeless_rows: int = 0
    _started: float = field(default_factory=time.perf_counter)
    _row_started: float = field(default_factory=time.perf_counter)
    _saved_at: float = field(default_factory=time.perf_counter)

    def state_dict(self) -> dict[str, Any]:
        """What the next checkpoint carries."""
        keep = ("val", "train_loss", "skipped_steps", "sample", "best_loss", "branched_from", "_hopeless_rows")
        train_seconds = self.train_seconds + time.perf_counter() - self._row_started
        clocks = {"seconds": self.total_seconds(), "train_seconds": train_seconds}
        return clocks | {name: getattr(self, name) for name in keep}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint: this run's, or the one that it branches from, which knows nothing of that."""
        branched_from = self.branched_from
        for name, value in state_dict.items():
            setattr(self, name, value)
        self.branched_from = branched_from or self.branched_from

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks, and take the signals back from Lightning."""
        self.interrupt.install()
        self.progress.begin(trainer.global_step)
        self._step = trainer.global_step
        self._started = self._row_started = self._saved_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: the row if one is due, then the checkpoint if one is due."""
        assert isinstance(pl_module, LanguageModel)
        if trainer.global_step == self._step:  # still accumulating
            return
        self._step = step = trainer.global_step
        self._row_steps += 1
        last = step == pl_module.plan.steps
        row: dict[str, float] = {}
        if step % self.train["log_every"] == 0 or last:
            row |= self._training_metrics(pl_module, trainer)
            self._check_progress(pl_module, row["train/loss"])
        if step % self.train["eval_every"] == 0 or last:
            row |= self._validate(pl_module, last=last)
        if row:
            self._write(step, pl_module.plan, row)
        stop, save = self._decide(step, row, last)
        names = self._names(step, row)
        if save or stop or names:
            self._save(trainer, pl_module, names)
        trainer.should_stop = stop

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clocks."""
        now = time.perf_counter()
        self.train_seconds += now - self._row_started
        self.seconds += now - self._started
        self._row_started = self._started = now
        assert isinstance(pl_module, LanguageModel)
        self.skipped_steps = int(pl_module.guard.skipped.item())

    def outcome(self, steps: int) -> str:
        """Status of a run that ended at step `steps`; one that skipped most of them has learned little of its data."""
        return "diverged" if self.status == "completed" and self.skipped_steps > steps / 2 else self.status

    def _training_metrics(self, module: LanguageModel, trainer: L.Trainer) -> dict[str, float]:
        """Means and rates since the last row. The only place where the host waits for the device."""
        loss = _sum_over_ranks(module.loss_sum) / _sum_over_ranks(module.loss_count)
        module.loss_sum.zero_()
        module.loss_count.zero_()
        metrics = {
            "train/loss": loss.item(),
            "train/grad_norm": module.grad_norm.item(),
            "train/lr": module.learning_rate(self._step),
            "train/skipped_steps": module.guard.skipped.item(),
        }
        self.train_loss = metrics["train/loss"]
        self.skipped_steps = int(metrics["train/skipped_steps"])
        now = time.perf_counter()
        elapsed = now - self._row_started
        self.train_seconds += elapsed
        rate = self._row_steps * module.plan.batch_tokens / elapsed
        flops = flops_per_token(module.plan.model, module.plan.sequence_length)
        self._row_started, self._row_steps = now, 0
        mfu = rate * flops / (self.flops_per_second_peak * trainer.world_size)
        return metrics | {
            "time/tokens_per_second": rate,
            "time/mfu": mfu,
            "time/seconds": self.total_seconds(),
        }

    def _check_progress(self, module: LanguageModel, loss: float) -> None:
        """Mark the run as diverged after a streak of skipped steps, or of rows worse than guessing by far."""
        hopeless = not loss < math.log(module.plan.model.vocab_size) + HOPELESS_NATS
        self._hopeless_rows = self._hopeless_rows + 1 if hopeless else 0
        lost = self._hopeless_rows * self.train["log_every"] >= self.max_skipped_in_a_row
        if lost or module.guard.in_a_row.item() >= self.max_skipped_in_a_row:
            self.status = "diverged"

    def _validate(self, module: LanguageModel, *, last: bool) -> dict[str, float]:
        pause = time.perf_counter()
        with module.weights_to_judge():
            tokens = self.train.get("val_tokens") if last else self.train["eval_tokens"]
            result = score(module, self.corpus, max_tokens=tokens and int(tokens))
            if self.trackers:
                self._sample(module)
        self.val = asdict(result)
        if not last:  # losses of different sets are not compared
            self.best_loss = min(self.best_loss, result.loss)
        self._row_started += time.perf_counter() - pause  # validation is not training time
        return {
            "val/loss": result.loss,
            "val/bits_per_byte": result.bits_per_byte,
            "val/perplexity": result.perplexity,
        }

    def _sample(self, module: LanguageModel) -> None:
        self.sample = sample_text(module, self.corpus, self.train)
        if self.sample and self.trackers:
            tokens = self._step * module.plan.batch_tokens
            self.trackers.log_sample(self._step, tokens, self.train["sample_prompt"], self.sample)

    def _write(self, step: int, plan: Any, row: dict[str, float]) -> None:
        if self.trackers:
            self.trackers.log(step, {"tokens": step * plan.batch_tokens, **row})
        self._latest |= row
        status = " ".join(text.format(self._latest[name]) for name, text in STATUS.items() if name in self._latest)
        self.progress.update(step, status, log="val/loss" in row)

    def _decide(self, step: int, row: Mapping[str, float], last: bool) -> tuple[bool, bool]:
        """(stop, save), the same on all processes. With several, they only ask each other at rows."""
        every, minutes = self.checkpoint["every_steps"], self.checkpoint["every_minutes"]
        late = minutes is not None and time.perf_counter() - self._saved_at > 60 * minutes
        interrupted = self.interrupt.received is not None
        if dist.is_initialized() and dist.get_world_size() > 1:
            late, interrupted = _any_rank(late, interrupted) if row else (False, False)
        if interrupted and not last and self.status == "completed":
            self.status = "interrupted"
        due = last or (every is not None and step % every == 0)
        return self.status != "completed", due or late

    def _names(self, step: int, row: Mapping[str, float]) -> list[str]:
        """Further names under which the checkpoint of this step stays."""
        best = self.checkpoint["keep_best"] and "val/loss" in row and row["val/loss"] == self.best_loss
        kept = step in self.checkpoint.get("keep_steps", [])
        return [BEST] * best + [kept_name(step)] * kept

    def _save(self, trainer: L.Trainer, module: LanguageModel, names: list[str]) -> None:
        if self.status == "diverged":  # what is on disk is better than what this would replace
            return
        pause = time.perf_counter()
        for part in (module.loss_sum, module.loss_count):  # each rank's own, of which a checkpoint holds one
            part.copy_(_sum_over_ranks(part) / trainer.world_size)
        trainer.save_checkpoint(self.folder / LAST)
        if trainer.is_global_zero:
            for name in names:
                keep_as(self.folder, name)
        self._saved_at = time.perf_counter()
        self._row_started += self._saved_at - pause

    def total_seconds(self) -> float:
        """Seconds since the start of the fit, over all resumptions."""
        return self.seconds + time.perf_counter() - self._started


def sample_text(module: LanguageModel, corpus: Corpus, train: Mapping[str, Any]) -> str:
    """A continuation of `train.sample_prompt`, or nothing where weights are sharded or none is wanted."""
    sharded = any(hasattr(p, "full_tensor") for p in module.decoder.parameters())
    if sharded or not train["sample_tokens"]:
        return ""
    tokenizer = corpus.tokenizer
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    ids = generate(
        module.decoder,
        [start, *tokenizer.encode(train["sample_prompt"])],
        max_new_tokens=train["sample_tokens"],
        stop_id=tokenizer.eos_id,
        num_ids=tokenizer.vocab_size,
    )
    return tokenizer.decode(list(ids))


def _sum_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def _any_rank(*flags: bool) -> list[bool]:
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    votes = torch.tensor([float(flag) for flag in flags], device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]
