"""Checkpoints of a run. Each is written under a temporary name and then renamed, and the last two are kept.

DIR/checkpoints/last.ckpt is the newest checkpoint, previous.ckpt the checkpoint before it. Optionally kept are
best.ckpt (the checkpoint with the lowest validation loss) and step-000500.ckpt (the one at step 500). On one CPU, a run
that was interrupted and resumed equals an uninterrupted run bit for bit. Files are read with `weights_only=True`.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from slm.checkpoints.location import LAST, PREVIOUS
from slm.runtime.files import is_intact_zip, replace

BEST = "best.ckpt"
SCHEMA = 1  # version stored in every checkpoint; increase it when the contents of checkpoints change


class CheckpointError(ValueError):
    """A checkpoint could not be written, or no checkpoint can be read."""


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write `checkpoint` to `path` completely or not at all, and rename an existing file at `path` to previous.ckpt.

    Raises `CheckpointError` if the checkpoint cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({**checkpoint, "slm_schema": SCHEMA}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            replace(path, path.with_name(PREVIOUS))
        replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB free there"
        raise CheckpointError(
            f"checkpoint {path} could not be written ({reason}): free space on that disk, and give the "
            "same command and output_dir to continue from the last good checkpoint, which is kept"
        ) from error


def link_last(folder: Path, name: str) -> None:
    """Give the newest checkpoint a second name: a hard link, or a copy if the file system has no hard links."""
    partial = folder / (name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(folder / LAST, partial)
    except OSError:
        shutil.copyfile(folder / LAST, partial)
    replace(partial, folder / name)


def newest_intact(folder: Path) -> Path | None:
    """Return the newest intact checkpoint; None if there are none. Raises `CheckpointError` if all are damaged."""
    paths = resumable_checkpoints(folder)
    newest = first_intact(paths)
    if paths and newest is None:
        raise CheckpointError(f"no checkpoint in {folder} is intact: choose another output_dir to start again")
    return newest


def resumable_checkpoints(folder: Path) -> list[Path]:
    """Return the existing checkpoints from which a run may resume, newest first. They may be damaged."""
    return [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]


def first_intact(paths: Iterable[Path]) -> Path | None:
    """Return the first intact checkpoint, or None. Prints a line for each damaged checkpoint that it skips."""
    for path in paths:
        if is_intact_zip(path):
            return path
        print(f"checkpoint {path} is damaged and is skipped", flush=True)
    return None


def step_checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint that is kept for a step in `checkpoint.keep_steps`."""
    return f"step-{step:06d}.ckpt"


def step_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return step and path of each checkpoint that `checkpoint.keep_steps` has kept, the latest step first."""
    candidates = [(path.stem.removeprefix("step-"), path) for path in folder.glob("step-*.ckpt")]
    return sorted(((int(digits), path) for digits, path in candidates if digits.isdigit()), reverse=True)


def checkpoint_step(path: Path) -> int:
    """Return the optimizer step of a checkpoint. Raises `CheckpointError` if another version of slm wrote it."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if checkpoint.get("slm_schema") != SCHEMA:
        raise CheckpointError(f"checkpoint {path} was written by another version of slm: continue it with that version")
    return checkpoint["global_step"]
