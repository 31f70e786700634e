"""Write metrics and results: always to files, and on request to Weights & Biases, TensorBoard and MLflow."""

from slm.tracking.records import is_tracked, record_directory
from slm.tracking.trackers import Tracker, check_logger, open_trackers
from slm.tracking.wandb_run import Chart, Record, Rows, known_run_id

__all__ = [
    "Chart", "Record", "Rows", "Tracker", "check_logger", "is_tracked", "known_run_id", "open_trackers",
    "record_directory",
]  # fmt: skip
