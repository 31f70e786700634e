"""Checkpoints that a run can always go on from: written under another name, flushed, then renamed; the last two kept.

DIR/checkpoints/last.ckpt is the newest, previous.ckpt the one before it. If asked for, best.ckpt is that of the lowest
validation loss and step-000500.ckpt that of step 500. Each is what Lightning needs to continue bit for bit, read with
`weights_only=True`.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from slm.runtime.files import is_intact_zip

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

SCHEMA = 1
"""Part of every checkpoint: raise it when what a checkpoint holds changes."""


class CheckpointError(ValueError):
    """A checkpoint could not be written, or none that is left can be read."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Saves to a temporary name in the same folder, keeps the file that was there as previous.ckpt, then renames."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path` whole or not at all. Raises `CheckpointError` if the disk will not take it."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint | {"slm_schema": SCHEMA}, file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a short write as a RuntimeError
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"checkpoint {path} could not be written ({_reason(error, path)}); the last good one is kept: "
                "make room and give the same command with the same output_dir to continue from it"
            ) from error


def _reason(error: BaseException, path: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB free on that disk"


def newest_intact(folder: Path) -> Path | None:
    """The checkpoint to continue from, or None in a folder without any. A damaged newest one is passed over.

    Raises `CheckpointError` if there are checkpoints and none is whole.
    """
    found = to_continue_from(folder)
    newest = first_intact(found)
    if found and newest is None:
        raise CheckpointError(f"no checkpoint in {folder} is whole: choose another output_dir to start again")
    return newest


def to_continue_from(folder: Path) -> list[Path]:
    """Checkpoints, whole or not, that a run in `folder` would continue from, the newest first."""
    return [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]


def kept_steps(folder: Path) -> list[tuple[int, Path]]:
    """Steps whose checkpoints were kept by `checkpoint.keep_steps`, the latest first."""
    found = [(path.stem.removeprefix("step-"), path) for path in folder.glob("step-*.ckpt")]
    return sorted(((int(step), path) for step, path in found if step.isdigit()), reverse=True)


def kept_name(step: int) -> str:
    """File name of the kept checkpoint of `step`."""
    return f"step-{step:06d}.ckpt"


def first_intact(paths: Iterable[Path]) -> Path | None:
    """The first checkpoint that is whole; says so of each damaged one before it."""
    for path in paths:
        if is_intact_zip(path):
            return path
        print(f"checkpoint {path} is damaged and is passed over", flush=True)
    return None


def step_of(path: Path) -> int:
    """Optimizer steps done in a checkpoint. Raises `CheckpointError` if another version of slm wrote it."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if checkpoint.get("slm_schema") != SCHEMA:
        raise CheckpointError(f"checkpoint {path} was written by another version of slm: continue it with that version")
    return checkpoint["global_step"]


def keep_as(folder: Path, name: str) -> None:
    """Keep the newest checkpoint under a second name, sharing its bytes where the file system can."""
    partial = folder / (name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(folder / LAST, partial)
    except OSError:
        shutil.copyfile(folder / LAST, partial)
    os.replace(partial, folder / name)


class RandomState(L.Callback):
    """Carries the global random states in the checkpoint; Lightning does not."""

    def state_dict(self) -> dict[str, Any]:
        """States of torch (all devices) and of `random`, as tensors and plain values."""
        version, internal, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "python": [version, list(internal), gauss],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them. A checkpoint of another number of GPUs keeps the fresh states of those."""
        torch.set_rng_state(state_dict["torch"])
        if len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state_dict["cuda"])
        version, internal, gauss = state_dict["python"]
        random.setstate((version, tuple(internal), gauss))
