"""Weights & Biases. The run id is kept in the run directory, so that a resumed run goes on under the same id."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Exact names: under a glob such as val/* W&B keeps no minimum.
RUN_ID = Path("wandb", "run_id")
"""In a run directory."""
MINIMA = ("val/loss", "val/bits_per_byte")


class WandbTracker:
    """One W&B run, whose `_step` is the optimizer's and whose axis is `tokens`.

    A resumed run adds to it, offline as another folder under the same id: since each row says its step, a sync of both
    puts every row in its place, and rows that were taken twice hold the same values at the same step.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, name: str, settings: Mapping[str, Any]) -> None:
        """Start or continue the run of run directory `folder`. `settings` is the `logger` config group."""
        self.samples: list[list[Any]] = []
        self.run = start_run(folder, config, name=name, settings=settings)
        self.run.define_metric("tokens")
        self.run.define_metric("*", step_metric="tokens")
        for metric in MINIMA:
            self.run.define_metric(metric, step_metric="tokens", summary="min")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one row at its step."""
        # Committed, so that a run killed before its next row loses none.
        self.run.log({"step": step, **metrics}, step=step, commit=True)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Hold the table of all samples so far, the newest last, for the row of this step."""
        import wandb

        self.samples.append([step, tokens, prompt, text])
        table = wandb.Table(columns=["step", "tokens", "prompt", "text"], data=self.samples)
        self.run.log({"tokens": tokens, "sample": table}, step=step)

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        """Write final figures into the summary and end the run."""
        self.run.summary.update(dict(summary))
        self.run.finish(exit_code=0 if succeeded else 1)


def start_run(folder: Path, config: Mapping[str, Any], *, name: str, settings: Mapping[str, Any]) -> Any:
    """Start, or continue, the W&B run of `folder`. Raises `ValueError` for settings that `check_wandb` refuses."""
    import wandb

    check_wandb(settings)
    mode = settings["mode"]
    return wandb.init(
        mode=mode,
        dir=str(folder.resolve()),  # by a service that may have been started in another working directory
        id=_run_id(folder),
        resume="allow" if mode == "online" else None,
        name=name,
        config=dict(config),
        project=settings["project"],
        entity=settings["entity"],
        group=settings["group"],
        tags=list(settings["tags"]),
        job_type=settings["job_type"],
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=mode != "online"),
    )


def parts_written(folder: Path) -> int:
    """How often the run of `folder` was started here before, each time in a folder of its own under one id."""
    return len(list((folder / RUN_ID).parent.glob(f"*run-*-{known_run_id(folder)}")))


def check_wandb(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a mode that is none, or `online` without an API key: nothing here ever asks for one."""
    mode = settings["mode"]
    if mode not in ("offline", "online", "disabled"):
        raise ValueError(f"logger.mode={mode} must be offline, online or disabled")
    if mode == "online" and not _has_api_key():
        raise ValueError("logger.mode=online needs an API key: run `wandb login` once, or set logger.mode=offline")


def known_run_id(folder: Path) -> str | None:
    """The id under which the run directory `folder` is logged; None if it never was."""
    path = folder / RUN_ID
    return path.read_text().strip() if path.exists() else None


def _run_id(folder: Path) -> str:
    """The id of this run directory, written before anything is logged under it."""
    path = folder / RUN_ID
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("run_id.partial")
        partial.write_text(secrets.token_hex(4))
        os.replace(partial, path)
    return path.read_text().strip()


def _has_api_key() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
