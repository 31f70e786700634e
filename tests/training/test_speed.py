"""The matmul peak is a share's denominator: never zero, however slow the machine; a data sheet has another."""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slm.training import hardware, speed
from slm.training.plan import make_plan
from slm.training.trainer import Batches
from tests.composing import composed
from tests.running import run_two
from tests.training.small import CPU, config


def test_peak_of_a_machine_too_slow_for_the_time_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))  # every look at the clock takes a second
    assert speed._matmul_rate(8, "cpu", torch.float32) == 2 * 8**3  # the first product, which took all of the time


def test_a_machine_that_emulates_the_type_is_not_asked_for_large_products(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(speed, "_matmul_rate", lambda size, *_: (asked.append(size), 1e9)[1])
    assert speed.measure_matmul("cpu", torch.bfloat16) == 1e9
    assert asked == [512]  # of 1024 a product alone would take 2 seconds
    asked.clear()
    monkeypatch.setattr(speed, "_matmul_rate", lambda size, *_: (asked.append(size), 1e11)[1])
    speed.measure_matmul("cpu", torch.float32)
    assert asked == [512, 1024, 2048]


def test_a_peak_that_a_model_exceeds_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates = iter([1e9, 3e9])  # the machine was busy at first
    monkeypatch.setattr(speed, "measure_matmul", lambda *_: next(rates))
    assert speed.matmul_peak(CPU, tmp_path) == speed.matmul_peak(CPU, tmp_path, above=9e8) == 1e9
    assert speed.matmul_peak(CPU, tmp_path, above=2e9) == speed.matmul_peak(CPU, tmp_path) == 3e9


@pytest.mark.parametrize(("tested", "expected"), [(4e11, 5e11), (5.4e11, 5e11), (5.6e11, 9e11)])
def test_a_stored_peak_that_a_short_test_exceeds_by_a_tenth_is_measured_again(
    tested: float, expected: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates = iter([5e11, 9e11])  # the machine was busy at first
    monkeypatch.setattr(speed, "measure_matmul", lambda *_: next(rates))
    monkeypatch.setattr(speed, "_matmul_rate", lambda *_: tested)
    assert speed.matmul_peak(CPU, tmp_path) == 5e11
    assert speed.matmul_peak(CPU, tmp_path) == expected


BOARDS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H200": 989.4,
    "NVIDIA B200": 2250.0,
    "NVIDIA A100-SXM4-80GB": 311.9,
    "NVIDIA A100-PCIE-40GB": 311.9,
    "NVIDIA L40S": 362.1,
    "NVIDIA A10": 125.0,
    "NVIDIA A10G": None,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA RTX 6000 Ada Generation": None,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 3090 Ti": None,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA GeForce RTX 5090": 209.5,
    "Tesla V100-SXM2-16GB": 125.0,
    "Tesla V100-PCIE-32GB": 112.0,
    "Tesla V100S-PCIE-32GB": None,
    "Tesla T4": 65.0,
    "NVIDIA GH200 480GB": None,
}


@pytest.mark.parametrize("name", BOARDS)
def test_data_sheets_tell_boards_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_name", lambda _: name)
    stated = BOARDS[name]
    gpu = replace(CPU, accelerator="cuda", precision="16-mixed")
    assert speed.datasheet_peak(gpu) == (stated and pytest.approx(1e12 * stated))
    assert speed.datasheet_peak(replace(gpu, precision="32-true")) is None
    assert speed.datasheet_peak(CPU) is None


def test_a_gpu_has_two_to_four_loader_processes_and_a_cpu_none(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = composed()["trainer"]
    assert hardware.resolve_hardware(trainer | {"accelerator": "cpu"}).num_workers == 0
    found = []
    for cores in (1, 4, 64):
        monkeypatch.setattr(hardware, "num_cores", lambda cores=cores: cores)
        found.append(hardware._num_workers("auto", "cuda", 1))
    assert found == [2, 3, 4]
    assert hardware._num_workers(0, "cuda", 1) == 0


def test_only_a_run_on_a_gpu_pins_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning takes memory of the first GPU, which another program may need or have filled."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    corpus: Any = SimpleNamespace(mixture=None, train=SimpleNamespace(num_windows=lambda length: 64))
    for accelerator in ("cpu", "cuda"):
        plan = replace(make_plan(config(), CPU), hardware=replace(CPU, accelerator=accelerator))
        assert Batches(plan, corpus, 0, rank=0).loader.pin_memory == (accelerator == "cuda")


UNEQUAL_DEVICES = """
import os
import time
from slm.training import speed

rank = int(os.environ.get("LOCAL_RANK", 0))

def synchronize_late(device, synchronize=speed.synchronize):
    # The second process is slow at its second pass, so that on its own it would take one pass less.
    calls.append(device)
    if rank == 1 and len(calls) == 2:
        time.sleep(1)
    synchronize(device)

calls = []
speed.synchronize = synchronize_late

def measure(decoder, plan, teacher, strategy, measure_speed=speed.measure_speed):
    is_sharded = all(hasattr(parameter, "full_tensor") for parameter in decoder.parameters())
    assert is_sharded == (plan.hardware.strategy == "fsdp")
    assert measure_speed(decoder, plan, None, strategy)[0] > 0
    assert len(calls) == 2
    assert all(parameter.grad is None for parameter in decoder.parameters())
    return (100.0, 50.0)[rank], (10**9, 2 * 10**9)[rank]

speed.MIN_PASSES = 0
speed.matmul_peak = lambda *_: (1e9, 3e9)[rank]
speed.measure_speed = measure
"""
"""An extension by which the second process has a device of half the speed. It takes as many passes as the first."""


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_each_process_measures_its_part_of_the_model_and_the_slowest_sets_the_speed(
    strategy: str, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "unequal.py").write_text(UNEQUAL_DEVICES)
    two = [f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", f"output_dir={tmp_path}/run"]
    two += ["train.tokens=1280", "train.val_tokens=512", f"extensions=[{tmp_path}/unequal.py]"]
    done = run_two(train_command(*two), timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 tokens/s measured here" in done.stdout
    assert "of 4 GFLOP/s, 2.00 GB of memory held" in done.stdout


UNEQUAL_PASSES = """
import os
from dataclasses import replace
from slm.training import plan

def choose(*args, choose_passes=plan._choose_passes):
    passes = choose_passes(*args)
    return replace(passes, size=passes.size // 2) if os.environ.get("LOCAL_RANK") == "1" else passes

plan._choose_passes = choose
"""
"""An extension by which the second process has a device of half the memory."""


def test_processes_that_chose_different_passes_are_refused_before_they_wait_for_each_other(
    train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "unequal.py").write_text(UNEQUAL_PASSES)
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", f"output_dir={tmp_path}/run"]
    done = run_two(train_command(*two, f"extensions=[{tmp_path}/unequal.py]"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "chose passes of 2 to 4 sequences" in done.stderr
    assert "trainer.micro_batch_tokens=64 " in done.stderr
