"""What W&B wrote, read back from its files."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slm.tracking import Record, check_logger, open_trackers, record_directory
from slm.tracking.wandb_run import start_run
from tests.tracking.offline import SETTINGS, Server, history, inspected, records


def await_next_second() -> None:
    """W&B names the folder of a run by the second, so parts of one run that start in the same second overwrite it."""
    time.sleep(1 - time.time() % 1)


def track(folder: Path, *, resume_step: int = 0, samples: bool = True, **settings: Any) -> None:
    folder.mkdir(exist_ok=True)
    await_next_second()
    trackers = open_trackers(
        folder,
        {"name": "a-name", "seed": 3, "model": {"hidden_size": 32}, "logger": SETTINGS | settings},
        columns=["tokens", "val/loss", "val/bits_per_byte"],
        resume_step=resume_step,
    )
    for step, loss in ((resume_step + 1, 3.0), (resume_step + 2, 2.0), (resume_step + 3, 2.5)):
        if samples and step == resume_step + 3:
            for tracker in trackers:
                tracker.log_sample(step, 100 * step, "Once", " upon a time")
        for tracker in trackers:
            tracker.log(step, {"tokens": step * 100, "val/loss": loss, "val/bits_per_byte": loss / 2})
    for tracker in trackers:
        tracker.finish({"params_total": 123}, succeeded=True)


def files(folder: Path) -> list[Path]:
    """Of each part of a run, once W&B's service, which writes behind our back, has ended it."""
    found = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    for file in found:
        while not any(record.WhichOneof("record_type") == "exit" for record in records(file)):
            time.sleep(0.05)
    return found


def test_an_offline_run_holds_name_config_group_and_the_minimum_of_the_loss(tmp_path: Path) -> None:
    track(tmp_path / "run")
    (file,) = files(tmp_path / "run")
    written = inspected(file)
    assert written["name"] == "a-name"
    assert written["run_id"] == (tmp_path / "run" / "wandb" / "run_id").read_text()
    assert written["tags"] == ["x", "y"]
    assert (written["config"]["seed"], written["config"]["model"]) == (3, {"hidden_size": 32})
    assert written["summary"]["val/loss"] == {"min": 2.0}
    assert written["summary"]["val/bits_per_byte"] == {"min": 1.0}
    assert written["summary"]["params_total"] == 123
    assert written["summary"]["sample"]["nrows"] == 1
    assert b"a-group" in file.read_bytes()


def test_a_continued_run_keeps_its_id_and_another_directory_gets_another(tmp_path: Path) -> None:
    track(tmp_path / "run")
    track(tmp_path / "run", resume_step=3)
    track(tmp_path / "other")
    ids = [file.stem.removeprefix("run-") for folder in ("run", "other") for file in files(tmp_path / folder)]
    assert len(ids) == 3
    assert len(set(ids)) == 2


def test_each_row_of_both_parts_of_a_continued_run_is_at_its_optimizer_step(tmp_path: Path) -> None:
    track(tmp_path)
    track(tmp_path, resume_step=2)
    parts = [[(row["_step"], row["tokens"]) for row in history(file)] for file in files(tmp_path)]
    assert parts == [[(1, 100), (2, 200), (3, 300)], [(3, 300), (4, 400), (5, 500)]]
    assert "sample/nrows" in history(files(tmp_path)[1])[-1]


def test_a_sync_of_both_parts_gives_the_server_one_run_in_the_order_of_its_steps(tmp_path: Path) -> None:
    for resume_step in (0, 3):
        # Without samples: a table is an artifact, with a protocol of its own.
        track(tmp_path / "run", resume_step=resume_step, samples=False)
    with Server() as server:
        environment = {"HOME": str(tmp_path), "WANDB_MODE": "online"}
        environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": 40 * "a"}
        folders = [file.parent for file in files(tmp_path / "run")]
        command = [Path(sys.executable).with_name("wandb"), "sync", *folders]
        subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, timeout=60)
    assert [(row["_step"], row["tokens"]) for row in server.rows.values()] == [(n, 100 * n) for n in range(1, 7)]


def test_a_directory_that_is_recorded_again_continues_the_step(tmp_path: Path) -> None:
    contents: dict[str, Any] = {"tables": {"t": (["a"], [[1]])}, "images": [], "summary": {}, "files": []}
    for _ in range(3):
        await_next_second()
        record_directory(Record(folder=tmp_path, kind="evaluation", name="n", config={"logger": SETTINGS}, **contents))
    assert [row["_step"] for file in files(tmp_path) for row in history(file)] == [0, 1, 2]


def test_online_without_an_api_key_is_refused_and_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"logger\.mode=online needs an API key"):
        check_logger(SETTINGS | {"wandb": True, "mode": "online"})


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logger\.mode=on must be offline, online or disabled"):
        check_logger(SETTINGS | {"wandb": True, "mode": "on"})


def test_a_run_lies_where_it_was_asked_for_after_a_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's service, which writes the files, stays where the first run of a process started it."""
    for place in ("a", "b"):
        (tmp_path / place / "run").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        start_run(Path("run"), {}, name="n", settings=SETTINGS).finish()
        assert list(Path("run").glob("wandb/offline-run-*/run-*.wandb"))
