"""Run the scripts as a user would, on a model so small that what is tested is the machinery around it."""

import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import train
from slm.composition.keys import explain_unknown_keys
from slm.composition.resolvers import register
from slm.runtime.command_line import MISTAKES, one_sentence
from slm.sweep.launchers.forked import Descriptor, become_script, start_server

ROOT = Path(__file__).parents[1]

SMALL_RUN = shlex.split("""
    data=local tokenizer=bytes optim=adamw model.vocab_size=260 model.hidden_size=32 model.num_layers=2
    model.num_heads=2 model.num_kv_heads=1 model.intermediate_size=64 train.sequence_length=32 train.batch_tokens=256
    train.tokens=10240 train.log_every=5 train.eval_every=10 train.eval_tokens=512 train.sample_tokens=4
    checkpoint.every_steps=7 trainer=cpu trainer.compile=false logger=csv
""")

MUON = ["optim=muon", "optim.ema_decay=0.9"]
TWO_PROCESSES = [
    pytest.param([], "ddp", id="adamw-ddp"),
    pytest.param(MUON, "fsdp", id="muon-fsdp"),
    pytest.param([], "fsdp", id="adamw-fsdp", marks=pytest.mark.slow),
    pytest.param(MUON, "ddp", id="muon-ddp", marks=pytest.mark.slow),
]
"""Each optimizer and each strategy once; the other two pairs with the slow tests."""


def make_command(text_file: Path, cache_dir: Path, *changes: str) -> list[str]:
    """The command line of a small run; later `changes` win over earlier ones and over SMALL_RUN."""
    places = [f"data.paths={text_file}", f"cache_dir={cache_dir}"]
    settings = {item.partition("=")[0]: item for item in [*SMALL_RUN, *places, *changes]}
    return [sys.executable, str(ROOT / "train.py"), *settings.values()]


def quiet_env() -> dict[str, str]:
    """One thread a process: the tests' models are too small for more."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


class Script:
    """`python SCRIPT ...` forked from a process that has made its imports, asked like a `subprocess.Popen`.

    Importing takes longer than most of what the tests run. A test about importing, or starting, uses `subprocess`.
    """

    def __init__(self, command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        self.args = list(command)
        self._outputs = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (open while the script writes)
        descriptors = [Descriptor(file.fileno()) for file in self._outputs]
        start_server(quiet_env())
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_become, args=(self.args[1:], env or quiet_env(), cwd or Path.cwd(), *descriptors)
        )
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; kills the script and fails if it takes longer than `timeout` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout or 0, *map(str.encode, self.printed()))
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def printed(self) -> list[str]:
        """What it has written to standard output and to standard error so far."""
        return [os.pread(file.fileno(), 1 << 24, 0).decode() for file in self._outputs]


def _become(arguments: list[str], env: dict[str, str], cwd: Path, *outputs: int) -> None:
    os.setsid()
    os.chdir(cwd)
    Hydra.get_mode = lambda *_, **__: None  # it composes the config once more, for `hydra.mode`, which no test sets
    become_script(arguments, env, outputs)


def start_two(command: Sequence[str]) -> list[Script]:
    """The processes of a run of two, as torchrun starts them."""
    world = quiet_env() | _free_address() | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
    return [Script(command, env=world | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]


def start_two_tasks(command: Sequence[str]) -> list[Script]:
    """The processes of a run of two, as srun starts them on one node."""
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    world = quiet_env() | _free_address() | job | {"SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    return [Script(command, env=world | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"]


def _free_address() -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def run_script(command: Sequence[str], *, timeout: float = 120, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line of train.py, sweep.py or evaluate.py to its end (`Script`)."""
    script = Script(command, **how)
    code = script.wait(timeout)
    return subprocess.CompletedProcess(script.args, code, *script.printed())


def run_two(command: Sequence[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run both processes of `start_two` to their ends, with the same exit code. What the first one printed."""
    first, second = start_two(command)
    code = first.wait(timeout)
    assert second.wait(timeout) == code, second.printed()
    return subprocess.CompletedProcess(first.args, code, *first.printed())


def refusal(overrides: Sequence[str]) -> str:
    """What train.py says of settings that it refuses, in this process; AssertionError if it takes them."""
    register()
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), explain_unknown_keys("train"):
            config = compose("train", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        train.run(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
    except MISTAKES as error:
        return one_sentence(error)
    finally:
        HydraConfig.instance().cfg = None
    raise AssertionError(f"not refused: {overrides}")
