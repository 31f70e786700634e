"""Start a Weights & Biases (W&B) run that can be continued, and record a directory of results as a run."""

import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from slm.runtime.files import write_atomically

RUN_ID = Path("wandb", "run_id")
"""File in a run directory with the W&B id of the run. A resumed run continues under this id."""
LAUNCH = "wandb.sdk.launch"
CHART_PRESET = "wandb/line/v0"
"""The preset of `Chart`. W&B has it for every account, and stores its table under the key of the chart and `_table`."""
MAX_ARTIFACT_NAME = 128
"""Largest number of characters in a name that W&B accepts."""

Rows = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""A table: its column names and its rows."""


@dataclass(frozen=True)
class Chart:
    """A chart that W&B draws from the table `rows`: column `y` against column `x`, one line per value of `line`.

    The axes of its preset are linear, so a log axis is a column of logarithms. If several runs are selected in W&B, the
    chart shows the lines of all of them.
    """

    title: str
    rows: Rows
    x: str
    y: str
    line: str

    @property
    def fields(self) -> dict[str, str]:
        """Field of the preset -> column."""
        return {"x": self.x, "y": self.y, "stroke": self.line}


@dataclass(frozen=True, kw_only=True)
class Record:
    """What trackers store of a directory of results, such as an analysis or an evaluation."""

    folder: Path
    kind: str
    """Such as "analysis"."""
    name: str
    config: Mapping[str, Any]
    """With the group `logger`, which `check_logger` must have accepted."""
    tables: Mapping[str, Rows]
    images: Sequence[Path]
    summary: Mapping[str, Any]
    """Numbers and texts."""
    files: Sequence[Path]
    """Files in `folder`."""
    charts: Mapping[str, Chart] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The config without `logger`."""
        return {key: value for key, value in self.config.items() if key != "logger"}


def start_run(folder: Path, config: Mapping[str, Any], *, name: str, settings: Mapping[str, Any]) -> Any:
    """Start or continue the W&B run of `folder`; `settings` is a `logger` group that `check_logger` accepts."""
    import wandb

    mode = settings["mode"]
    with _without_launcher():
        return wandb.init(
            mode=mode,
            # Absolute: W&B's service may have been started in another working directory.
            dir=str(folder.resolve()),
            id=_read_or_make_run_id(folder),
            resume="allow" if mode == "online" else None,
            name=name,
            config=dict(config),
            project=settings["project"],
            entity=settings["entity"],
            group=settings["group"],
            tags=list(settings["tags"]),
            job_type=settings["job_type"],
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=mode != "online"),
        )


@contextmanager
def _without_launcher() -> Iterator[None]:
    """Keep `wandb.init` from importing W&B's launcher of jobs, which takes half a second once torch is imported.

    `wandb.init` imports a module of the package `LAUNCH` to look for inputs that the launcher gave. An empty package
    with the same path stands in for it, so that its other modules are not imported.
    """
    import wandb.sdk

    if LAUNCH in sys.modules:
        yield
        return
    stand_in = ModuleType(LAUNCH)
    stand_in.__path__ = [str(Path(wandb.sdk.__path__[0]) / "launch")]
    sys.modules[LAUNCH] = stand_in
    try:
        yield
    finally:
        del sys.modules[LAUNCH]  # whoever needs the launcher later gets the real package


def record_in_wandb(record: Record) -> None:
    """Log a record as one W&B run: charts under charts/, images under figures/, files as an artifact."""
    import wandb

    # The step is the number of earlier records, because rows at a step that is taken would replace those of its record.
    folder = record.folder
    step = len(list((folder / RUN_ID).parent.glob(f"*run-*-{known_run_id(folder)}")))
    run = start_run(folder, record.settings, name=record.name, settings=record.config["logger"])
    try:
        logged: dict[str, Any] = {key: _table(rows) for key, rows in record.tables.items()}
        for key, chart in record.charts.items():
            title = {"title": chart.title}
            logged[f"charts/{key}"] = wandb.plot_table(CHART_PRESET, _table(chart.rows), chart.fields, title)
        run.log(logged | {f"figures/{path.stem}": wandb.Image(str(path)) for path in record.images}, step=step)
        run.summary.update(dict(record.summary))
        artifact = wandb.Artifact(artifact_name(record.name, run.id), type=record.kind)
        for path in record.files:
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
        run.log_artifact(artifact)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _table(rows: Rows) -> Any:
    import wandb

    columns, values = rows
    return wandb.Table(columns=list(columns), data=[list(row) for row in values], allow_mixed_types=True)


def artifact_name(name: str, run_id: str) -> str:
    """Returns NAME-RUN_ID with only the characters that W&B accepts: letters, digits, `-`, `_` and `.`."""
    accepted = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    suffix = f"-{run_id}"
    return accepted[: MAX_ARTIFACT_NAME - len(suffix)] + suffix


def check_wandb(settings: Mapping[str, Any]) -> None:
    """Raise `ValueError` for an invalid mode, or for `online` without an API key, because slm never asks for a key."""
    mode = settings["mode"]
    if mode not in ("offline", "online", "disabled"):
        raise ValueError(f"logger.mode={mode} must be offline, online or disabled")
    if mode == "online" and not has_api_key():
        raise ValueError("logger.mode=online needs an API key: run `wandb login` once, or set logger.mode=offline")


def has_api_key() -> bool:
    """Whether W&B knows the API key of an account. Asks nobody."""
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)


def known_run_id(folder: Path) -> str | None:
    """The W&B id under which the run directory `folder` was logged; None if it never was."""
    path = folder / RUN_ID
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _read_or_make_run_id(folder: Path) -> str:
    """The W&B id of the run directory `folder`; a new id is written before anything is logged under it."""
    run_id = known_run_id(folder)
    if run_id is None:
        run_id = secrets.token_hex(4)
        write_atomically(folder / RUN_ID, run_id)
    return run_id
