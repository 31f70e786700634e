"""A run that starts at another one's checkpoint is, to the last bit, the run that started at step 0."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from slm.training.journal import Journal
from slm.training.run import train
from slm.training.setup import checked_settings, set_up
from tests.composing import composed
from tests.running import make_command
from tests.training.small import assert_same_run, rows

# Of 40 steps of 256 tokens; the first 25 have the rates that they have in a run of 30.
TRUNK = ["schedule=wsd", "schedule.warmup_steps=3", "optim.ema_decay=0.9", "optim=muon", "trainer.precision=32-true"]
KEPT = "checkpoint.keep_steps=[7,17,23,26]"
SHORT = "train.tokens=7680"

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def train_here(text_file: Path, cache_dir: Path) -> Iterator[Train]:
    """Train in this process, from a config composed once: a tenth of the time of train.py."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    defaults = composed(*make_command(text_file, cache_dir, *TRUNK, "output_dir=none")[2:])

    def run(folder: Path, *changes: str) -> dict[str, Any]:
        config = OmegaConf.merge(defaults, OmegaConf.from_dotlist([f"output_dir={folder}", *changes]))
        if config.schedule.name == "constant":  # as schedule=constant has it
            del config.schedule.decay_fraction, config.schedule.final_fraction
        return train(set_up(checked_settings(config)))

    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, train_here: Train) -> Path:
    folder = tmp_path_factory.mktemp("trunk") / "run"
    train_here(folder, KEPT, "name=trunk")
    return folder


@pytest.fixture
def trunk_copy(trunk: Path, tmp_path: Path) -> Path:
    """The trunk, to be changed."""
    return Path(shutil.copytree(trunk, tmp_path / "trunk"))


@pytest.fixture(scope="module")
def from_scratch(tmp_path_factory: pytest.TempPathFactory, train_here: Train) -> Path:
    folder = tmp_path_factory.mktemp("scratch") / "run"
    train_here(folder, SHORT)
    return folder


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_branch_and_a_branch_of_that_equal_the_runs_from_scratch_bit_for_bit(
    trunk: Path, from_scratch: Path, train_here: Train, tmp_path: Path
) -> None:
    """From step 23, the newest one that fits: no row, validation or regular checkpoint falls on it."""
    train_here(tmp_path / "run", SHORT, f"branch_from={trunk}", "checkpoint.keep_steps=[24]")
    assert_same_run(tmp_path / "run", from_scratch)
    ours, theirs = result_of(tmp_path / "run"), result_of(from_scratch)
    assert (ours["branched_from"], theirs["branched_from"]) == ({"name": "trunk", "step": 23}, None)
    assert (ours["tokens_trained"], theirs["tokens_trained"]) == (7 * 256, 30 * 256)
    assert ours["train_tokens"] == 30 * 256
    train_here(tmp_path / "again", f"branch_from={tmp_path}/run")
    assert_same_run(tmp_path / "again", trunk)
    assert result_of(tmp_path / "again")["branched_from"] == {"name": ours["name"], "step": 24}


