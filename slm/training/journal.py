"""Everything that a run writes while it trains: rows of metrics, validations, samples, checkpoints.

All of it is one callback because the order matters: each step writes its row before its checkpoint, so a run that is
killed at any moment and continued writes the same rows. Between rows, the host never waits for the device.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor

from slm.data.corpus import Corpus
from slm.runtime.progress import Progress
from slm.tracking import Tracker
from slm.training.checkpointing import BEST, LAST, link_last, step_checkpoint_name
from slm.training.module import LOSSES, LanguageModel
from slm.training.plan import Plan
from slm.training.process import Interrupt, Stop, is_first_process
from slm.training.tasks import EvalTask, score_tasks, task_columns
from slm.training.trainer import Votes
from slm.training.validation import sample_text, score

COLUMNS = (
    "tokens", "train/loss", "train/grad_norm", "train/lr", "train/skipped_steps", "val/loss", "val/bits_per_byte",
    "val/perplexity", "time/tokens_per_second", "time/mfu", "time/seconds",
)  # fmt: skip
"""Columns of metrics.csv. Columns under `time/` differ from run to run; all others depend only on the config."""
SCORED_COLUMNS = ("scored_tokens",)
"""Additional columns for conversations: `tokens` counts all positions, of which only these are learned from."""
HOPELESS_NATS = 1.0
"""A row counts as hopeless if its mean loss is at least this many nats above the loss of a uniform guess."""
PROGRESS_FORMATS = {
    "train/loss": "loss {:.3f}", "val/loss": "val {:.3f}", "val/bits_per_byte": "({:.3f} bits/byte)",
    "time/tokens_per_second": "{:,.0f} tok/s", "time/mfu": "MFU {:.0%}",
}  # fmt: skip
"""Metric -> how the progress line shows it."""


@dataclass
class Journal(L.Callback):
    """Logs, validates, samples and saves at the configured steps, and ends a run that is interrupted or diverges."""

    plan: Plan
    corpus: Corpus
    trackers: Sequence[Tracker]
    """Empty except in the first process."""
    progress: Progress
    interrupt: Interrupt
    peak_flops_per_second: float
    """Measured matmul peak of one device; the mean over the devices if there are several."""
    tasks: Sequence[EvalTask] = ()
    branched_from: Mapping[str, Any] | None = None
    """`name` of the trunk and `step` at which this run left it; None for a run that started at step 0."""

    status: str = "completed"  # until the run is interrupted or diverges
    signal: int | None = None
    """The signal that interrupted the run, received by any of its processes."""
    val: dict[str, Any] | None = None
    """The newest validation: the fields of `Score`."""
    task_results: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task -> result of the newest validation."""
    train_loss: float | None = None
    """Mean training loss of the newest row."""
    sample: str = ""
    """The newest generated text."""
    skipped_steps: int = 0
    scored_tokens: int | None = None
    """Tokens of an assistant that the run has learned from; None for text that is not conversations."""
    best_loss: float = float("inf")
    train_seconds: float = 0.0
    """Time spent in training steps since step 0, including the time before the run was interrupted and continued."""
    seconds: float = 0.0
    """Time from step 0 to the checkpoint from which this process continued the run."""
    _latest: dict[str, float] = field(default_factory=dict)  # newest value of each metric
    _step: int = 0
    _row_steps: int = 0  # steps since the last row or the start of this process
    _hopeless_rows: int = 0
    _votes: Votes = field(default_factory=Votes)
    _is_late: bool = False  # a checkpoint is due under `checkpoint.every_minutes`
    _started: float = field(default_factory=time.perf_counter)
    _row_started: float = field(default_factory=time.perf_counter)  # moved forward by the length of every pause
    _saved_at: float = field(default_factory=time.perf_counter)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores of this journal."""
        names = ("val", "task_results", "train_loss", "skipped_steps", "scored_tokens", "sample", "best_loss",
                 "branched_from", "_hopeless_rows")  # fmt: skip
        train_seconds = self.train_seconds + time.perf_counter() - self._row_started
        times = {"seconds": self.total_seconds(), "train_seconds": train_seconds}
        return times | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore from a checkpoint of this run or its trunk. This run's own `branched_from`, if any, is kept."""
        for name, value in state_dict.items():
            if name != "branched_from" or self.branched_from is None:
                setattr(self, name, value)

    def total_seconds(self) -> float:
        """Return the time from step 0 until now, without the time for which the run was interrupted."""
        return self.seconds + time.perf_counter() - self._started

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clocks."""
        self.progress.begin(trainer.global_step)
        self._step = trainer.global_step
        self._started = self._row_started = self._saved_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step, write the row if it is due, then the checkpoint if it is due."""
        assert isinstance(pl_module, LanguageModel)
        self.interrupt.can_stop = False
        if trainer.global_step == self._step:  # still accumulating gradients
            self._vote(trainer)
            if self.status == "interrupted":
                self._give_up_step(trainer, pl_module)
            return
        step = trainer.global_step
        self._step = step
        self._row_steps += 1
        train = self.plan.settings["train"]
        is_last = step == self.plan.steps
        row: dict[str, float] = {}
        if step % train["log_every"] == 0 or is_last:
            row |= self._training_metrics(pl_module, trainer)
            self._check_divergence(pl_module, row["train/loss"])
        if step % train["eval_every"] == 0 or is_last:
            row |= self._validate(pl_module, is_last)
        if row:
            self._write(step, row)
        self._vote(trainer)
        interval = self.plan.settings["checkpoint"]["every_steps"]
        is_due = is_last or self._is_late or (interval is not None and step % interval == 0)
        extra_names = self._extra_names(step, row)
        should_stop = self.status != "completed"
        # A diverged run keeps its earlier checkpoints.
        if self.status != "diverged" and (is_due or should_stop or extra_names):
            self._save(trainer, pl_module, extra_names)
        trainer.should_stop = should_stop

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let a signal stop a run of one process in the middle of a pass. Several processes must agree first."""
        self.interrupt.can_stop = trainer.world_size == 1
        if self.interrupt.can_stop and self.interrupt.received is not None:
            raise Stop

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """From here on, a signal stops the run only after the optimizer step."""
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
        """Return the status of a run that ended after `steps` steps. If over half of them were skipped, it diverged."""
        has_diverged = self.status == "completed" and self.skipped_steps > steps / 2
        return "diverged" if has_diverged else self.status

    def _training_metrics(self, module: LanguageModel, trainer: L.Trainer) -> dict[str, float]:
        """Return means and rates since the last row. Reading them makes the host wait for the device."""
        loss = _sum_over_ranks(trainer, module.loss_sum) / _sum_over_ranks(trainer, module.loss_count)
        module.loss_sum.zero_()
        module.loss_count.zero_()
        losses = dict(zip(LOSSES, loss.flatten().tolist(), strict=False))
        self.train_loss = losses["train/loss"]
        self.skipped_steps = int(module.guard.skipped.item())
        self.scored_tokens = int(module.scored_tokens.item()) if module.counts_scored else None
        now = time.perf_counter()
        elapsed = now - self._row_started
        self.train_seconds += elapsed
        tokens_per_second = self._row_steps * self.plan.batch_tokens / elapsed
        self._row_started, self._row_steps = now, 0
        return {
            **losses,
            "train/grad_norm": module.grad_norm.item(),
            "train/lr": module.learning_rate(self._step),
            "train/skipped_steps": float(self.skipped_steps),
            "time/tokens_per_second": tokens_per_second,
            "time/mfu": self.mfu(tokens_per_second),
            "time/seconds": self.total_seconds(),
            **({"scored_tokens": float(self.scored_tokens)} if self.scored_tokens is not None else {}),
        }

    def mfu(self, tokens_per_second: float) -> float:
        """Return the model FLOPs utilization: FLOP/s as a share of the measured matmul peak of all devices."""
        peak = self.peak_flops_per_second * self.plan.hardware.world_size
        return tokens_per_second * self.plan.token_flops / peak

    def _check_divergence(self, module: LanguageModel, loss: float) -> None:
        """Mark the run as diverged if too many steps in a row were skipped or belong to hopeless rows."""
        is_hopeless = not loss < math.log(self.plan.model.vocab_size) + HOPELESS_NATS  # `not <` is also true for NaN
        self._hopeless_rows = self._hopeless_rows + 1 if is_hopeless else 0
        hopeless_steps = self._hopeless_rows * self.plan.settings["train"]["log_every"]
        if max(hopeless_steps, module.guard.in_a_row.item()) >= self.plan.settings["optim"]["max_skipped_in_a_row"]:
            self.status = "diverged"

    def _validate(self, module: LanguageModel, is_last: bool) -> dict[str, float]:
        paused_at = time.perf_counter()
        train = self.plan.settings["train"]
        max_tokens = train.get("val_tokens") if is_last else train["eval_tokens"]  # None means all tokens
        with module.evaluation_weights():
            val = score(module, self.corpus, max_tokens=None if max_tokens is None else int(max_tokens))
            self.task_results = score_tasks(module, self.tasks)
            if is_first_process():
                self.sample = sample_text(module, self.corpus, train)
        if self.sample:
            for tracker in self.trackers:
                tracker.log_sample(self._step, self._step * self.plan.batch_tokens, train["sample_prompt"], self.sample)
        self.val = asdict(val)
        if not is_last:  # the last validation scores other tokens, so its loss is not comparable with earlier losses
            self.best_loss = min(self.best_loss, val.loss)
        self._row_started += time.perf_counter() - paused_at  # validation is not training time
        return val.row() | task_columns(self.task_results)

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, {"tokens": step * self.plan.batch_tokens, **row})
        self._latest |= row
        texts = [form.format(self._latest[name]) for name, form in PROGRESS_FORMATS.items() if name in self._latest]
        self.progress.update(step, " ".join(texts), log="val/loss" in row)

    def _vote(self, trainer: L.Trainer) -> None:
        """Agree with all processes on whether the run is interrupted and whether a checkpoint is late."""
        minutes = self.plan.settings["checkpoint"]["every_minutes"]
        is_late = minutes is not None and time.perf_counter() - self._saved_at > 60 * minutes  # in this process
        any_signal, is_any_late = self._votes.take(trainer, self.interrupt.received or 0, is_late)
        self._is_late |= is_any_late
        if any_signal and self._step < self.plan.steps and self.status == "completed":
            self.status, self.signal = "interrupted", any_signal

    def _give_up_step(self, trainer: L.Trainer, module: LanguageModel) -> None:
        """Discard an unfinished step: save the state after the step before it, and end the run."""
        if self._step > 0:
            self._save(trainer, module, [])
        trainer.should_stop = True

    def _extra_names(self, step: int, row: Mapping[str, float]) -> list[str]:
        """Return the file names, besides `LAST`, under which the checkpoint of this step is kept."""
        settings = self.plan.settings["checkpoint"]
        names = [step_checkpoint_name(step)] if step in settings.get("keep_steps", []) else []
        if settings["keep_best"] and row.get("val/loss") == self.best_loss:
            names.append(BEST)
        return names

    def _save(self, trainer: L.Trainer, module: LanguageModel, extra_names: list[str]) -> None:
        paused_at = time.perf_counter()
        # A checkpoint holds one rank's buffers, which a continued run loads in all ranks: store their mean.
        for buffer in (module.loss_sum, module.loss_count):
            buffer.copy_(_sum_over_ranks(trainer, buffer) / trainer.world_size)
        folder = self.plan.folder.checkpoints
        trainer.save_checkpoint(folder / LAST)
        if is_first_process():
            for name in extra_names:
                link_last(folder, name)
        self._saved_at, self._is_late = time.perf_counter(), False
        self._row_started += self._saved_at - paused_at  # saving is not training time


def _sum_over_ranks(trainer: L.Trainer, value: Tensor) -> Tensor:
    return trainer.strategy.reduce(value.clone(), reduce_op="sum")
