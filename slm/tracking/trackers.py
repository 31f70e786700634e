"""Trackers write the metrics and the generated samples of a training run."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.runtime.files import write_atomically
from slm.tracking.wandb_run import start_run


class Tracker:
    """Writes metrics to one destination. Every row has `tokens`, the axis on which runs are compared."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an optimizer step."""
        raise NotImplementedError

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Record a generated text, before `log` of the same step. A tracker that takes only numbers ignores texts."""

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        """Record the final numbers and close."""


class CsvTracker(Tracker):
    """Appends rows with fixed columns to a CSV file; a metric that was not measured at a step is left empty."""

    def __init__(self, path: Path, columns: Sequence[str], *, resume_step: int = 0) -> None:
        """Drop rows after `resume_step`, as the run rewrites them. Raises `ValueError` if `path` holds no metrics."""
        self.path, self.columns = path, ("step", *columns)
        rows = _read_rows_until(path, resume_step) if path.exists() else []
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self.columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, table.getvalue())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row. `repr` keeps all digits of a value. Raises `ValueError` for a metric without a column."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writerow({"step": step, **{name: repr(value) for name, value in metrics.items()}})


def _read_rows_until(path: Path, step: int) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        complete_lines = [line for line in file if line.endswith("\n")]  # a killed run may have written half a line
    rows = list(csv.DictReader(complete_lines))
    if not all((row.get("step") or "").isdigit() for row in rows):
        raise ValueError(f"{path} is not a table of metrics by step: restore it, or choose another output_dir")
    return [row for row in rows if int(row["step"]) <= step]


class WandbTracker(Tracker):
    """Writes one W&B run, with the optimizer step as `_step` and with `tokens` as the axis of plots.

    A continued run keeps its id. Offline it has a second folder, which W&B merges with the first by step when synced.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.samples: list[list[Any]] = []
        self.run = start_run(folder, config, name=config["name"], settings=config["logger"])
        self.run.define_metric("tokens")
        self.run.define_metric("*", step_metric="tokens")
        for metric in ("val/loss", "val/bits_per_byte"):  # exact names: under a glob W&B keeps no minimum
            self.run.define_metric(metric, step_metric="tokens", summary="min")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one row and commit it immediately, so that a killed run loses no row."""
        self.run.log({"step": step, **metrics}, step=step, commit=True)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Add a table of all samples so far to the row of this step, the newest sample last."""
        import wandb

        self.samples.append([step, tokens, prompt, text])
        table = wandb.Table(columns=["step", "tokens", "prompt", "text"], data=self.samples)
        self.run.log({"tokens": tokens, "sample": table}, step=step)

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        self.run.summary.update(dict(summary))
        self.run.finish(exit_code=0 if succeeded else 1)


class TensorBoardTracker(Tracker):
    """Writes event files in `folder`/tensorboard, with steps as the axis; `tokens` is one of the scalars."""

    def __init__(self, folder: Path, *, resume_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        self.writer.add_text("sample", prompt + text, step)

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        self.writer.close()
