from pathlib import Path

import pytest
import torch

from slm.training.checkpointing import (
    BEST,
    LAST,
    PREVIOUS,
    CheckpointError,
    checkpoint_step,
    link_last,
    newest_intact,
    write_checkpoint,
)
from slm.training.trainer import RandomState


def save(folder: Path, *values: int) -> None:
    for value in values:
        write_checkpoint({"value": torch.full((1000,), value)}, folder / LAST)


def value_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["value"][0])


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert (value_of(tmp_path / LAST), value_of(tmp_path / PREVIOUS)) == (3, 2)
    assert newest_intact(tmp_path) == tmp_path / LAST


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_newest_checkpoint_is_skipped(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture) -> None:
    save(tmp_path, 1, 2)
    content = (tmp_path / LAST).read_bytes()
    half, rest = content[: len(content) // 2], content[len(content) // 2 :]
    damaged = {"truncate": half, "flip": half + bytes([rest[0] ^ 1]) + rest[1:], "empty": b""}
    (tmp_path / LAST).write_bytes(damaged[damage])
    assert newest_intact(tmp_path) == tmp_path / PREVIOUS
    assert "damaged" in capsys.readouterr().out


def test_a_folder_with_damaged_checkpoints_only_is_not_started_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / LAST).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        newest_intact(tmp_path)
    assert newest_intact(tmp_path / "empty") is None


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    torch.save({"global_step": 7}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match="another version"):
        checkpoint_step(tmp_path / LAST)
    write_checkpoint({"global_step": 7}, tmp_path / LAST)
    assert checkpoint_step(tmp_path / LAST) == 7


def test_a_failed_save_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, 2)

    def fill_the_disk(checkpoint: dict, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert value_of(tmp_path / LAST) == 2


def test_the_best_checkpoint_outlives_later_ones(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    link_last(tmp_path, BEST)
    save(tmp_path, 3, 4, 5)
    assert value_of(tmp_path / BEST) == 2


def test_random_states_survive_a_weights_only_load(tmp_path: Path) -> None:
    callback = RandomState()
    write_checkpoint(callback.state_dict(), tmp_path / LAST)
    expected = torch.rand(3)
    callback.load_state_dict(torch.load(tmp_path / LAST, weights_only=True))
    assert torch.equal(torch.rand(3), expected)
