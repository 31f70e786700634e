"""Record a directory of results, such as an analysis or an evaluation, with the trackers that the config selects."""

from collections.abc import Mapping, Sequence
from typing import Any

from slm.runtime.words import is_number
from slm.tracking.mlflow_run import record_in_mlflow
from slm.tracking.wandb_run import Record, record_in_wandb

SUMMARY = "summary"


def is_tracked(settings: Mapping[str, Any]) -> bool:
    """Whether a `logger` group selects any tracker besides files."""
    return any(settings.get(name) for name in ("wandb", "tensorboard", "mlflow"))


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
                writer.add_scalar(f"{SUMMARY}/{name}", value, step)
            else:
                writer.add_text(f"{SUMMARY}/{name}", str(value), step)


def _markdown(rows: Sequence[Sequence[Any]]) -> str:
    cells = [["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
