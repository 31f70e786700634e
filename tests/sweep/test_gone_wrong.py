"""A real sweep in which all goes wrong that can: each cell that did is named with a reason, and the rest is analysed.

Memory runs out in both ways: an allocation is refused (by RLIMIT_AS, as `ulimit -v` sets it), and a process that grows
too large is killed, here by the test: a kernel that does so leaves the same signal.
"""

import csv
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from slm.sweep.job import id_and_slot
from tests.running import quiet_env
from tests.sweep.small import sweep_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REFUSED, KILLED = "131072x1", "4096x1"
ADDRESS_SPACE = 60 * 2**30
"""Below the 64 GiB of one matrix of the shape that is refused."""
RESIDENT = 900e6
"""Between the 0.5 GB of a cell that completes and the 0.9 GB of the weights alone of the shape that is killed."""
HOPELESS = [
    "sweep.lr={rule: fixed, parametrization: null, value: {llama_wide: 0.004, ssd: 1e6}}",
    *(f"sweep.grid.shapes=[32x2,64x2,96x2,40x2,{REFUSED},{KILLED}]", "launcher.slots=2", "launcher.tries=2"),
]


def resident_bytes(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def swept(folder: Path, command: list[str], log: Path) -> int:
    """Run it under both limits; returns its exit code."""
    with log.open("wb") as said:
        sweep = subprocess.Popen(
            command,
            env=quiet_env(),
            stdout=said,
            stderr=said,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE)),
        )
    while sweep.poll() is None:
        for run in folder.glob(f"runs/*{KILLED}*"):
            job = id_and_slot(run)
            if job is not None and resident_bytes(job[0]) > RESIDENT:
                os.kill(job[0], signal.SIGKILL)
        time.sleep(0.05)
    return sweep.returncode


def design(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of design.csv by family and shape, that of an impossible cell as its name has it."""
    with (folder / "design.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {(row["family"], row["name"].removeprefix(row["family"] + "_").partition("-")[0]): row for row in rows}


def test_failures_are_named_and_retried_only_if_asked(text_file: Path, cache_dir: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "sweep", tmp_path / "log"
    command = sweep_command(folder, text_file, cache_dir, *HOPELESS)
    assert swept(folder, command, log) == 2, log.read_text()
    rows = design(folder)
    small = ("32x2", "64x2", "96x2")
    assert {shape: rows["llama_wide", shape]["status"] for shape in small} == dict.fromkeys(small, "completed")
    assert {shape: rows["ssd", shape]["status"] for shape in small} == dict.fromkeys(small, "diverged")
    for family in ("llama_wide", "ssd"):
        expected = {
            REFUSED: ("failed", "exit code 1: out of memory with trainer.micro_batch_tokens="),
            KILLED: ("failed", "killed by SIGKILL 2 times with no new checkpoint"),
            "40x2": ("impossible", "width=40 is not a multiple of model.head_dim=16"),
        }
        for shape, (status, why) in expected.items():
            assert rows[family, shape]["status"] == status
            assert rows[family, shape]["why"].startswith(why)
    wrong = [row for row in rows.values() if row["status"] != "completed"]
    report, said = (folder / "report.md").read_text(), log.read_text()
    assert "Traceback" not in said
    assert f"{len(wrong)} of {len(rows)} cells have no result" in said
    for row in wrong:
        assert row["name"] in report
        lines = [line for line in said.splitlines() if line.startswith(f"- {row['name']}: {row['status']}")]
        assert any(line.endswith(row["why"]) for line in lines)
    completed = {row["name"] for row in rows.values() if row["status"] == "completed"}
    assert {row["run_id"] for row in csv.DictReader((folder / "results.csv").open())} == completed

    logs = {run.name: (run / "job.log").read_bytes() for run in (folder / "runs").iterdir() if run.is_dir()}
    assert swept(folder, command, log) == 2
    assert logs == {name: (folder / "runs" / name / "job.log").read_bytes() for name in logs}
    assert design(folder) == rows
    assert swept(folder, [*command, "retry=failed"], log) == 2
    assert {key: row["status"] for key, row in design(folder).items()} == {key: rows[key]["status"] for key in rows}
    for row in rows.values():
        run = folder / "runs" / row["name"]
        if row["status"] == "completed":
            assert (run / "job.log").read_bytes() == logs[run.name]
        elif row["status"] == "diverged":
            assert (run.with_name(f"{run.name}-1.retried") / "job.log").read_bytes() == logs[run.name]
        elif row["status"] == "failed":
            assert (run / "failure-1.json").exists()
            assert len((run / "job.log").read_bytes()) > len(logs[run.name])
