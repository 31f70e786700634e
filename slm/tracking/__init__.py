"""Where metrics go: a CSV file always, Weights & Biases and TensorBoard when asked, behind one small interface."""

from slm.tracking.base import Tracker, Trackers
from slm.tracking.directory import Rows, record_directory
from slm.tracking.evaluation import record_evaluation
from slm.tracking.open import check_logger, open_trackers
from slm.tracking.wandb_run import known_run_id

__all__ = [
    "Rows",
    "Tracker",
    "Trackers",
    "check_logger",
    "known_run_id",
    "open_trackers",
    "record_directory",
    "record_evaluation",
]
