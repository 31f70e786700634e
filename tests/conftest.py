"""A small text and a way to run train.py on it, as a user would."""

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from slm.sweep.launchers import forked
from tests.running import make_command, run_script
from tests.seeds import SEED, seeded
from tests.slurm.cluster import why_impossible

if "PYTEST_XDIST_WORKER" in os.environ:  # several of these share the cores
    torch.set_num_threads(1)


# What the scripts import: once for all that the tests run of them.
forked.MODULES = ["slm.training.run", "slm.evaluation.run", "slm.sweep.run"]

hypothesis.settings.register_profile("seeded", derandomize=SEED == 0)
hypothesis.settings.load_profile("seeded")
if SEED:
    hypothesis.core.global_force_seed = SEED


def pytest_report_header() -> str:
    return f"SLM_TEST_SEED={SEED}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run, or what takes minutes and was not asked for."""
    minutes = "" if "slurm" in config.option.markexpr else "takes minutes; asked for by: pytest -m slurm tests/slurm"
    absent = {
        "gpu": "" if torch.cuda.is_available() else "needs a CUDA device; there: pytest -m gpu",
        "hub": "" if os.environ.get("SLM_TEST_HUB") else "needs the network; with it: SLM_TEST_HUB=1 pytest -m hub",
        "slow": "" if "slow" in config.option.markexpr else "takes minutes; asked for by: pytest -m slow",
        "slurm": why_impossible() or minutes,
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 100 kB of words with structure enough to learn something from."""
    rng = random.Random(seeded())
    words = [
        "".join(rng.choice("aeiou" if i % 2 else "bcdfgklmnprst") for i in range(rng.randint(2, 8))) for _ in range(200)
    ]
    paragraphs = [" ".join(rng.choice(words) for _ in range(60)).capitalize() + "." for _ in range(250)]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n\n".join(paragraphs))
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train_command(text_file: Path, cache_dir: Path) -> Callable[..., list[str]]:
    """Makes the command line of a small run with some settings changed."""
    return lambda *changes: make_command(text_file, cache_dir, *changes)


@pytest.fixture
def run_train(
    train_command: Callable[..., list[str]], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run train.py to its end, in an empty folder."""

    def run(*changes: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return run_script(train_command(*changes), cwd=tmp_path, timeout=timeout)

    return run


@pytest.fixture
def result_of(run_train: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> Callable[..., dict]:
    """Run train.py to its end in `tmp_path / folder`; returns what its result.json says."""

    def run(*changes: str, folder: str = "run", timeout: float = 120) -> dict:
        done = run_train(f"output_dir={folder}", *changes, timeout=timeout)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / folder / "result.json").read_text())

    return run
