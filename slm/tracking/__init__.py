"""Where metrics go: a CSV file always, Weights & Biases and TensorBoard when asked, behind one small interface."""

from slm.tracking.trackers import Tracker, Trackers, check_logger, open_trackers
from slm.tracking.wandb_run import Rows, known_run_id, record_directory

__all__ = [
    "Rows",
    "Tracker",
    "Trackers",
    "check_logger",
    "known_run_id",
    "open_trackers",
    "record_directory",
]
