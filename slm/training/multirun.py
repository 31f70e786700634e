"""What `train.py -m` prints around its runs: `2/4  model=tiny_ls seed=1` before each, and a table after the last."""

import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from slm.runtime.files import read_json_object
from slm.runtime.words import NO_VALUE, duration, exact_count, is_number, plural, shortlist

WIDTH = 160
"""Width of the table if the output is no terminal."""


class MultirunDisplay(Callback):
    """A callback of Hydra (`hydra.callbacks` in conf/train.yaml). Launchers copy it into the processes of the runs."""

    current: "ClassVar[MultirunDisplay | None]" = None
    """The multirun that this process started; None in a single run, and in a process that a launcher started."""

    def __init__(self) -> None:
        self.swept: list[str] | None = None
        """The swept overrides of each run, or None if they are not known before the runs."""
        self.folder = Path()
        self.folders: dict[int, Path] = {}
        """Number -> directory of each run that this process has started."""
        self.is_dry_run = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Count the runs before the first starts."""
        MultirunDisplay.current = self
        self.folder, self.is_dry_run = Path(config.hydra.sweep.dir), bool(config.dry_run)
        if config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
            self.swept = swept_overrides([*params, *config.hydra.overrides.task])

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the number and the overrides of a run."""
        number = config.hydra.job.get("num")
        if number is None:  # a single run
            return
        self.folders[number] = Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir))
        heading = f"run {number + 1}: {' '.join(config.hydra.overrides.task)}"
        if self.swept is not None:
            heading = f"{number + 1}/{len(self.swept)}  {self.swept[number]}"
        print(f"\n{heading}", flush=True)

    def numbers(self) -> list[int]:
        """The numbers of all runs, from 0, as far as they are known."""
        return sorted({*self.folders, *range(len(self.swept or []))})

    def results(self) -> dict[int, Mapping[str, Any]]:
        """Number -> result.json of each run that has one."""
        found = {number: read_json_object(self.run_folder(number) / "result.json") for number in self.numbers()}
        return {number: result for number, result in found.items() if result}

    def run_folder(self, number: int) -> Path:
        """The directory of a run. Another process may have started it, in the folder of conf/train.yaml."""
        return self.folders.get(number, self.folder / str(number))


def swept_overrides(overrides: Sequence[str]) -> list[str] | None:
    """The combinations of the swept values, in the order of Hydra's basic sweeper; None if they cannot be listed."""
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        values[key] = [""]
        if override.is_sweep_override():
            if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
                return None
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [" ".join(filter(None, combination)) for combination in product(*values.values())]


def print_results() -> None:
    """Print a table with a row per run that has a result; nothing in a single run, or without any result."""
    display = MultirunDisplay.current
    results = {} if display is None or display.is_dry_run else display.results()
    if display is None or not results:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for name in ("run", "overrides", "seed", "N", "loss", "bits/byte", "time", "directory"):
        is_text = name in ("overrides", "directory")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for number, result in results.items():
        table.add_row(str(number + 1), *_cells(display, number, result))
    num_completed = sum(result.get("status") == "completed" for result in results.values())
    console = Console(highlight=False, markup=False)
    console.width = console.width if sys.stdout.isatty() else WIDTH
    missing = [str(number + 1) for number in display.numbers() if number not in results]
    without = f"; without a result: {shortlist(missing)}" if missing else ""
    console.print(f"\n{num_completed} of {plural(len(display.numbers()), 'run')} completed{without}")
    console.print(table)


def _cells(display: MultirunDisplay, number: int, result: Mapping[str, Any]) -> list[str]:
    """The cells of a run after its number. The loss of a run that did not complete is not that of a whole run."""
    scores = (result.get("val") or {}) if result.get("status") == "completed" else {}
    loss, bits = (f"{scores[key]:.4f}" if is_number(scores.get(key)) else NO_VALUE for key in ("loss", "bits_per_byte"))
    seconds: Any = result.get("wall_seconds")
    return [
        display.swept[number] if display.swept is not None else str(result.get("name")),
        str(result.get("seed")),
        exact_count(result.get("params_total")),
        loss if scores else str(result.get("status")),
        bits,
        duration(seconds) if is_number(seconds) else NO_VALUE,
        str(display.run_folder(number)),
    ]
