"""The set of calls: what is held out, and that a request names what its call needs."""

import json
from pathlib import Path

import pytest

from slm.data.chat_samples import calls, main, write_set


def test_no_call_that_is_held_out_is_one_to_train_on(tmp_path: Path) -> None:
    counts = write_set(tmp_path / "a", calls(2000), 0.1)
    write_set(tmp_path / "b", calls(2000), 0.1)
    lines = {split: (tmp_path / "a" / f"{split}.jsonl").read_text().splitlines() for split in ("train", "val")}
    assert counts == {split: len(rows) for split, rows in lines.items()}
    assert sum(counts.values()) == 2000
    assert 100 < counts["val"] < 300
    answers = {split: {json.dumps(json.loads(row)["messages"][1]) for row in rows} for split, rows in lines.items()}
    assert not answers["train"] & answers["val"]
    for split in lines:
        assert (tmp_path / "a" / f"{split}.jsonl").read_bytes() == (tmp_path / "b" / f"{split}.jsonl").read_bytes()


def test_a_request_names_the_arguments_of_its_call() -> None:
    for _, row in calls(500):
        request, answer = row["messages"]
        arguments = answer["tool_calls"][0]["function"]["arguments"]
        assert all(str(value) in request["content"] for value in arguments.values()), row


def test_it_needs_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([]) == main(["--help"]) == main([str(tmp_path / "file")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
