"""What a `logger` group selects: the trackers of a training run, and where a directory of results is recorded."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slm.runtime.words import is_number
from slm.tracking.mlflow_run import MlflowTracker, check_mlflow, record_in_mlflow
from slm.tracking.trackers import CsvTracker, TensorBoardTracker, Tracker, WandbTracker
from slm.tracking.wandb_run import Record, check_wandb, record_in_wandb


def is_tracked(settings: Mapping[str, Any]) -> bool:
    """Whether a `logger` group selects any tracker besides files."""
    return any(settings.get(name) for name in ("wandb", "tensorboard", "mlflow"))


def check_logger(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for `logger` settings that cannot work on this machine. Opens and writes nothing."""
    if settings["wandb"]:
        check_wandb(settings)
    if settings["tensorboard"] and find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard needs tensorboard: pip install 'slm[tensorboard]'")
    if settings.get("mlflow"):  # configs of older runs lack the key
        check_mlflow(settings)


def open_trackers(
    folder: Path, config: Mapping[str, Any], *, columns: Sequence[str], resume_step: int = 0
) -> list[Tracker]:
    """Open the trackers that `config["logger"]` selects for the run directory `folder`; metrics.csv has `columns`."""
    settings = config["logger"]
    trackers: list[Tracker] = [CsvTracker(folder / "metrics.csv", columns, resume_step=resume_step)]
    if settings["wandb"]:
        trackers.append(WandbTracker(folder, config))
    if settings["tensorboard"]:
        trackers.append(TensorBoardTracker(folder, resume_step=resume_step))
    if settings.get("mlflow"):
        trackers.append(MlflowTracker(folder, config, name=config["name"], settings=settings))
    return trackers


def record_directory(record: Record) -> None:
    """Log a record with the trackers that its config selects. Only W&B draws charts; TensorBoard stores no files."""
    settings = record.config["logger"]
    if settings["wandb"]:
        record_in_wandb(record)
    if settings["tensorboard"]:
        record_in_tensorboard(record)
    if settings.get("mlflow"):
        record_in_mlflow(record)


def record_in_tensorboard(record: Record) -> None:
    """Write event files in FOLDER/tensorboard: tables as texts, images, and the summary's numbers as scalars.

    The step is the number of earlier records.
    """
    import matplotlib.image
    from torch.utils.tensorboard import SummaryWriter

    events = record.folder / "tensorboard"
    step = len(list(events.glob("events.*")))
    with SummaryWriter(str(events)) as writer:
        for name, (columns, rows) in record.tables.items():
            writer.add_text(f"tables/{name}", _markdown([columns, ["---"] * len(columns), *rows]), step)
        for path in record.images:
            writer.add_image(f"figures/{path.stem}", matplotlib.image.imread(path), step, dataformats="HWC")
        for name, value in record.summary.items():
            if is_number(value):
                writer.add_scalar(f"summary/{name}", value, step)
            else:
                writer.add_text(f"summary/{name}", str(value), step)


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    cells = [["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
