"""Record a directory of results, such as an analysis or an evaluation, with the trackers that the config selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from slm.runtime.words import is_number
from slm.tracking.mlflow_run import record_in_mlflow
from slm.tracking.wandb_run import Chart, Rows, record_in_wandb

SUMMARY = "summary"


def is_tracked(settings: Mapping[str, Any]) -> bool:
    """Whether a `logger` group selects any tracker besides files."""
    return any(settings.get(name) for name in ("wandb", "tensorboard", "mlflow"))


def record_directory(
    folder: Path,
    *,
    kind: str,
    name: str,
    config: Mapping[str, Any],
    tables: Mapping[str, Rows],
    images: Sequence[Path],
    summary: Mapping[str, Any],
    files: Sequence[Path],
    charts: Mapping[str, Chart] = MappingProxyType({}),
) -> None:
    """Log `tables`, `images`, `summary` (numbers and texts) and `files` of `folder` as one run named `name`.

    `kind` says what it is, such as "analysis". Only W&B draws `charts`, and TensorBoard stores no files. `check_logger`
    must have accepted the `logger` group of `config`, which selects the trackers.
    """
    settings = config["logger"]
    if settings["wandb"]:
        record_in_wandb(
            folder,
            kind=kind,
            name=name,
            config=config,
            tables=tables,
            images=images,
            summary=summary,
            files=files,
            charts=charts,
        )
    if settings["tensorboard"]:
        record_in_tensorboard(folder, tables=tables, images=images, summary=summary)
    if settings.get("mlflow"):
        record_in_mlflow(folder, kind=kind, name=name, config=config, summary=summary, files=files)


def record_in_tensorboard(
    folder: Path, *, tables: Mapping[str, Rows], images: Sequence[Path], summary: Mapping[str, Any]
) -> None:
    """Write event files in `folder`/tensorboard: tables as texts, images, and the summary's numbers as scalars.

    The step is the number of earlier records.
    """
    import matplotlib.image
    from torch.utils.tensorboard import SummaryWriter

    events = folder / "tensorboard"
    step = len(list(events.glob("events.*")))
    with SummaryWriter(str(events)) as writer:
        for name, (columns, rows) in tables.items():
            writer.add_text(f"tables/{name}", _markdown([columns, ["---"] * len(columns), *rows]), step)
        for path in images:
            writer.add_image(f"figures/{path.stem}", matplotlib.image.imread(path), step, dataformats="HWC")
        for name, value in summary.items():
            if is_number(value):
                writer.add_scalar(f"{SUMMARY}/{name}", value, step)
            else:
                writer.add_text(f"{SUMMARY}/{name}", str(value), step)


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    cells = [["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
