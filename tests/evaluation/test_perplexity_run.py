"""A run of train.py, evaluated on its own validation text: the figures are the run's own."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.checkpoints import load
from slm.data import load_tokenizer
from slm.evaluation.encode import run_stream
from slm.evaluation.perplexity import Protocol, perplexity
from slm.evaluation.run import evaluate
from tests.evaluation.asked import small
from tests.running import make_command, run_script
from tests.seeds import seeded

LENGTH = 32  # train.sequence_length of tests/running.py


own_stream = partial(run_stream, cache_dir=Path("no-cache"))
"""The stream of a run whose own cache has its text."""


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    return Path(shutil.copy(text_file, tmp_path_factory.mktemp("own") / "own_words.txt"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, words: Path) -> Path:
    """A finished run, with a cache of its own."""
    folder = tmp_path_factory.mktemp("trained")
    command = make_command(words, folder / "cache", f"output_dir={folder / 'run'}", "train.eval_every=40")
    run_script(command, cwd=folder).check_returncode()
    return folder / "run"


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on documents of a few words that do not see each other."""
    folder, rng = tmp_path_factory.mktemp("masked"), random.Random(seeded())
    rows = [{"text": " ".join(rng.choices(["one", "two", "three", "four"], k=rng.randint(1, 6)))} for _ in range(4000)]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    changes = ["train.document_masking=true", "train.tokens=2560", "model.mixer_pattern=FG", "model.position=learned"]
    command = make_command(file, folder / "cache", f"output_dir={folder / 'run'}", *changes)
    run_script(command, cwd=folder).check_returncode()
    return folder / "run"


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def score(run: Path, batch_tokens: int = 8192, **changes: Any) -> dict[str, Any]:
    """The loss of a run on its own text, with the windows and the precision of its validation."""
    decoder, tokenizer, _ = load(run)
    protocol = Protocol(name="non_overlapping", max_length=LENGTH, stride=LENGTH)
    autocast = {"bf16-mixed": torch.bfloat16, "32-true": None}[result_of(run)["precision"]]
    stream = replace(own_stream(run, tokenizer), **changes)
    return perplexity(decoder, stream, protocol, batch_tokens=batch_tokens, autocast=autocast)


@pytest.mark.parametrize("batch_tokens", [256, 8192, LENGTH])
def test_a_runs_own_loss_and_bits_per_byte_come_out_again(trained: Path, batch_tokens: int) -> None:
    again, result = score(trained, batch_tokens), result_of(trained)
    val = result["val"]
    assert (again["tokens"], again["bytes"]) == (val["tokens"], val["bytes"])
    assert again["loss"] == pytest.approx(val["loss"], rel=1e-6)
    assert again["bits_per_byte"] == pytest.approx(val["bits_per_byte"], rel=1e-6)
    assert again["data_fingerprint"] == result["data"]["fingerprint"]


def test_a_run_that_masked_documents_from_each_other_is_scored_with_the_mask(masked: Path) -> None:
    again, unmasked, result = score(masked), score(masked, separator=None), result_of(masked)
    assert result["document_masking"] is True
    assert "Tokens attend only to their own document, as in training." in again["notes"]
    assert again["loss"] == pytest.approx(result["val"]["loss"], rel=1e-6)
    assert unmasked["loss"] != pytest.approx(result["val"]["loss"], rel=1e-3)


def test_a_run_from_before_documents_could_be_masked_is_scored_without_a_mask(trained: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "corpus.json"):
        shutil.copy(trained / name, tmp_path)
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("  document_masking: false\n", ""))
    assert "document_masking" not in (tmp_path / "config.yaml").read_text()
    stream = own_stream(tmp_path, load_tokenizer(trained / "model"))
    assert (stream.separator, stream.notes) == (None, own_stream(trained, load_tokenizer(trained / "model")).notes)


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Without a file or folder for a while."""
    elsewhere = path.rename(path.with_suffix(".away"))
    try:
        yield
    finally:
        elsewhere.rename(path)


def test_the_text_is_found_in_the_runs_cache_when_its_file_is_gone(trained: Path, words: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(trained / "model")
    before = own_stream(trained, tokenizer).tokens.tolist()
    with away(words):
        assert own_stream(trained, tokenizer).tokens.tolist() == before
        assert run_stream(trained, tokenizer, cache_dir=tmp_path).tokens.tolist() == before
        gone = r"^the validation text of .* is no longer available: .* no file"
        with away(trained.parent / "cache"), pytest.raises(ValueError, match=gone):
            run_stream(trained, tokenizer, cache_dir=tmp_path)
    with away(trained.parent / "cache"):
        assert run_stream(trained, tokenizer, cache_dir=tmp_path).tokens.tolist() == before


def test_a_part_of_the_runs_text_is_its_beginning_and_said_to_be_one(trained: Path) -> None:
    tokenizer = load_tokenizer(trained / "model")
    whole, part = own_stream(trained, tokenizer), own_stream(trained, tokenizer, max_tokens=100)
    assert part.tokens.tolist() == whole.tokens[:100].tolist()
    assert (part.num_scored, part.notes[1:]) == (99, ("Only the first 100 tokens of the text are used.",))
    assert own_stream(trained, tokenizer, max_tokens=10**9).notes == whole.notes


def test_a_text_that_has_changed_since_is_refused(trained: Path, words: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(trained / "model")
    content = words.read_text()
    words.write_text(content.replace(".", "!", 1))
    try:
        changed = "data=local is no longer the text of the run: its fingerprint was"
        with away(trained.parent / "cache"), pytest.raises(ValueError, match=changed):
            run_stream(trained, tokenizer, cache_dir=tmp_path)
    finally:
        words.write_text(content)


def test_another_tokenizer_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / "model", tmp_path / "other")
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(ValueError, match=r"the given tokenizer has fingerprint .* use the tokenizer in .*model"):
        own_stream(trained, load_tokenizer(folder))


def test_text_that_a_run_was_trained_on_is_scored_with_a_caveat(trained: Path, words: Path, tmp_path: Path) -> None:
    only = ["perplexity.protocols=[non_overlapping]", "speed.enabled=false"]
    evaluate(small(tmp_path, words, f"checkpoint={trained}", *only))
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())
    (manifest,) = (trained.parent / "cache" / "documents").glob("*/manifest.json")
    sizes = {split: facts["bytes"] for split, facts in json.loads(manifest.read_text())["splits"].items()}
    share = sizes["train"] / (sizes["train"] + sizes["val"])
    assert 0.5 < share < 1.0
    assert entry["perplexity_results"][0]["in_training"] == pytest.approx(share)
    said = f"**Caution:** {entry['name']} was trained on {100 * share:.3g}% of the bytes of own_words.txt"
    assert said in (tmp_path / "out" / "report.md").read_text().replace("\\", "")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run directory whose config\.yaml and corpus\.json can be read"):
        own_stream(tmp_path, load_tokenizer(trained / "model"))
