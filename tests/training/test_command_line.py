"""What a person at the prompt meets: plans, several runs at once, and their own mistakes."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import train
from slm.checkpoints import load
from slm.composition.settings import PRECISIONS
from slm.data import prepare
from slm.training.checkpointing import newest_intact
from tests.running import ROOT, make_command, quiet_env, refusal, run_script
from tests.training.small import rows

Run = Callable[..., subprocess.CompletedProcess[str]]
Result = Callable[..., dict[str, Any]]

RESULT_KEYS = shlex.split("""
    schema status name family seed shape params_total params_non_embedding flops_per_token_6n flops_per_token_exact
    train_tokens steps batch_tokens sequence_length document_masking peak_lr parametrization schedule data tokenizer val
    train_loss_final tokens_per_second mfu peak_memory_bytes wall_seconds device precision versions git_commit
""")


@pytest.fixture(scope="module")
def finished(
    text_file: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """A run to its end, in `run`, the last of its arguments. No test changes its directory."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    how = ["trainer.precision=32-true", "checkpoint.keep_best=true", "checkpoint.every_steps=null"]
    done = run_script(make_command(text_file, cache_dir, *how, f"output_dir={folder}"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def run(finished: subprocess.CompletedProcess[str]) -> Path:
    """The directory of `finished`."""
    return Path(finished.args[-1].removeprefix("output_dir="))


def test_a_finished_run_directory_holds_what_the_design_promises(
    finished: subprocess.CompletedProcess[str], run: Path
) -> None:
    assert "validation" in finished.stdout, finished.stdout + finished.stderr
    result = json.loads((run / "result.json").read_text())
    assert result.keys() >= {*RESULT_KEYS}
    assert result["status"] == "completed"
    assert result["train_tokens"] == 10240
    # Bytes as tokens: a token is a byte but for the marks between documents, which are scored and have none.
    assert 0 <= result["val"]["tokens"] - result["val"]["bytes"] < 200
    assert result["val"]["loss"] < 5.0  # guessing is ln 260 = 5.56
    weights = load_file(run / "model" / "model.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == result["params_total"]


def test_a_model_has_the_parametrization_and_averaged_weights_of_its_run(result_of: Result, tmp_path: Path) -> None:
    base = ["parametrization=completep", "parametrization.base_width=16", "parametrization.base_depth=1"]
    result = result_of("optim=muon", "optim.ema_decay=0.9", *base, "parametrization.base_head_dim=16")
    assert (result["parametrization"], result["optimizer"], result["ema_decay"]) == ("completep", "muon", 0.9)
    assert result["base_shape"] == {"base_width": 16, "base_depth": 1, "base_head_dim": 16}
    checkpoint = load(tmp_path / "run")
    assert checkpoint.decoder.config.to_dict() == result["shape"]
    assert (checkpoint.decoder.config.residual_multiplier, checkpoint.decoder.config.logits_multiplier) == (0.5, 0.5)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in checkpoint.decoder.state_dict().items():
        assert torch.equal(tensor, state["average." + name.replace(".", "/")])
        assert not torch.equal(tensor, state["decoder." + name])


def test_the_config_of_a_run_runs_again_and_gives_the_same_loss(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "-cp", str(run), "-cn", "config"]
    run_script([*command, "output_dir=again"], cwd=tmp_path).check_returncode()
    first, again = (json.loads((folder / "result.json").read_text()) for folder in (run, tmp_path / "again"))
    assert again["val"]["loss"] == first["val"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "parameters"), [("mobilellm_125m", "124,635,456"), ("mobilellm_ls_350m", "345,355,200")]
)
def test_a_dry_run_measures_a_published_model(model: str, parameters: str, cache_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), f"model={model}", "dry_run=true", "trainer.compile=false"]
    small = ["train.sequence_length=8", "train.batch_tokens=64", f"cache_dir={cache_dir}"]
    done = run_script(command + small, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert parameters in done.stdout
    assert re.search(r"duration +about", done.stdout)


def test_a_dry_run_prints_the_plan_says_if_it_takes_over_an_hour_and_writes_nothing(
    run_train: Run, tmp_path: Path
) -> None:
    done = run_train("dry_run=true", "train.tokens=1e12")
    assert done.returncode == 0, done.stderr
    embedding, block = 260 * 32, 2 * 32**2 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert f"{embedding + 2 * block + 32:,} total" in done.stdout
    assert re.search(r"duration +about .*\n.* over an hour", done.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("lr", "tokens"), [("1e4", 102400), ("1e38", 10240)])
def test_a_learning_rate_far_too_high_ends_as_diverged(lr: str, tokens: int, run_train: Run, tmp_path: Path) -> None:
    done = run_train("output_dir=run", f"train.tokens={tokens}", f"optim.lr={lr}", "schedule=constant")
    assert done.returncode == 2, done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"
    assert "Traceback" not in done.stdout + done.stderr
    assert "lower optim.lr" in done.stdout


# What was given, what the answer names, and whether it takes torch to see it.
BAD_INPUT = {
    "unknown model": (["model=mobilelm"], ["mobilelm", "mobilellm_125m"], False),
    "heads": (["model.num_heads=7", "model.num_kv_heads=3"], ["num_heads=7", "hidden_size=32"], False),
    "KV heads": (["model.num_heads=7", "model.num_kv_heads=3", "model.head_dim=8"], ["num_kv_heads=3"], False),
    "no such file": (["data.paths=nothing/*.txt"], ["data.paths", "nothing/*.txt"], False),
    "no such file, dry run": (["data.paths=nothing.txt", "dry_run=true"], ["data.paths", "nothing.txt"], False),
    "no such tokenizer": (["tokenizer=file", "tokenizer.path=/none"], ["tokenizer.path='/none'"], False),
    "budget below a step": (["train.tokens=100"], ["train.tokens=100", "train.batch_tokens=256"], False),
    "a suffix": (["train.tokens=1M"], ["train.tokens=1M must be a number above 0; write 1_000_000"], False),
    "text too short": (["data.paths=short.txt"], ["data=local", "give more"], True),
    "empty text": (["data.paths=empty.txt"], ["data.paths"], True),
    "vocabulary too small": (["model.vocab_size=100"], ["model.vocab_size=100", "257"], True),
    "schedule": (["schedule.warmup_fraction=2"], ["schedule.warmup_fraction=2"], False),
    "no GPU": (["trainer=gpu"], ["trainer.accelerator=cuda"], True),
    "unknown key": (["train.tokns=5"], ["train.tokns is not a setting of train.py; did you mean train.tokens?"], False),
    "unknown key, added": (["+train.tokns=5"], ["train.tokns is not a setting", "mean train.tokens?"], False),
    "unknown group, added": (["+famliy=ssd"], ["famliy is not a setting of train.py; did you mean family?"], False),
    "key of another choice": (["+optim.momentum=0.5"], ["optim.momentum has no effect", "optim=muon"], False),
    "key of another script": (["+checkpoints=[a]"], ["checkpoints=[a] is a setting of evaluate.py"], False),
    "no group": (["optim=null"], ["NoneType"], False),
    "wrong type": (["train.tokens=lots"], ["train.tokens=lots"], False),
    "negative seed": (["seed=-1"], ["seed=-1"], False),
    "dry run": (["dry_run=maybe"], ["dry_run=maybe must be true, false or plan"], False),
    "logger mode": (["logger=wandb", "logger.mode=bogus"], ["logger.mode=bogus"], False),
    "cache that cannot be written": (["cache_dir=/proc/nowhere"], ["cache_dir=/proc/nowhere"], False),
    "output_dir is a file": (["output_dir=empty.txt"], ["output_dir=empty.txt", "file"], False),
    "output_dir is in a file": (["output_dir=empty.txt/run"], ["output_dir=empty.txt/run cannot be made"], False),
    "cache_dir is a file": (["cache_dir=empty.txt"], ["cache_dir=empty.txt is a file"], False),
    "cache_dir is in a file": (
        ["cache_dir=empty.txt/c", "dry_run=plan"],
        ["cache_dir=empty.txt/c cannot be made"],
        False,
    ),
}


@pytest.fixture
def folder_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two texts that are too short."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("Too short.")
    return tmp_path


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(case: str, text_file: Path, cache_dir: Path, folder_of_texts: Path) -> None:
    changes, named, _ = BAD_INPUT[case]
    said = refusal(make_command(text_file, cache_dir, "output_dir=run", *changes)[2:])
    assert all(text in said for text in named), said
    assert "\n" not in said
    assert "+" not in said  # which Hydra recommends
    assert not (folder_of_texts / "run").exists()
    assert (folder_of_texts / "empty.txt").read_text() == ""


def test_a_refusal_that_needs_no_torch_imports_none(text_file: Path, cache_dir: Path, folder_of_texts: Path) -> None:
    cases = [changes for changes, _, needs_torch in BAD_INPUT.values() if not needs_torch]
    commands = [make_command(text_file, cache_dir, "output_dir=run", *changes)[2:] for changes in cases]
    code = f"import sys; from tests.running import refusal; [*map(refusal, {commands})]; print('torch' in sys.modules)"
    environment = quiet_env() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_a_mistake_at_the_prompt_is_one_sentence_and_exit_code_1(run_train: Run, tmp_path: Path) -> None:
    done = run_train("+train.tokns=5", "output_dir=run")
    assert done.returncode == 1
    assert done.stderr == "error: train.tokns is not a setting of train.py; did you mean train.tokens?\n"
    assert list(tmp_path.iterdir()) == []


def test_a_quick_plan_measures_nothing_and_says_so(train_command: Callable[..., list[str]], tmp_path: Path) -> None:
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    ended = "import atexit, sys; atexit.register(lambda: print('lightning' in sys.modules)); "
    command = [sys.executable, "-c", ended + code, *train_command("dry_run=plan", "model=mobilellm_125m")[1:]]
    shape = [item for item in command if not item.startswith("model.")]
    done = subprocess.run(shape, cwd=tmp_path, env=quiet_env(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "124,635,456 total" in done.stdout
    assert "nothing was measured" in done.stdout
    assert done.stdout.endswith("False\n")  # importing Lightning takes as long as all else
    assert "tokens/s" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_lightning_is_imported_without_torchmetrics_which_stays_what_it_is() -> None:
    code = "import sys, slm.training.imports, slm.training.run; print('torchmetrics.metric' in sys.modules); "
    code += "import torchmetrics; print(torchmetrics.MeanMetric(nan_strategy='ignore'))"
    done = subprocess.run([sys.executable, "-c", code], env=quiet_env(), capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\nMeanMetric()\n", done.stderr


def test_another_runs_directory_is_not_written_over(finished: subprocess.CompletedProcess[str], run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = run_script([*finished.args, "optim.lr=0.5"])
    assert done.returncode == 1
    assert "optim.lr is 0.004 there, 0.5 here" in done.stderr
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_other_text_under_the_same_paths_is_not_trained_on(run_train: Run, text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text_file.read_text())
    same = ["output_dir=run", "data.paths=text.txt", "train.tokens=2560"]
    run_train(*same).check_returncode()
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed just before
    (tmp_path / "text.txt").write_text(text_file.read_text().upper())
    done = run_train(*same)
    assert done.returncode == 1
    assert "other settings (data is" in done.stderr


def test_the_reported_loss_and_bits_per_byte_equal_those_of_the_exported_model_in_transformers(
    run: Path, text_file: Path, cache_dir: Path
) -> None:
    """Window by window in float32, with bytes counted from the text: nothing of slm.training is used."""
    val = json.loads((run / "result.json").read_text())["val"]
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    data, tokenizer = (
        OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / file))
        for file in ("data/local.yaml", "tokenizer/bytes.yaml")
    )
    corpus = prepare(data | {"paths": str(text_file)}, tokenizer, cache_dir=cache_dir)
    tokens, nats = torch.from_numpy(corpus.val.read(0, corpus.val.num_tokens).astype("int64")), 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 32):
            window = tokens[start : start + 33]
            logits = model(window[None, :-1]).logits[0].double()
            nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
    assert val["tokens"] == len(tokens) - 1
    assert val["bytes"] == corpus.val.num_bytes
    assert val["loss"] == pytest.approx(nats / val["tokens"], rel=1e-6)
    assert val["bits_per_byte"] == pytest.approx(nats / math.log(2) / corpus.val.num_bytes, rel=1e-6)
    assert val["perplexity"] == pytest.approx(math.exp(nats / val["tokens"]), rel=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_trains(precision: str, result_of: Result) -> None:
    result = result_of(f"trainer.precision={precision}", "train.tokens=2560", "train.val_tokens=1024")
    assert result["val"]["loss"] < 5.4  # guessing is 5.56


def test_the_best_checkpoint_is_kept_at_a_validation_without_a_checkpoint(run: Path) -> None:
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    losses = {int(row["step"]): float(row["val/loss"]) for row in rows(run) if row["val/loss"]}
    subset = {step: loss for step, loss in losses.items() if step < max(losses)}
    assert best["global_step"] == min(subset, key=subset.get)


def test_a_multirun_trains_independent_runs_and_goes_on_after_a_bad_one(run_train: Run, tmp_path: Path) -> None:
    done = run_train("seed=1,2", "model.num_heads=2,5", "train.tokens=2560", "hydra.sweep.dir=sweep", "-m", timeout=200)
    assert done.returncode == 1
    assert done.stderr.count("error: model.hidden_size=32 is not divisible by model.num_heads=5") == 2
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("*/result.json"))]
    assert [result["seed"] for result in results] == [1, 2]
    assert results[0]["val"]["loss"] != results[1]["val"]["loss"]
    headings = [line for line in done.stdout.splitlines() if re.match(r"\d/4  ", line)]
    assert headings[1] == "2/4  model.num_heads=2 seed=2"
    assert len(headings) == 4
    title, _, *rows = done.stdout.strip().splitlines()[-4:]
    assert title == "2 of 4 runs completed; without a result: 3, 4"
    for row, result in zip(rows, results, strict=True):
        assert f"seed={result['seed']}" in row
        assert f"{result['val']['loss']:.4f}" in row


@pytest.mark.parametrize(("launcher", "raises"), [("joblib_launcher.JoblibLauncher", True), ("x.BasicLauncher", False)])
def test_a_run_that_fails_where_another_process_started_it_hands_back_an_error(
    launcher: str, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of exit codes is then not that of the process which decides the exit code of the multirun."""
    now = SimpleNamespace(mode=RunMode.MULTIRUN, launcher={"_target_": launcher})
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: now)
    monkeypatch.setattr(train, "run", lambda config: 2)
    monkeypatch.setattr(train, "exit_codes", [])
    expected = pytest.raises(ValueError, match="exit code 2: the/run") if raises else nullcontext()
    with expected:
        train.main.__wrapped__(OmegaConf.create({"output_dir": "the/run"}))
    assert train.exit_codes == [2]


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk_keeps_the_last_good_checkpoint(run_train: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        # One checkpoint of this model takes about 0.4 MB: the disk holds two, and the third does not fit beside them.
        done = run_train(f"output_dir={disk}/run", "train.tokens=51200", "model.num_layers=4", timeout=120)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "could not be written" in done.stderr
        assert "Traceback" not in done.stderr
        assert newest_intact(disk / "run" / "checkpoints") is not None
        assert not list((disk / "run" / "checkpoints").glob("*.partial"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
