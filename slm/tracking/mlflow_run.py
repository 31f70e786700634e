"""Log a run to MLflow: by default into mlflow.db and mlruns/ in the working directory, without a server."""

import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from slm.runtime.files import write_atomically
from slm.runtime.progress import say
from slm.runtime.settings import flatten
from slm.runtime.words import is_number
from slm.tracking.trackers import Tracker
from slm.tracking.wandb_run import Record

RUN_ID = Path("mlflow", "run_id")
"""File in a directory with the MLflow id of its run. A resumed run continues under this id."""
MAX_BATCH = 100
"""Most parameters and tags that MLflow takes at a time."""
MAX_TEXT = 5000
"""Longest tag that MLflow stores without cutting it; a parameter may have 6,000 characters."""
CONNECT_SECONDS = 5.0
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would report to its developers that it is used
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default it waits for minutes for a server that is gone
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Environment variables of MLflow and their values, unless the user has set them."""
NEEDED = ("mlflow", "sqlalchemy", "alembic")


def check_mlflow(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` if MLflow is missing, or if no server answers at `tracking_uri`. Writes nothing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"logger=mlflow needs {missing[0]}: pip install 'slm[mlflow]'")
    uri = settings["tracking_uri"]
    address = urlsplit(uri)
    if address.scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///")).parent
        if not uri.startswith("sqlite:///") or not folder.is_dir():
            raise ValueError(f"logger.tracking_uri={uri} must be sqlite:///FILE, with FILE in a folder that exists")
    elif address.scheme in ("http", "https") and address.hostname:
        try:
            port = address.port or {"http": 80, "https": 443}[address.scheme]
            socket.create_connection((address.hostname, port), timeout=CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"logger.tracking_uri={uri}: no server answers ({reason}); start it, or use sqlite:///mlflow.db"
            ) from None
    else:
        raise ValueError(f"logger.tracking_uri={uri} must be sqlite:///FILE or the http(s):// address of a server")


class MlflowTracker(Tracker):
    """Writes the MLflow run of a directory: a new one, or the one under which the directory was logged before.

    `last_step` is the last step of a row that it had at the start, or -1; rows up to it are not logged again. Training
    goes on if a server stops answering: the first failure is reported, and nothing more is logged.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, name: str, settings: Mapping[str, Any]) -> None:
        """Raise `ValueError` if MLflow refuses the run. `settings` is a `logger` group that `check_logger` accepts."""
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._error_class = MlflowException
        self._is_lost = False
        try:
            self.client = MlflowClient(tracking_uri=settings["tracking_uri"])
            self.id = self._known_id(folder) or self._create(folder, config, name, settings)
            self.client.update_run(self.id, status="RUNNING")
            history = self.client.get_metric_history(self.id, "tokens")  # which each row of a training run has
            self.last_step = max((entry.step for entry in history), default=-1)
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"logger=mlflow: {settings['tracking_uri']} refuses the run: {reason}") from None

    def _known_id(self, folder: Path) -> str | None:
        """Return the id in the directory, if the place that is logged to has such a run."""
        if not (folder / RUN_ID).exists():
            return None
        run_id = (folder / RUN_ID).read_text(encoding="utf-8").strip()
        try:
            self.client.get_run(run_id)
        except self._error_class:  # logged to another place before
            return None
        return run_id

    def _create(self, folder: Path, config: Mapping[str, Any], name: str, settings: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        project = settings["project"]
        experiment = self.client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(project)
        tags = {"group": settings["group"], "job_type": settings["job_type"], "tags": ", ".join(settings["tags"])}
        tags |= {"directory": str(folder.resolve())}
        run = self.client.create_run(
            experiment_id, run_name=name, tags={key: str(value) for key, value in tags.items() if value}
        )
        run_id: str = run.info.run_id
        write_atomically(folder / RUN_ID, run_id)
        params = [Param(_name(key), str(value)[:MAX_TEXT]) for key, value in flatten(config)]
        for start in range(0, len(params), MAX_BATCH):
            self.client.log_batch(run_id, params=params[start : start + MAX_BATCH])
        return run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self.last_step:
            self._log_numbers(metrics, step)

    def log_sample(self, step: int, tokens: int, prompt: str, text: str) -> None:
        self._send("log_text", prompt + text, f"samples/step-{step:06d}.txt")

    def log_files(self, files: Sequence[Path], folder: Path) -> None:
        """Store the files under their paths in `folder`."""
        for path in files:
            parent = path.relative_to(folder).parent.as_posix()
            self._send("log_artifact", str(path), None if parent == "." else parent)

    def finish(self, summary: Mapping[str, Any], *, succeeded: bool) -> None:
        """Log the numbers of a summary as metrics and its texts as tags, store all of it in summary.json, and close."""
        self._log_numbers({key: x for key, x in summary.items() if is_number(x)}, max(0, self.last_step))
        self._send("log_dict", dict(summary), "summary.json")
        for key, value in summary.items():
            if isinstance(value, str):
                self._send("set_tag", _name(key), value[:MAX_TEXT])
        self._send("set_terminated", "FINISHED" if succeeded else "FAILED")

    def _log_numbers(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._send("log_batch", [Metric(_name(name), float(value), now, step) for name, value in numbers.items()])

    def _send(self, method: str, *arguments: Any) -> None:
        if self._is_lost:
            return
        try:
            getattr(self.client, method)(self.id, *arguments)
        except (self._error_class, OSError) as error:
            self._is_lost = True
            say(f"WARNING: MLflow takes no more ({str(error).splitlines()[0]}): the files have all metrics")


def record_in_mlflow(record: Record) -> None:
    """Log the summary and the files of a record as one run; a repeated record is the same run."""
    settings = {**record.config["logger"], "job_type": record.kind}
    run = MlflowTracker(record.folder, record.settings, name=record.name, settings=settings)
    run.log_files(record.files, record.folder)
    run.finish(record.summary, succeeded=True)


def _name(key: str) -> str:
    """Return a key with only characters that MLflow accepts."""
    return re.sub(r"[^\w\-. /]", "_", key)
