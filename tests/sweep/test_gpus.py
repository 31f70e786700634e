"""Jobs that share a GPU: how many, on which one, and with how much of its memory. The GPUs are faked."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.runtime import machine
from slm.runtime.command_line import GPU_MEMORY_SHARE
from slm.sweep import run
from slm.sweep.config import check_settings
from slm.sweep.execute import execute
from slm.sweep.launchers import gpus
from slm.sweep.launchers.gpus import PROCESS_BYTES, USABLE_MEMORY, SharedGpuMeasurement, choose_jobs, with_jobs_per_gpu
from slm.sweep.launchers.local import slot_environments
from tests.composing import composed
from tests.sweep import designs
from tests.sweep.celled import LOCAL, STUB, cell
from tests.sweep.designs import SMALL, settings

CARD = 80 * 2**30
NVIDIA_SMI = """#!/bin/sh
case "$1" in
  -L) for n in 0 1; do echo "GPU $n: Faked (UUID: GPU-$n)"; done ;;
  *) echo "{total}, {free}" ;;
esac
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Puts an nvidia-smi that knows two GPUs on the path, on a machine of 16 cores."""

    def fake(total: int = 81_920, free: int = 81_000) -> None:
        script = tmp_path / "bin" / "nvidia-smi"
        script.parent.mkdir(exist_ok=True)
        script.write_text(NVIDIA_SMI.format(total=total, free=free))
        script.chmod(0o755)

    fake()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    return fake


def saturating(most: float, memory: int = 10**9) -> Callable[[int], SharedGpuMeasurement]:
    """A model that reaches 1,000 tokens/s alone, on a GPU that reaches `most` times that in all."""

    def measure(jobs: int) -> SharedGpuMeasurement:
        return SharedGpuMeasurement(jobs=jobs, tokens_per_second=1000 * min(jobs, most), memory_bytes=memory)

    return measure


@pytest.mark.parametrize(("most", "expected"), [(1.0, 1), (1.05, 1), (2.0, 2), (3.0, 4), (100.0, 12)])
def test_more_jobs_share_a_gpu_as_long_as_they_add_speed(most: float, expected: int) -> None:
    assert choose_jobs(saturating(most), max_jobs=12, free_bytes=CARD)[0] == expected


@given(memory=st.integers(10**8, 10**11), free=st.integers(10**9, CARD), most=st.integers(1, 64))
def test_never_more_jobs_than_memory_allows(memory: int, free: int, most: int) -> None:
    tried = []

    def measure(jobs: int) -> SharedGpuMeasurement:
        tried.append(jobs)
        return saturating(1e9, memory)(jobs)

    chosen, _ = choose_jobs(measure, max_jobs=most, free_bytes=free)
    assert 1 <= chosen <= most
    assert max(tried) == 1 or max(tried) * (memory + PROCESS_BYTES) <= USABLE_MEMORY * free
    if chosen > 1:  # what a job needs is within its share
        assert memory <= gpus.memory_share(chosen, (CARD, free)) * CARD


def test_jobs_that_do_not_run_together_are_not_started_together() -> None:
    def measure(jobs: int) -> SharedGpuMeasurement | None:
        return saturating(100)(jobs) if jobs < 4 else None

    assert choose_jobs(measure, max_jobs=8, free_bytes=CARD)[0] == 2
    assert choose_jobs(lambda jobs: None, max_jobs=8, free_bytes=CARD) == (1, [])


def test_slots_take_the_gpus_in_turn_and_share_their_memory(two_gpus: Callable[..., None]) -> None:
    slots = slot_environments(settings("local", jobs_per_gpu=4), num_jobs=40, gpus=["0", "1"])
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"] * 4
    assert {slot["OMP_NUM_THREADS"] for slot in slots} == {"2"}
    (share,) = {float(slot[GPU_MEMORY_SHARE]) for slot in slots}
    assert 0.2 < share < 0.25
    assert 4 * (share * CARD + PROCESS_BYTES) == pytest.approx(CARD, rel=1e-3)
    alone = slot_environments(settings("local", jobs_per_gpu=1), num_jobs=40, gpus=["0", "1"])
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in alone] == ["0", "1"]
    assert not any(GPU_MEMORY_SHARE in slot for slot in alone)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"jobs_per_gpu": 100}, "jobs_per_gpu=100: a GPU with 86 GB allows at most 71 jobs"),
        ({"jobs_per_gpu": 2, "gpus_per_job": 2}, "jobs_per_gpu=2 needs launcher.gpus_per_job=1, not 2"),
        ({"jobs_per_gpu": 2, "slots": 5}, "slots=5 with .*jobs_per_gpu=2 needs more than 2 GPUs"),
    ],
)
def test_more_than_the_gpus_have_is_refused(two_gpus: Callable[..., None], asked: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        slot_environments(settings("local", **asked), num_jobs=9, gpus=["0", "1"])


def test_a_sweep_measures_once_and_keeps_the_number(two_gpus: Callable[..., None], tmp_path: Path) -> None:
    asked, tried = settings("local"), []

    def measure(jobs: int) -> SharedGpuMeasurement:
        tried.append(jobs)
        return saturating(3, 3 * 10**9)(jobs)

    def choose(name: str, **changes: object) -> dict:
        return with_jobs_per_gpu(asked | changes, tmp_path, name=name, num_jobs=40, measure=measure)

    assert choose("large")["jobs_per_gpu"] == 4
    two_gpus(free=4000)  # by now, adopted jobs of the same sweep hold memory
    assert choose("large")["jobs_per_gpu"] == 4
    assert tried == [1, 2, 4, 8]
    assert choose("larger")["jobs_per_gpu"] == 1  # another cell is measured anew
    assert choose("larger", jobs_per_gpu=3)["jobs_per_gpu"] == 3
    assert choose("larger", gpus_per_job=2)["jobs_per_gpu"] == "auto"
    assert tried == [1, 2, 4, 8, 1]


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", list)
    chosen = with_jobs_per_gpu(
        settings("local"), tmp_path, name="a", num_jobs=9, measure=lambda jobs: pytest.fail("asked")
    )
    assert chosen == settings("local")


def test_jobs_of_one_gpu_run_at_the_same_time_and_know_their_share(
    two_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running: list[int] = []
    cells = [cell(f"c{i}", "seconds=0.2", steps=3) for i in range(4)]
    launcher = LOCAL | {"slots": "auto", "gpus_per_job": 1, "jobs_per_gpu": 2}
    outcomes = execute(
        cells,
        tmp_path / "runs",
        launcher,
        script=STUB,
        show=lambda statuses: running.append(sum(status.is_running for status in statuses)),
    )
    assert {outcome.status for outcome in outcomes.values()} == {"completed"}
    assert max(running) == 4
    found = [json.loads((tmp_path / "runs" / f"c{i}" / "environment.json").read_text()) for i in range(4)]
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in found) == ["0", "0", "1", "1"]
    assert all(0.4 < float(each[GPU_MEMORY_SHARE]) < 0.5 for each in found)


def test_a_job_allocates_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.cuda, "set_per_process_memory_fraction", limits.append)
    machine.limit_gpu_memory()
    monkeypatch.setenv(GPU_MEMORY_SHARE, "0.2425")
    machine.limit_gpu_memory()
    assert limits == [0.2425]


def test_the_largest_cell_is_measured_as_its_jobs_would_run(
    two_gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple] = []

    def measure(config: dict, environment: dict, jobs: int) -> SharedGpuMeasurement:
        shape = (config["model"]["hidden_size"], config["model"]["num_layers"])
        asked.append((jobs, shape, environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"]))
        assert (GPU_MEMORY_SHARE in environment) == (jobs > 1)
        return saturating(2)(jobs)

    monkeypatch.setattr(run, "measure_shared_gpu", measure)
    monkeypatch.chdir(tmp_path)
    shapes = ("sweep.grid.widths=[64,128]", "sweep.grid.depths=[2,4,6]", "output_dir=here", "logger=csv")
    launcher = run._launcher_settings(run._check_sweep(check_settings(designs.composed(*SMALL, *shapes))))
    assert launcher["jobs_per_gpu"] == 2
    # Six cells on two GPUs of 16 cores: three on a GPU at most, each with its share of the cores.
    assert asked == [(1, (128, 6), "0", "8"), (2, (128, 6), "0", "4"), (3, (128, 6), "0", "2")]


HANGING = """
import subprocess
child = subprocess.Popen(["sleep", "100"])
print(child.pid, file=open("child", "w"), flush=True)
child.wait()
"""


def test_a_measurement_that_does_not_end_is_ended_with_the_processes_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would keep memory of the GPU during the sweep."""
    together = tmp_path / "slm" / "training" / "together.py"
    together.parent.mkdir(parents=True)
    for folder in (together.parent, together.parent.parent):
        (folder / "__init__.py").touch()
    together.write_text(HANGING)
    monkeypatch.setattr(gpus, "ROOT", tmp_path)
    monkeypatch.setattr(gpus, "PROBE_SECONDS", 2)
    monkeypatch.chdir(tmp_path)
    assert gpus.measure_shared_gpu({}, os.environ, 2) is None
    assert "2 at a time: not measured within 2 s" in capsys.readouterr().err
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "cmdline")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_bytes():  # a zombie has no command line
        assert time.monotonic() < deadline
        time.sleep(0.05)


TINY = ("model.num_layers=1", "train.sequence_length=32", "train.batch_tokens=256", "trainer.compile=false")


@pytest.mark.slow
def test_processes_that_train_together_report_their_total_speed() -> None:
    """On the CPU. Slow, because each process imports torch."""
    plan = composed(*TINY, "trainer=cpu", "output_dir=runs", "name=a")
    found = gpus.measure_shared_gpu(plan, {**os.environ, "OMP_NUM_THREADS": "1"}, 2)
    assert found is not None
    assert found.jobs == 2
    assert found.tokens_per_second > 500
    assert 5e7 < found.memory_bytes < 5e9
