"""benchmarks/device_check.py: one check costs no other, and host syncs are counted where they are. The GPU is faked."""

import importlib
import subprocess
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from slm.training.module import LanguageModel
from tests.running import ROOT


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("device_check")


def test_a_check_that_does_not_end_is_ended_and_named(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []

    class Kept(subprocess.Popen):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Kept)
    monkeypatch.setitem(check.CHECKS, "attention", ("kernels", 0.1))
    line = check.run_check("attention", "smallest", 100.0)
    assert (line["check"], line["size"]) == ("attention", "smallest")
    assert line["error"].startswith("not done after 0 s")
    assert started[0].returncode == -9
    assert check.run_check("mixers", "gpu", 3.0) == {"check": "mixers", "size": "gpu", "skipped": "no time left"}


def test_every_check_exists(check: ModuleType) -> None:
    for name, (module, limit) in check.CHECKS.items():
        assert callable(getattr(importlib.import_module(f"device_checks.{module}"), name))
        assert 0 < limit < check.SECONDS["gpu"]


def test_host_syncs_are_counted_in_steps_5_to_10_with_their_place(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, passes = [], 0

    def set_sync_debug_mode(mode: str) -> None:
        if not modes:  # what torch says once
            notice = "Synchronization debug mode is a prototype feature and does not yet detect all "
            warnings.warn(notice + "synchronizing operations", stacklevel=1)
        modes.append(mode)

    def training_step(module: object, tokens: object, index: int) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes % 2 == 0:  # once a step of two passes
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return torch.zeros(())

    programs = importlib.import_module("device_checks.programs")
    monkeypatch.setattr(LanguageModel, "training_step", training_step)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_sync_debug_mode)
    counter = programs._SyncCounter(passes_a_step=2)
    with counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(24):
            LanguageModel.training_step(None, None, 0)  # type: ignore[arg-type]
    assert modes == ["warn", "default"]
    assert len(counter.places) == 5
    assert set(counter.places) == {counter.places[0]}
    assert counter.places[0].startswith("tests/test_device_check.py:")


def test_only_files_with_tests_of_a_gpu_are_collected_and_the_session_ends_before_the_check_does(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is not installed. A file that cannot be imported would end pytest before its first test."""
    programs, commands = importlib.import_module("device_checks.programs"), []

    def run(command: list[str], **how: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0, stdout="FAILED a\n12 passed, 1 failed in 60 s")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("DEVICE_CHECK_SECONDS", "120")
    found = programs.gpu_tests("gpu")
    assert (found["tests"], found["failed"]) == ("12 passed, 1 failed in 60 s", ["FAILED a"])
    files = [Path(argument) for argument in commands[0] if argument.endswith(".py")]
    assert ROOT / "tests/training/test_devices.py" in files
    assert 0 < len(files) < 10
    assert commands[0][-1] == "--session-timeout=72"
