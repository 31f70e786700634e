"""slm runs where Linux's own means are absent: on systems like Windows and macOS, which are simulated here."""

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slm.runtime import files, machine, system
from slm.sweep import job
from tests.composing import composed
from tests.running import ROOT, quiet_env
from tests.sweep.small import OVERRIDES, sweep_command

WINDOWS_LIKE = Path(__file__).with_name("windows_like")
BUILD = """
import json, sys
from pathlib import Path
from slm.data import local, parts, prepare
parts.MIN_PARALLEL_BYTES, local._MIN_PART_BYTES, parts.num_cores = 0, 1, lambda: 2
prepare(*map(json.loads, sys.argv[1:3]), cache_dir=Path(sys.argv[3]))
"""


def run_as_on_windows(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (WINDOWS_LIKE, ROOT)))
    # A pipe has an encoding with few characters, and text without an explicit encoding is an error.
    places = {"PYTHONPATH": paths, "PYTHONWARNDEFAULTENCODING": "1", "PYTHONIOENCODING": "cp1252"}
    return subprocess.run(
        command, cwd=folder, env=quiet_env() | places, capture_output=True, encoding="cp1252", timeout=280
    )


@pytest.mark.slow
def test_a_sweep_of_one_slot_trains_and_evaluates_to_the_end_as_on_windows(
    text_file: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """In real processes, which import torch each: the imports are a part of what is tested."""
    settings = [*OVERRIDES, f"data.paths={text_file}", f"cache_dir={cache_dir}", "trainer.num_workers=1"]
    changes = [
        "sweep.families=[llama_wide]",
        "sweep.grid.shapes=[32x2]",
        "sweep.overrides=[" + ",".join(f"'{item}'" for item in settings) + "]",
        "sweep.evaluation={its_own: ['speed.enabled=true','speed.new_tokens=2','speed.compile=false']}",
        "launcher.slots=1",
        "launcher.threads=1",  # on Linux the jobs would be forked
    ]
    done = run_as_on_windows(sweep_command(tmp_path / "sweep", text_file, cache_dir, *changes), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "There is one family, so there is nothing to compare." in done.stdout
    assert (tmp_path / "sweep" / "report.html").exists()
    (run,) = (tmp_path / "sweep" / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["peak_memory_bytes"]) == ("completed", None)
    assert (run / "checkpoints" / "previous.ckpt").exists()
    (evaluation,) = run.glob("evaluation/*/results.json")
    (entry,) = json.loads(evaluation.read_text())
    assert (entry["status"], entry["speed"]["peak_memory_bytes"]) == ("completed", None)
    assert entry["perplexity_results"][0]["loss"] == pytest.approx(result["val"]["loss"], abs=0.01)


def test_a_corpus_that_processes_build_as_on_windows_is_that_of_linux(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("data=local", "tokenizer=bytes", f"data.paths={text_file}")
    command = [sys.executable, "-c", BUILD, *(json.dumps(config[group]) for group in ("data", "tokenizer"))]
    done = run_as_on_windows([*command, "there"], tmp_path)
    assert done.returncode == 0, done.stderr
    subprocess.run([*command, "here"], cwd=tmp_path, env=quiet_env() | {"PYTHONPATH": str(ROOT)}, check=True)
    there, here = (
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("there", "here")
        if (tmp_path / name).exists()
    )
    assert there == here
    assert any(file.suffix == ".bin" for file in here)


def test_a_file_that_another_process_has_open_is_replaced_once_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, replace = [], os.replace

    def refuse_twice(source: Path, target: Path) -> None:
        tries.append(target)
        if len(tries) < 3:
            raise PermissionError(13, "The process cannot access the file")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_twice)
    with pytest.raises(PermissionError):  # on Linux that is not a matter of time
        files.write_atomically(tmp_path / "file", "new")
    tries.clear()
    monkeypatch.setattr(files, "REPLACE_SECONDS", 5.0)
    files.write_atomically(tmp_path / "file", "newer")
    assert (tmp_path / "file").read_text() == "newer"


@pytest.mark.parametrize("force", [False, True])
def test_without_sessions_a_job_gets_a_signal_that_the_system_has(force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    job.stop(7, force=force)
    assert sent == [(7, signal.SIGTERM if force else 1)]


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    read_text, write_text = Path.read_text, Path.write_text

    def without_proc(function: Callable[..., object]) -> Callable[..., object]:
        def use(path: Path, *args: object, **options: object) -> object:
            if path.parts[:2] == ("/", "proc"):
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return function(path, *args, **options)

        return use

    monkeypatch.setattr(Path, "read_text", without_proc(read_text))
    monkeypatch.setattr(Path, "write_text", without_proc(write_text))


def test_a_mac_tells_its_processor_and_memory_in_its_own_way(no_proc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda command, **how: SimpleNamespace(stdout="Apple M2 Pro\n"))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    import resource

    used = SimpleNamespace(ru_maxrss=123_456_789)  # bytes there, kilobytes on Linux
    monkeypatch.setattr(resource, "getrusage", lambda who: used)
    assert machine.device_name("cpu") == f"Apple M2 Pro ({torch.get_num_threads()} threads)"
    assert (system.num_cores(), machine.peak_memory_bytes(), machine.resident_bytes()) == (12, 123_456_789, 123_456_789)


def test_what_windows_does_not_tell_is_unknown_and_not_zero(no_proc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6")
    machine.reset_peak_memory()
    assert (machine.peak_memory_bytes(), machine.resident_bytes(), system.machine_memory()) == (None, None, None)
    assert system.processor_name() == "Intel64 Family 6"


def test_a_torch_without_onednn_counts_as_one_that_emulates_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not machine.native_bfloat16("cpu")


REALLOCATE = """
import resource, sys
from slm.runtime.system import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
block = b"x" * 2**26
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = b"x" * 2**26
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / len(block))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep freed memory")
def test_kept_memory_is_used_again_without_page_faults() -> None:
    def share_of_new_pages(mode: str) -> float:
        return float(subprocess.check_output([sys.executable, "-c", REALLOCATE, mode], cwd=ROOT, text=True))

    assert share_of_new_pages("keep") < 0.001 < share_of_new_pages("return")
