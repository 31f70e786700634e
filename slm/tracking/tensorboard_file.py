"""TensorBoard event files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class TensorBoardTracker:
    """Scalars and samples, with steps as the axis; `tokens` is one of the scalars."""

    def __init__(self, folder: Path, *, resume_step: int = 0) -> None:
        """Write to `folder`/tensorboard, dropping what follows `resume_step`."""
        check_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record each metric as a scalar."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        """Record the sample as text."""
        self.writer.add_text("sample", prompt + text, step)

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        """Flush and close."""
        self.writer.close()


def check_tensorboard() -> None:
    """Raise `ValueError` if the extra is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard needs tensorboard: pip install 'slm[tensorboard]'")
