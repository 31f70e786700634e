"""What is said of a machine: why nothing is compiled there, and a GPU that torch cannot use."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slm.runtime import machine
from slm.training.hardware import resolve_hardware
from slm.training.plan import make_plan, plan_lines
from tests.training.small import config

AUTO = {"accelerator": "auto", "devices": "auto", "num_nodes": 1, "strategy": "auto", "precision": "32-true"}
AUTO |= {"compile": "auto", "micro_batch_tokens": None, "num_workers": 0}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine with one GPU, Triton and Python's headers, and with the programs that are put into a folder."""
    for name in ("CC", "CXX", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "DEVICES", tmp_path)
    monkeypatch.setattr(machine, "find_spec", lambda name: name)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=8, minor=0))
    (tmp_path / "Python.h").touch()
    machine.why_not_compiled.cache_clear()
    yield tmp_path
    machine.why_not_compiled.cache_clear()


def program(path: Path, output: str = "") -> None:
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("device", "useless", "compiler", "reason"),
    [
        ("cuda", "g++", "gcc", "there is no C compiler (gcc or clang) on PATH"),
        ("cuda", "cc", "clang", "there is no C compiler (gcc or clang) on PATH"),
        ("cpu", "gcc", "g++", "there is no C++ compiler (g++) on PATH"),
    ],
)
def test_a_gpu_needs_a_c_compiler_and_a_cpu_one_of_cpp(
    device: str, useless: str, compiler: str, reason: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    program(bare / useless)
    assert machine.why_not_compiled(device) == reason
    assert not machine.can_compile(device)
    machine.why_not_compiled.cache_clear()
    program(bare / compiler)
    assert machine.can_compile(device)
    machine.why_not_compiled.cache_clear()
    (bare / "Python.h").unlink()
    assert str(machine.why_not_compiled(device)).startswith("Python.h is missing")


def test_the_compiler_that_the_environment_names_counts(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "mycc")
    monkeypatch.setenv("CC", "mycc")
    assert machine.can_compile("cuda")
    assert not machine.can_compile("cpu")


def test_a_gpu_needs_triton_which_needs_a_gpu_not_too_old(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "gcc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=6, minor=1))
    expected = "Triton needs a GPU of compute capability 7.0, and this one has 6.1"
    assert machine.why_not_compiled("cuda") == expected
    machine.why_not_compiled.cache_clear()
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert machine.why_not_compiled("cuda") == "Triton is not installed"


def test_a_run_without_a_compiler_is_eager_and_its_plan_says_why() -> None:
    hardware = resolve_hardware(AUTO | {"accelerator": "cpu"})
    assert not hardware.compile
    lines = plan_lines(make_plan(config(), hardware))
    assert any("not compiled because there is no C++ compiler" in line for line in lines if line.startswith("hardware"))
    with pytest.raises(ValueError, match=r"^trainer\.compile=true, but there is no C\+\+ compiler .* on PATH; with"):
        resolve_hardware(AUTO | {"accelerator": "cpu", "compile": True})


@pytest.mark.parametrize("sign", ["file", "nvidia-smi"])
def test_a_gpu_that_torch_cannot_see_is_said_where_a_cpu_was_not_asked_for(
    sign: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", init)
    program(bare / "nvidia-smi", "No devices were found")  # as on a node without GPUs of a cluster
    assert machine.why_no_gpu() is None
    if sign == "file":
        (bare / "nvidia0").touch()
    else:
        program(bare / "nvidia-smi", "GPU 0: NVIDIA A100 (UUID: GPU-1)")
    plan = config()
    plan["trainer"]["accelerator"] = "auto"
    expected = "this machine has an NVIDIA GPU that torch cannot use: The NVIDIA driver on your system is too old"
    (line,) = [line for line in plan_lines(make_plan(plan, resolve_hardware(AUTO))) if "WARNING" in line]
    assert line.startswith(f"WARNING      the run is on the CPU, but {expected}")
    with pytest.raises(ValueError, match=r"trainer=cpu runs anywhere \(this machine has an NVIDIA GPU"):
        resolve_hardware(AUTO | {"accelerator": "gpu"})
    plan["trainer"]["accelerator"] = "cpu"
    assert not any("WARNING" in line for line in plan_lines(make_plan(plan, resolve_hardware(AUTO))))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.why_no_gpu() is None


def test_a_compiler_that_fails_is_one_sentence_and_other_errors_stay() -> None:
    def load_damaged_file(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> None:
        raise ImportError("kernel.so: file too short\nand 50 lines")

    said = r"^torch's compiler failed \(ImportError: kernel\.so: file too short\): trainer\.compile=false .*cache, /"
    with pytest.raises(ValueError, match=said) as caught, machine.explain_compiler_error("trainer.compile"):
        torch.compile(lambda x: x + 1, backend=load_damaged_file)(torch.ones(2))
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"^other$"), machine.explain_compiler_error("trainer.compile"):
        raise RuntimeError("other")