@pytest.mark.parametrize("ending", ["crash", "signal"])
def test_a_branch_that_is_interrupted_goes_on_also_without_its_trunk(
    ending: str,
    trunk_copy: Path,
    from_scratch: Path,
    train_here: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = (tmp_path / "run", SHORT, f"branch_from={trunk_copy}/checkpoints/step-000017.ckpt")
    write = Journal._write

    def end_at_25(journal: Journal, step: int, *rest: Any) -> None:
        write(journal, step, *rest)
        if step == 25 and ending == "crash":
            raise InterruptedError
        if step == 25:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", end_at_25)
        if ending == "crash":  # the newest checkpoint is of step 21
            with pytest.raises(InterruptedError):
                train_here(*command)
        else:
            assert train_here(*command)["status"] == "interrupted"
    shutil.rmtree(trunk_copy)
    train_here(*command)
    assert_same_run(tmp_path / "run", from_scratch)
    assert result_of(tmp_path / "run")["branched_from"] == {"name": "trunk", "step": 17}
    assert result_of(tmp_path / "run")["tokens_trained"] == 13 * 256


def test_a_branch_that_ended_before_its_first_checkpoint_starts_again_from_scratch_if_told_to(
    trunk: Path, from_scratch: Path, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_at_once(journal: Journal, *rest: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", end_at_once)
        with pytest.raises(InterruptedError):
            train_here(tmp_path / "run", SHORT, f"branch_from={trunk}")
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [5, 10, 15, 20]  # the trunk's
    train_here(tmp_path / "run", SHORT)
    assert_same_run(tmp_path / "run", from_scratch)
    assert result_of(tmp_path / "run")["branched_from"] is None


def test_a_shorter_run_is_a_trunk_too_up_to_the_step_at_which_its_decay_begins(
    trunk: Path, from_scratch: Path, train_here: Train, tmp_path: Path
) -> None:
    """Its checkpoint of step 25 has the rate of its own next step, which is below the branch's."""
    shutil.copytree(from_scratch, tmp_path / "short")
    (tmp_path / "short" / "result.json").unlink()
    shutil.rmtree(tmp_path / "short" / "checkpoints")
    train_here(tmp_path / "short", SHORT, "checkpoint.keep_steps=[25,26]")
    train_here(tmp_path / "run", f"branch_from={tmp_path}/short")
    assert_same_run(tmp_path / "run", trunk)
    assert result_of(tmp_path / "run")["branched_from"]["step"] == 25


def test_kept_checkpoints_are_those_of_the_steps_named(trunk: Path) -> None:
    kept = sorted(path.name for path in (trunk / "checkpoints").glob("step-*"))
    assert kept == [f"step-{step:06d}.ckpt" for step in (7, 17, 23, 26)]
    for name in kept:
        assert torch.load(trunk / "checkpoints" / name, weights_only=True)["global_step"] == int(name[5:11])


def test_a_damaged_kept_checkpoint_is_skipped_for_an_earlier_one(
    trunk_copy: Path, train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (trunk_copy / "checkpoints" / "step-000023.ckpt").write_bytes(b"PK")
    train_here(tmp_path / "run", SHORT, f"branch_from={trunk_copy}", "dry_run=true")
    output = capsys.readouterr().out
    assert "step-000023.ckpt is damaged" in output
    assert "branching    from step 17 of trunk" in output
    assert not (tmp_path / "run").exists()


REFUSED = {
    "nothing there": (["branch_from=nowhere"], "branch_from=.*nowhere must be a run with"),
    "no run": (["branch_from=tests"], "must be a run with config.yaml"),
    "another learning rate": (["optim.lr=0.5"], r"other settings \(optim\.lr is 0\.006 there, 0\.5 here\)"),
    "another seed": (["seed=2"], r"\(seed is 1 there, 2 here\)"),
    "other rows": (["train.log_every=2"], r"train\.log_every is 5 there, 2 here"),
    "another warm-up": (["schedule.warmup_steps=4"], r"shares no step .* same schedule\.warmup_steps"),
    "decay before what was kept": (["schedule.decay_fraction=0.87"], r"the first 4 steps .*keep_steps=\[4\]"),
    "a checkpoint of the decay": (["{}/checkpoints/step-000026.ckpt"], "is at step 26, and only the first 25 steps"),
    "a budget that ends before": (["train.tokens=1792", "schedule.decay_fraction=0.01"], "only the first 6 steps of"),
    "its own decay": (["{}/checkpoints/last.ckpt", "train.tokens=20480"], "is at step 40, and only the first 33 steps"),
    "another file": (["{}/config.yaml"], "must be a run with"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_the_same_run_is_refused(case: str, trunk: Path, train_here: Train, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    changes = [f"branch_from={item.format(trunk)}" if item.startswith("{}") else item for item in changes]
    with pytest.raises(ValueError, match=message) as error:
        train_here(tmp_path / "run", SHORT, f"branch_from={trunk}", *changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_branch_from_the_last_step_of_another(trunk_copy: Path, train_here: Train, tmp_path: Path) -> None:
    """Its row is of the whole validation set, whatever the schedule."""
    config = trunk_copy / "config.yaml"
    config.write_text(config.read_text().replace("name: wsd", "name: constant"))
    changes = ["schedule.name=constant", f"branch_from={trunk_copy}/checkpoints/last.ckpt"]
    with pytest.raises(ValueError, match=r"is at step 40, and only the first 39 steps"):
        train_here(tmp_path / "run", "train.tokens=20480", *changes)


def test_a_trunk_on_another_text_is_refused(trunk_copy: Path, train_here: Train, tmp_path: Path) -> None:
    (trunk_copy / "corpus.json").write_text(json.dumps({"data": "aaaa", "tokenizer": "bbbb"}))
    with pytest.raises(ValueError, match=r"another corpus \(data is aaaa there"):
        train_here(tmp_path / "run", SHORT, f"branch_from={trunk_copy}")
    assert not (tmp_path / "run").exists()
