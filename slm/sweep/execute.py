"""The master (the process of sweep.py) starts jobs for the cells without a result, until every cell has an outcome.

A cell is one training run, and a job is the process that trains it. The longest cells start first. All state is in the
run directories (`ledger.py`), so the master can be killed and started again at any time:

- A completed cell is never started again; a failed or diverged cell is started again only with `retry="failed"`.
- Running jobs of an earlier master are adopted: the new master waits for them, or stops them, like its own jobs.
- A job that is killed is started again and continues from its checkpoint. After `tries` deaths without a new checkpoint
  the cell has failed (after two if the kernel killed it for lack of memory).
- If a job exits by itself without a result, its cell has failed and is not tried again.
- A branch starts from a checkpoint of a longer cell, its trunk, even if the trunk failed or diverged after saving it.
- On SIGINT or SIGTERM the jobs save and end, and `Interrupted` says how to continue; a second SIGINT kills them.
"""

import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from slm.runtime.command_line import in_quotes
from slm.runtime.progress import say
from slm.sweep import ledger
from slm.sweep.cells import Cell, has_branch_checkpoint
from slm.sweep.job import Job
from slm.sweep.launchers import Launcher, open_launcher
from slm.sweep.ledger import Outcome, RunProgress, Tries
from slm.sweep.recipe import inherited_overrides

TRAIN = Path(__file__).parents[2] / "train.py"
POLL_SECONDS = 0.2
SHOW_SECONDS = 1.0
FINAL_STATUSES = ("completed", "diverged", "failed")


@dataclass(frozen=True, kw_only=True)
class CellStatus:
    """The current status of a cell; `progress` is that of a running cell."""

    cell: Cell
    is_running: bool
    outcome: Outcome
    """The final outcome, or the outcome that the run directory has so far."""
    progress: RunProgress | None = None


Show = Callable[[Sequence[CellStatus]], None]


class Interrupted(KeyboardInterrupt):
    """A signal ended the sweep; the message says how to continue it."""


def execute(
    cells: Sequence[Cell],
    folder: Path,
    launcher_settings: Mapping[str, Any],
    *,
    retry: Literal["none", "failed"] = "none",
    common: Sequence[str] = (),
    script: Path = TRAIN,
    show: Show = lambda statuses: None,
) -> dict[str, Outcome]:
    """Run one job per cell in `folder`/NAME, with the launcher that the settings choose; returns name -> outcome.

    A job runs `script` with the overrides of its cell and the `common` overrides (such as logger.group). `show` is
    called about once a second with the status of all cells. Only one call at a time may work in a folder. Raises
    `ValueError`, before any job starts, for an invalid launcher setting, and `Interrupted` if a signal ended the call.
    """
    folder = folder.resolve()
    launcher = open_launcher(launcher_settings, folder, num_jobs=sum(cell.is_possible for cell in cells))
    command = (sys.executable, str(script), *inherited_overrides())
    jobs = {}
    for cell in cells:
        arguments = (*cell.overrides, *common, *run_paths(cell, folder))
        jobs[cell.name] = Job(name=cell.name, folder=folder / cell.name, command=(*command, *arguments))
    with Signals() as signals:
        master = _Master(cells, jobs, launcher, max_tries=launcher_settings["tries"], show=show)
        master.adopt_running_jobs(retry=retry == "failed")
        master.run(signals)
    outcomes = {cell.name: master.outcome(cell) for cell in cells}
    if signals.received:
        num_completed = sum(outcome.status == "completed" for outcome in outcomes.values())
        raise Interrupted(
            f"interrupted with {num_completed} of {len(outcomes)} cells completed: "
            f"to continue, run the same command with output_dir={folder.parent}"
        )
    return outcomes


class Signals:
    """While entered, SIGINT and SIGTERM set `received` and do not end the process; a second SIGINT sets `force`."""

    def __init__(self) -> None:
        self.received, self.force = False, False
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._old_handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.force = self.received and number == signal.SIGINT
        self.received = True


