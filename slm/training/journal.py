"""Everything that a run writes while it trains: rows of metrics, validations, samples, checkpoints.

It is one callback because the order matters: at each step the row is complete before the checkpoint is written, so a
run that is killed at any moment and continued writes the same rows. Between rows, the host never waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor

from slm.data import Corpus
from slm.model.decoding import generate
from slm.runtime.progress import Progress
from slm.tracking import Tracker
from slm.training.checkpointing import BEST, LAST, link_last, step_checkpoint_name
from slm.training.module import LanguageModel, score
from slm.training.plan import Plan
from slm.training.process import Interrupt, Stop, is_first_process
from slm.training.trainer import Votes

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

HOPELESS_NATS = 1.0
"""A row counts as hopeless if its mean loss exceeds that of a uniform guess by at least this much, in nats."""

STATUS = {
    "train/loss": "loss {:.3f}",
    "val/loss": "val {:.3f}",
    "val/bits_per_byte": "({:.3f} bits/byte)",
    "time/tokens_per_second": "{:,.0f} tok/s",
    "time/mfu": "MFU {:.0%}",
}
"""Metric -> its format in the progress line."""


@dataclass
class Journal(L.Callback):
    """Logs, validates, samples and saves at the configured steps, and ends a run that is interrupted or diverges."""

    plan: Plan
    corpus: Corpus
    trackers: Sequence[Tracker]
    """Empty in all processes but the first."""
    progress: Progress
    interrupt: Interrupt
    peak_flops_per_second: float
    """Measured matmul peak of one device; of several, the mean."""
    branched_from: Mapping[str, Any] | None = None
    """`name` of the trunk and `step` at which this run left it; None for a run that started at step 0."""

    status: str = "completed"
    signal: int | None = None
    """The signal that ended an interrupted run, whichever of its processes received it."""
    val: dict[str, Any] | None = None
    """The newest validation: the fields of `Score`."""
    train_loss: float | None = None
    """Mean training loss of the newest row."""
    sample: str = ""
    """The newest generated text."""
    skipped_steps: int = 0
    best_loss: float = float("inf")
    train_seconds: float = 0.0
    """Time of training steps, over all processes of the run."""
    seconds: float = 0.0
    """Time of earlier processes of the run, up to the checkpoint from which this one continued."""
    _latest: dict[str, float] = field(default_factory=dict)
    _step: int = 0
    _row_steps: int = 0  # steps since the last row or the start of this process
    _hopeless_rows: int = 0
    _votes: Votes = field(default_factory=Votes)
    _is_late: bool = False
    _started: float = field(default_factory=time.perf_counter)
    _row_started: float = field(default_factory=time.perf_counter)
    _saved_at: float = field(default_factory=time.perf_counter)

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints store of this journal."""
        names = ("val", "train_loss", "skipped_steps", "sample", "best_loss", "branched_from", "_hopeless_rows")
        train_seconds = self.train_seconds + time.perf_counter() - self._row_started
        clocks = {"seconds": self.total_seconds(), "train_seconds": train_seconds}
        return clocks | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from a checkpoint of this run or of its trunk, which does not have this run's `branched_from`."""
        branched_from = self.branched_from
        for name, value in state_dict.items():
            setattr(self, name, value)
        self.branched_from = branched_from or self.branched_from

    def total_seconds(self) -> float:
        """Seconds since training began, over all processes of the run."""
        return self.seconds + time.perf_counter() - self._started

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks."""
        self.progress.begin(trainer.global_step)
        self._step = trainer.global_step
        self._started = self._row_started = self._saved_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: the row if one is due, then the checkpoint if one is due."""
        assert isinstance(pl_module, LanguageModel)
        self.interrupt.can_stop = False
        if trainer.global_step == self._step:  # still accumulating
            self._vote(trainer)
            if self.status == "interrupted":
                self._give_up_step(trainer, pl_module)
            return
        self._step = step = trainer.global_step
        self._row_steps += 1
        train, is_last = self.plan.settings["train"], step == self.plan.steps
        row: dict[str, float] = {}
        if step % train["log_every"] == 0 or is_last:
            row |= self._training_metrics(pl_module, trainer)
            self._check_divergence(pl_module, row["train/loss"])
        if step % train["eval_every"] == 0 or is_last:
            row |= self._validate(pl_module, is_last)
        if row:
            self._write(step, row)
        self._vote(trainer)
        every = self.plan.settings["checkpoint"]["every_steps"]
        is_due = is_last or self._is_late or (every is not None and step % every == 0)
        names = self._names_to_keep(step, row)
        should_stop = self.status != "completed"
        if self.status != "diverged" and (is_due or should_stop or names):  # a diverged run keeps its last good one
            self._save(trainer, pl_module, names)
        trainer.should_stop = should_stop

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """From here to the optimizer step, a signal may end the run at once; not one process of several, though."""
        self.interrupt.can_stop = trainer.world_size == 1
        if self.interrupt.can_stop and self.interrupt.received is not None:
            raise Stop

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """From here on, the step is finished first."""
        self.interrupt.can_stop = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the run if a signal ended it in the middle of a pass."""
        self.interrupt.can_stop = False
        if isinstance(exception, Stop):
            assert isinstance(pl_module, LanguageModel)
            self.status, self.signal = "interrupted", self.interrupt.received
            self._give_up_step(trainer, pl_module)
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock of training steps."""
        assert isinstance(pl_module, LanguageModel)
        self.train_seconds += time.perf_counter() - self._row_started
        self.skipped_steps = int(pl_module.guard.skipped.item())

    def outcome(self, steps: int) -> str:
        """The status of a run that ended after `steps` steps; if more than half were skipped, it has diverged."""
        return "diverged" if self.status == "completed" and self.skipped_steps > steps / 2 else self.status

    def _training_metrics(self, module: LanguageModel, trainer: L.Trainer) -> dict[str, float]:
        """Means and rates since the last row. Reading them makes the host wait for the device."""
        loss = _sum_over_ranks(trainer, module.loss_sum) / _sum_over_ranks(trainer, module.loss_count)
        module.loss_sum.zero_()
        module.loss_count.zero_()
        self.train_loss = loss.item()
        self.skipped_steps = int(module.guard.skipped.item())
        now = time.perf_counter()
        elapsed = now - self._row_started
        self.train_seconds += elapsed
        rate = self._row_steps * self.plan.batch_tokens / elapsed
        self._row_started, self._row_steps = now, 0
        return {
            "train/loss": self.train_loss,
            "train/grad_norm": module.grad_norm.item(),
            "train/lr": module.learning_rate(self._step),
            "train/skipped_steps": float(self.skipped_steps),
            "time/tokens_per_second": rate,
            "time/mfu": self.mfu(rate),
            "time/seconds": self.total_seconds(),
        }

    def mfu(self, tokens_per_second: float) -> float:
        """Model FLOPs utilization: FLOPs a second as a share of the measured matmul peak of all devices."""
        peak = self.peak_flops_per_second * self.plan.hardware.world_size
        return tokens_per_second * self.plan.token_flops / peak

    def _check_divergence(self, module: LanguageModel, loss: float) -> None:
        """Mark the run as diverged after a streak of skipped steps, or of rows far worse than guessing."""
        is_hopeless = not loss < math.log(self.plan.model.vocab_size) + HOPELESS_NATS  # also where the loss is NaN
        self._hopeless_rows = self._hopeless_rows + 1 if is_hopeless else 0
        hopeless_steps = self._hopeless_rows * self.plan.settings["train"]["log_every"]
        if max(hopeless_steps, module.guard.in_a_row.item()) >= self.plan.settings["optim"]["max_skipped_in_a_row"]:
            self.status = "diverged"

    def _validate(self, module: LanguageModel, is_last: bool) -> dict[str, float]:
        paused_at = time.perf_counter()
        train = self.plan.settings["train"]
        max_tokens = train.get("val_tokens") if is_last else train["eval_tokens"]
        with module.evaluation_weights():
            result = score(module, self.corpus, max_tokens=max_tokens and int(max_tokens))
            if is_first_process():
                self.sample = sample_text(module, self.corpus, train)
        if self.sample and is_first_process():
            for tracker in self.trackers:
                tracker.log_sample(self._step, self._step * self.plan.batch_tokens, train["sample_prompt"], self.sample)
        self.val = asdict(result)
        if not is_last:  # the last validation scores other tokens, so its loss does not compare with earlier ones
            self.best_loss = min(self.best_loss, result.loss)
        self._row_started += time.perf_counter() - paused_at  # validation is not training time
        return {f"val/{name}": value for name, value in result.figures().items()}

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, {"tokens": step * self.plan.batch_tokens, **row})
        self._latest |= row
        status = " ".join(text.format(self._latest[name]) for name, text in STATUS.items() if name in self._latest)
        self.progress.update(step, status, log="val/loss" in row)

    def _vote(self, trainer: L.Trainer) -> None:
        """Set the status of an interrupted run, and whether a checkpoint is late, alike in all processes."""
        minutes = self.plan.settings["checkpoint"]["every_minutes"]
        is_late = minutes is not None and time.perf_counter() - self._saved_at > 60 * minutes
        signal, is_late = self._votes.take(trainer, self.interrupt.received or 0, is_late)
        self._is_late |= is_late
        if signal and self._step < self.plan.steps and self.status == "completed":
            self.status, self.signal = "interrupted", signal

    def _give_up_step(self, trainer: L.Trainer, module: LanguageModel) -> None:
        """End the run between or within the passes of a step, with a checkpoint from before that step."""
        if self._step > 0:
            self._save(trainer, module, [])
        trainer.should_stop = True

    def _names_to_keep(self, step: int, row: Mapping[str, float]) -> list[str]:
        """Names, besides `LAST`, under which the checkpoint of this step is kept."""
        settings = self.plan.settings["checkpoint"]
        is_best = settings["keep_best"] and row.get("val/loss") == self.best_loss
        is_kept = step in settings.get("keep_steps", [])
        return [BEST] * is_best + [step_checkpoint_name(step)] * is_kept

    def _save(self, trainer: L.Trainer, module: LanguageModel, names: list[str]) -> None:
        paused_at = time.perf_counter()
        # A checkpoint holds the buffers of one rank. If each has the mean, a continued run sums over ranks to the same.
        for buffer in (module.loss_sum, module.loss_count):
            buffer.copy_(_sum_over_ranks(trainer, buffer) / trainer.world_size)
        folder = self.plan.folder.checkpoints
        trainer.save_checkpoint(folder / LAST)
        if is_first_process():
            for name in names:
                link_last(folder, name)
        self._saved_at, self._is_late = time.perf_counter(), False
        self._row_started += self._saved_at - paused_at


def sample_text(module: LanguageModel, corpus: Corpus, train: Mapping[str, Any]) -> str:
    """A continuation of `train.sample_prompt`; empty if weights are sharded or `train.sample_tokens` is 0."""
    is_sharded = any(hasattr(p, "full_tensor") for p in module.decoder.parameters())
    if is_sharded or not train["sample_tokens"]:
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


def _sum_over_ranks(trainer: L.Trainer, value: Tensor) -> Tensor:
    return trainer.strategy.reduce(value.clone(), reduce_op="sum")
