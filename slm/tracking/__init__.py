"""Write metrics and results: always to files, and on request to Weights & Biases, TensorBoard and MLflow."""

from slm.tracking.logger import check_logger, is_tracked, open_trackers, record_directory
from slm.tracking.trackers import Tracker
from slm.tracking.wandb_run import Chart, Record, Rows, known_run_id

__all__ = [
    "Chart", "Record", "Rows", "Tracker", "check_logger", "is_tracked", "known_run_id", "open_trackers",
    "record_directory",
]  # fmt: skip
