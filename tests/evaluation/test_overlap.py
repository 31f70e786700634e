"""What a run is training to have been trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from slm.data.corpus import prepare_documents
from slm.evaluation.report.results import training_caveats
from slm.evaluation.texts import training_documents
from tests.composing import choice


def run_on(folder: Path, **changes: Any) -> Path:
    """What there is of a run on local text: its config, its corpus.json, the documents in its cache."""
    data = choice("data", "local", name="[my] text", **changes)
    _, facts = prepare_documents(data, cache_dir=folder / "cache")
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(json.dumps({"data": data, "cache_dir": str(folder / "cache")}))
    (folder / "run" / "corpus.json").write_text(json.dumps({"data": facts["fingerprint"]}))
    return folder / "run"


def test_the_share_of_bytes_that_was_trained_on_is_found_document_by_document(tmp_path: Path) -> None:
    for name, rows in {"train": ["one", "two three", "four"], "val": ["five"]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    run = run_on(tmp_path, paths=str(tmp_path / "train.jsonl"), val_paths=str(tmp_path / "val.jsonl"))
    training = training_documents(run, tmp_path / "elsewhere")
    assert training is not None
    assert training.share_of_bytes(["one", "five"]) == 3 / 7
    assert training.share_of_bytes(["five", "two"]) == 0.0
    assert training.share_of_questions([["what", "two three"], ["five"], ["six", "seven"], ["four", "x"]]) == 0.5


def test_a_long_text_is_training_by_the_pieces_that_training_cut_it_into(tmp_path: Path) -> None:
    text = "".join(f"Line number {i} of the text.\n" for i in range(2_000))
    (tmp_path / "train.txt").write_text(text)
    (tmp_path / "val.txt").write_text("Another text.")
    run = run_on(tmp_path, paths=str(tmp_path / "train.txt"), val_paths=str(tmp_path / "val.txt"))
    training = training_documents(run, tmp_path)
    assert training is not None
    assert training.share_of_bytes([text]) == 1.0
    two_pieces = 2 * (16 << 10)
    assert training.share_of_bytes([text[:40_000] + "New end."]) == pytest.approx(two_pieces / 40_008, abs=0.01)
    assert training.share_of_bytes(["No " + text]) < 1.0


def test_text_of_every_source_of_a_mix_is_training(tmp_path: Path) -> None:
    sources, fingerprints = {}, {}
    for name, rows in {"a": ["one", "two"], "b": ["three four"]}.items():
        files = {"paths": tmp_path / f"{name}.jsonl", "val_paths": tmp_path / f"{name}-val.jsonl"}
        for file, texts in zip(files.values(), (rows, ["five"]), strict=True):
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources[name] = choice("data", "local", **{key: str(file) for key, file in files.items()})
        fingerprints[name] = prepare_documents(sources[name], cache_dir=tmp_path / "cache")[1]["fingerprint"]
    data = {"name": "mix", "source": "mix", "sources": sources, "weights": {"a": 1, "b": 1}, "schedule": None}
    (tmp_path / "config.yaml").write_text(json.dumps({"data": data, "cache_dir": str(tmp_path / "cache")}))
    (tmp_path / "corpus.json").write_text(json.dumps({"data": "f", "sources": fingerprints}))
    training = training_documents(tmp_path, tmp_path / "elsewhere")
    assert training is not None
    assert training.share_of_bytes(["three four", "five"]) == 10 / 14
    assert training.share_of_questions([["two"], ["three four", "x"], ["five"], ["six"]]) == 0.5


def test_nothing_is_claimed_where_nothing_is_training(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("word " * 10_000)
    run = run_on(tmp_path, paths=str(tmp_path / "train.txt"))
    assert training_documents(None, tmp_path) is None
    (tmp_path / "cache").rename(tmp_path / "gone")
    assert training_documents(run, tmp_path) is None


def test_the_caveats_name_checkpoint_and_text() -> None:
    texts = {"held.txt": {"in_training": 0.25}, "wiki": {"in_training": 0.0}, "old": {}}
    tasks = {"quiz": {"in_training": 1.0}, "piqa": {}}
    ending = "so its results there say little about unseen text."
    told = [training_caveats({"name": "mine"}, *each) for each in ((texts, "bytes"), (tasks, "questions"))]
    shares = ("25% of the bytes of held.txt", "100% of the questions of quiz")
    assert told == [[f"mine was trained on {share}, {ending}"] for share in shares]
