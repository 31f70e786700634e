"""Run directories of ours, as `train.py` leaves them: completed, or not."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm.checkpoints import check, export, load
from slm.training.optim import WeightAverage
from tests.checkpoints.releases import IDS, refusal
from tests.running import ROOT, make_command, run_script


@pytest.fixture(scope="session")
def trained(text_file: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    changes = ["train.tokens=4096", f"output_dir={run}", "model.layer_sharing=immediate", "model.num_repeats=2"]
    run_script(make_command(text_file, cache_dir, *changes)).check_returncode()
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_completed_run_is_its_export_with_its_result(run: Path) -> None:
    decoder, tokenizer, provenance = load(run)
    assert (provenance.kind, provenance.run, provenance.folder) == ("run", run, run / "model")
    assert provenance.result["status"] == "completed"
    assert provenance.result["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert provenance.notes == ()
    exported = load(run / "model")
    assert (exported.provenance.kind, exported.provenance.run) == ("export", run)
    assert exported.provenance.fingerprint == provenance.fingerprint
    assert torch.equal(decoder(IDS), exported.decoder(IDS))


def test_an_unfinished_run_is_its_newest_checkpoint_and_says_so(run: Path) -> None:
    whole = load(run)
    shutil.rmtree(run / "model")
    (run / "result.json").unlink()
    decoder, tokenizer, provenance = load(run)
    assert torch.equal(decoder(IDS), whole.decoder(IDS))
    assert tokenizer.fingerprint == whole.tokenizer.fingerprint
    assert provenance.result == {}
    assert "not finished: these are the weights of last.ckpt" in provenance.notes[0]
    (run / "checkpoints" / "last.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    assert "the weights of previous.ckpt" in check(run).notes[0]


def test_an_unfinished_run_with_averaged_weights_is_the_average_that_it_validates(run: Path) -> None:
    average, file = load(run).decoder, run / "checkpoints" / "last.ckpt"
    shutil.rmtree(run / "model")
    (run / "result.json").unlink()
    saved = torch.load(file, weights_only=True)
    kept = WeightAverage(average, decay=0.9).state_dict(prefix="average.")
    saved["state_dict"] = {name: tensor + 1 for name, tensor in saved["state_dict"].items()} | kept
    torch.save(saved, file)
    assert torch.equal(load(run).decoder(IDS), average(IDS))


def test_the_command_that_an_unfinished_run_gives_finishes_it(run: Path) -> None:
    (run / "result.json").unlink()
    shutil.rmtree(run / "model")
    command = check(run).notes[0].split("to finish it: ")[1].rstrip(".")
    run_script(command.replace("python", sys.executable, 1).split(), cwd=ROOT).check_returncode()
    assert check(run).result["status"] == "completed"


def test_a_run_without_checkpoint_or_tokenizer_says_how_to_finish_it(run: Path) -> None:
    shutil.rmtree(run / "model")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("cache_dir: ", "cache_dir: /absent"))
    assert "whose tokenizer is no longer in cache_dir=/absent" in refusal(run)
    shutil.rmtree(run / "checkpoints")
    command = f"python train.py -cp {run} -cn config output_dir={run}"
    assert f"without an intact checkpoint; to finish it: {command}" in refusal(run)
    (run / "corpus.json").rename(run / "elsewhere.json")
    assert "without an intact checkpoint" in refusal(run)
    (run / "elsewhere.json").rename(run / "corpus.json")
    (run / "config.yaml").write_text("[")
    (run / "checkpoints").mkdir()
    torch.save({"state_dict": {}}, run / "checkpoints" / "last.ckpt")
    assert "config.yaml is not the config of a run" in refusal(run)


def test_a_run_is_exported_with_a_card_and_unrolled_for_transformers(run: Path) -> None:
    folder = export(run, unroll_sharing=True)
    assert folder == run / "export-unrolled"
    decoder, tokenizer, _ = load(run)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (theirs(IDS).logits - decoder(IDS)).abs().max() < 1e-5
    assert AutoTokenizer.from_pretrained(folder).encode("a text") == tokenizer.encode("a text")
    card, result = (folder / "README.md").read_text(), json.loads((run / "result.json").read_text())
    name, fingerprint = result["tokenizer"]["name"], result["tokenizer"]["fingerprint"]
    assert name not in ("model", run.name)  # a folder that holds the tokenizer
    assert f"| tokenizer | {name} (fingerprint {fingerprint}), " in card
    for fact in (result["data"]["fingerprint"], str(result["val"]["bits_per_byte"]), "4,096", "license: unknown"):
        assert fact in card
    settings = (folder / "training.yaml").read_text()
    assert str(run) not in settings
    assert "cache_dir: ${oc.env:SLM_CACHE" in settings


def test_the_config_beside_the_card_is_that_of_the_run_in_folders_of_its_own(run: Path, monkeypatch) -> None:
    """As `python train.py -cp FOLDER -cn training output_dir=NEW` composes it."""
    monkeypatch.setenv("SLM_CACHE", "/my/cache")
    with initialize_config_dir(str(export(run)), version_base="1.3"):
        config = compose("training", ["output_dir=new"])
    with initialize_config_dir(str(run), version_base="1.3"):
        before = compose("config")
    again, places = OmegaConf.to_container(config, resolve=True), {"output_dir": "new", "cache_dir": "/my/cache"}
    assert again == OmegaConf.to_container(before, resolve=True) | places
