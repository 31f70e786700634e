"""Write metrics: always to a CSV file, and on request to Weights & Biases and TensorBoard."""

from slm.tracking.trackers import Tracker, check_logger, open_trackers
from slm.tracking.wandb_run import Chart, Rows, known_run_id, record_directory

__all__ = ["Chart", "Rows", "Tracker", "check_logger", "known_run_id", "open_trackers", "record_directory"]