class _Master:
    def __init__(
        self, cells: Sequence[Cell], jobs: Mapping[str, Job], launcher: Launcher, *, max_tries: int, show: Show
    ) -> None:
        self.cells, self.jobs, self.launcher, self.show = cells, jobs, launcher, show
        self.final_outcomes: dict[str, Outcome] = {}
        self.running: set[str] = set()
        self.tries_of_cell = {name: Tries(job.folder, max_tries) for name, job in jobs.items()}
        self.flops_to_the_end = _flops_to_the_end(cells)

    def adopt_running_jobs(self, *, retry: bool) -> None:
        """Take over the outcomes and the running jobs of an earlier master."""
        for cell in self.cells:
            if not cell.is_possible:
                self.final_outcomes[cell.name] = Outcome("impossible", cell.impossible)
                continue
            outcome = ledger.read_outcome(self.jobs[cell.name].folder)
            if retry and outcome.status in ("failed", "diverged"):
                ledger.make_ready_to_retry(self.jobs[cell.name].folder)
            elif outcome.status in FINAL_STATUSES:
                self.final_outcomes[cell.name] = outcome
        self.running.update(self.launcher.adopt(self.jobs[cell.name] for cell in self._waiting_cells()))

    def run(self, signals: Signals) -> None:
        """Start jobs and record their ends until nothing runs and nothing can be started."""
        shown_at = 0.0
        stopping, forced = False, False
        try:
            while True:
                for name, code in self.launcher.collect_ended().items():
                    self._record_end(name, code, stopping=stopping)
                if signals.force and not forced:
                    stopping = forced = True
                    self._stop_jobs("killing them", force=True)
                elif signals.received and not stopping:
                    stopping = True
                    self._stop_jobs("they save a checkpoint and end (Ctrl-C again kills them)", force=False)
                if not stopping:
                    self._start_ready()
                if not self.running or time.monotonic() - shown_at > SHOW_SECONDS:
                    shown_at = time.monotonic()
                    self.show([self._status(cell) for cell in self.cells])
                if not self.running:
                    return
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.launcher.stop()
            raise

    def _stop_jobs(self, action: str, *, force: bool) -> None:
        say(f"\n{len(self.running)} running: {action}")
        self.launcher.stop(force=force)

    def outcome(self, cell: Cell) -> Outcome:
        """The final outcome of a cell, or the outcome so far. For a branch that cannot start: its trunk's status."""
        if cell.name in self.final_outcomes:
            return self.final_outcomes[cell.name]
        trunk_outcome = self.final_outcomes.get(cell.trunk or "")
        if trunk_outcome is not None and not self._can_start(cell):
            why = f"it needs a checkpoint of {cell.trunk}, whose status is {trunk_outcome.status}"
            return Outcome("not_started", why)
        return ledger.read_outcome(self.jobs[cell.name].folder)

    def _can_start(self, cell: Cell) -> bool:
        """Whether the cell has no trunk, or its trunk has completed or ended after the step where the branch starts."""
        if cell.trunk is None:
            return True
        trunk_outcome = self.final_outcomes.get(cell.trunk)
        if trunk_outcome is None:
            return False
        return trunk_outcome.status == "completed" or has_branch_checkpoint(cell, self.jobs[cell.name].folder.parent)

    def _waiting_cells(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.name not in self.final_outcomes and cell.name not in self.running]

    def _start_ready(self) -> None:
        ready = [cell for cell in self._waiting_cells() if self._can_start(cell)]
        ready.sort(key=lambda cell: -self.flops_to_the_end[cell.name])
        chosen = [cell.name for cell in ready[: self.launcher.num_free()]]
        for name in chosen:
            self.tries_of_cell[name].note_start()
        if chosen:
            self.launcher.start([self.jobs[name] for name in chosen])
            self.running.update(chosen)

    def _record_end(self, name: str, code: int | None, *, stopping: bool) -> None:
        self.running.discard(name)
        folder = self.jobs[name].folder
        outcome = ledger.read_outcome(folder)
        if outcome.status in FINAL_STATUSES:
            self.final_outcomes[name] = outcome
        elif not stopping:
            tries = self.tries_of_cell[name]
            if why := tries.why_failed(code):
                ledger.record_failure(folder, why=why, exit_code=code, num_starts=tries.num_starts)
                self.final_outcomes[name] = Outcome("failed", why)
            else:
                say(f"{name}: {ledger.how_it_ended(code)}; it will be started again")

    def _status(self, cell: Cell) -> CellStatus:
        is_running = cell.name in self.running
        progress = ledger.read_progress(self.jobs[cell.name].folder) if is_running else None
        return CellStatus(cell=cell, is_running=is_running, outcome=self.outcome(cell), progress=progress)


def _flops_to_the_end(cells: Sequence[Cell]) -> dict[str, float]:
    """FLOPs of each cell plus, for a trunk, FLOPs of its longest branch, which can only start after the trunk."""
    branch_flops: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        if cell.trunk is not None:
            branch_flops[cell.trunk].append(cell.flops_trained)
    return {cell.name: cell.flops_trained + max(branch_flops[cell.name], default=0.0) for cell in cells}


def run_paths(cell: Cell, folder: Path) -> list[str]:
    """Overrides of train.py with the paths of the run and of its trunk."""
    overrides = [f"output_dir={in_quotes(folder / cell.name)}"]
    if cell.trunk is not None and cell.branch_step > 0:  # a branch added too late starts at step 0
        overrides.append(f"branch_from={in_quotes(folder / cell.trunk)}")
    return overrides
