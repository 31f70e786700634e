"""A run on a mix: validation by source, epochs, continuation after a kill, branches and refusals."""

import json
import random
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from slm.checkpoints import load
from slm.evaluation.encode import run_stream
from slm.evaluation.perplexity import Protocol, perplexity
from tests.running import make_command, refusal, run_script
from tests.seeds import seeded
from tests.training.small import assert_same_run, rows
from tests.training.test_resume import finish, kill_at

T = 32  # train.sequence_length of a small run
SHARES = {"words": 0.8 * 0.75 + 0.2 * 0.5, "digits": 0.8 * 0.25 + 0.2 * 0.5}
LENGTH = ["train.tokens=20480", "train.eval_every=20", "trainer.precision=32-true"]  # 80 steps of 8 sequences


@pytest.fixture(scope="module")
def command(text_file: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    digits = tmp_path_factory.mktemp("digits") / "digits.txt"
    rng = random.Random(seeded(1))
    digits.write_text("\n\n".join(" ".join(str(rng.randrange(100)) for _ in range(100)) for _ in range(40)))
    small = "max_document_bytes: 1000, val_fraction: 0.2"
    files = {"words": text_file, "digits": digits}
    sources = ", ".join(f"{name}: {{data: local, paths: {path}, {small}}}" for name, path in files.items())
    mix = ["data=mix", f"data.sources={{{sources}}}", "data.weights={words: 3, digits: 1}"]
    mix += ["data.schedule=[{at: 0.8, weights: {words: 1, digits: 1}}]"]

    def make(*changes: str) -> list[str]:
        made = make_command(text_file, cache_dir, *mix, *LENGTH, *changes)
        return [item for item in made if not item.startswith("data.paths=")]

    return make


@pytest.fixture(scope="module")
def whole(command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "run"
    finish(command(f"output_dir={folder}"))
    return folder


def test_validation_is_by_source_and_overall_by_the_shares_of_the_run(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    by_source = result["val"]["by_source"]
    decoder, tokenizer, _ = load(whole)
    protocol = Protocol(name="non_overlapping", max_length=T, stride=T)
    for name, val in by_source.items():
        stream = run_stream(whole, tokenizer, cache_dir=whole, source=name)
        score = perplexity(decoder, stream, protocol, batch_tokens=4096)
        assert (score["tokens"], score["bytes"]) == (val["tokens"], val["bytes"])
        assert score["loss"] == pytest.approx(val["loss"], rel=1e-5)
        assert score["bits_per_byte"] == pytest.approx(val["bits_per_byte"], rel=1e-5)
    loss = sum(SHARES[name] * val["loss"] for name, val in by_source.items())
    bytes_per_token = sum(SHARES[name] * val["bytes"] / val["tokens"] for name, val in by_source.items())
    assert result["val"]["loss"] == pytest.approx(loss)
    assert result["val"]["bits_per_byte"] == pytest.approx(loss / bytes_per_token / 0.6931471805599453, rel=1e-4)
    last = rows(whole)[-1]
    assert float(last["val/digits/loss"]) == by_source["digits"]["loss"]
    assert float(last["val/words/bits_per_byte"]) == by_source["words"]["bits_per_byte"]
    with pytest.raises(ValueError, match=r"^source=letters: .* data=mix, has the sources words, digits$"):
        run_stream(whole, tokenizer, cache_dir=whole, source="letters")
    # evaluate.py weights the sources in the same way; its windows also cross the border between two sources.
    all_sources = perplexity(decoder, run_stream(whole, tokenizer, cache_dir=whole), protocol, batch_tokens=4096)
    assert all_sources["loss"] == pytest.approx(loss, rel=0.01)
    assert all_sources["data_fingerprint"] == result["data"]["fingerprint"]


def test_epochs_are_counted_by_source(whole: Path) -> None:
    data = json.loads((whole / "result.json").read_text())["data"]
    sequences = {"words": 64 * 8 * 3 / 4 + 16 * 8 / 2, "digits": 64 * 8 / 4 + 16 * 8 / 2}
    for name, source in data["sources"].items():
        assert source["share"] == pytest.approx(SHARES[name])
    epochs = {name: source["epochs"] for name, source in data["sources"].items()}
    assert data["epochs"] == max(epochs.values()) == epochs["digits"]
    ratio = epochs["digits"] / epochs["words"]
    (cache,) = {json.loads(path.read_text())["splits"]["train"]["tokens"] for path in _manifests(whole, data, "digits")}
    (other,) = {json.loads(path.read_text())["splits"]["train"]["tokens"] for path in _manifests(whole, data, "words")}
    windows = {"digits": (cache - 1) // T, "words": (other - 1) // T}
    assert epochs == pytest.approx({name: sequences[name] / windows[name] for name in windows})
    assert ratio > 1


def _manifests(run: Path, data: dict, name: str) -> list[Path]:
    cache = next(line for line in (run / "config.yaml").read_text().splitlines() if line.startswith("cache_dir: "))
    manifests = Path(cache.removeprefix("cache_dir: ")).glob("tokens/local-*/manifest.json")
    fingerprint = data["sources"][name]["fingerprint"]
    return [path for path in manifests if json.loads(path.read_text())["fingerprint"] == fingerprint]


def test_a_run_killed_in_a_mix_and_around_a_change_of_weights_continues_to_the_bit(
    whole: Path, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    for step in (30, 60):  # the weights change at step 64; checkpoints are of every seventh step
        kill_at(command(f"output_dir={tmp_path}/run"), tmp_path / "run", step)
    assert "continuing" in finish(command(f"output_dir={tmp_path}/run"))
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_branch_of_a_mix_begins_before_the_weights_of_either_run_change(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    wsd = ["schedule=wsd", "schedule.warmup_steps=2", "schedule.decay_fraction=0.1", "train.eval_tokens=256"]
    make = partial(command, *wsd)
    finish(make("train.tokens=10240", "checkpoint.keep_steps=[16,18]", f"output_dir={tmp_path}/trunk"))  # 40 steps
    short = "train.tokens=5120"  # 20 steps: the weights change at step 16, the rate at step 18
    branched = finish(make(short, f"branch_from={tmp_path}/trunk", f"output_dir={tmp_path}/branch"))
    assert "branching    from step 16 of" in branched
    finish(make(short, f"output_dir={tmp_path}/alone"))
    assert_same_run(tmp_path / "branch", tmp_path / "alone")


def test_another_mix_in_the_directory_of_a_run_is_refused(whole: Path, command: Callable[..., list[str]]) -> None:
    done = run_script(command(f"output_dir={whole}", "data.weights={words: 1, digits: 1}"))
    assert done.returncode == 1
    assert "data.weights.words is 3 there, 1 here" in done.stdout + done.stderr


TWO = "'data.sources={a: pydocs}' 'data.weights={a: 1}'"
REFUSED = {
    "'data.sources={a: nosuch}'": "data.sources.a: ",
    "'data.sources={a: {data: local, path: x}}'": "data.sources.a has path, which is no key of data=local; did you",
    "'data.sources={a: {data: local}}'": "data.sources.a.paths must be set",
    "'data.sources={a: {data: pydocs, tokenizer: bytes}}'": "data.sources.a has tokenizer, which is no key of",
    "'data.sources={a: 3}'": "data.sources.a=3 must be the name of a data config",
    "'data.sources={a: {data: pydocs, val_fraction: 7}}'": "data.sources.a: data.val_fraction=7 must be a share",
    f"{TWO} data.weights.b=2": "data.weights.b does not exist yet: add it with +",
    "data=hub data.path=x/y": "data.path=x/y has another name now: give data.repo=x/y",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_source_that_cannot_be_read_is_refused_before_any_work(overrides: str, tmp_path: Path) -> None:
    weights = [] if "data.weights" in overrides or "data=hub" in overrides else ["data.weights={a: 1}"]
    data = [] if "data=hub" in overrides else ["data=mix"]
    said = refusal([*data, *shlex.split(overrides), *weights, "trainer=cpu", f"output_dir={tmp_path}/run"])
    assert said.startswith(REFUSED[overrides])
    assert not (tmp_path / "run").exists()
