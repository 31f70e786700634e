"""A run may start from the weights of a checkpoint: with its shape and tokenizer, and a new optimizer and schedule."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from slm.checkpoints import export, load
from slm.data.chat_template import PLAIN_TEMPLATE
from slm.data.corpus import prepare
from slm.data.tokenizer import Tokenizer
from slm.data.vocabulary import byte_tokenizer, load_tokenizer
from slm.model.quantised import round_in_training
from slm.training import run as run_module
from slm.training.initial import matching_rows, tokenizer_source, with_rows
from slm.training.journal import Journal
from slm.training.run import train
from slm.training.setup import checked_settings, set_up
from tests.composing import choice, composed
from tests.data.chats import CHATML, MARKED
from tests.running import make_command, refusal
from tests.training.small import assert_same_run, final_state, rows

Train = Callable[..., dict[str, Any]]
STARTED = ["trainer.precision=32-true", "train.tokens=5120", "optim.lr=1e-3", "data.val_fraction=0.1"]


@pytest.fixture(scope="module")
def train_here(text_file: Path, cache_dir: Path) -> Iterator[Train]:
    """Train in this process. With `init_from`, no key of the shape and no tokenizer is given."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    command = make_command(text_file, cache_dir, "output_dir=none")[2:]
    shapeless = [item for item in command if not item.startswith(("model.", "tokenizer"))]
    whole = composed(*command)
    without_shape = composed(*shapeless)

    def run(folder: Path, *changes: str) -> dict[str, Any]:
        defaults = without_shape if any(item.startswith("init_from=") for item in changes) else whole
        config = OmegaConf.merge(defaults, OmegaConf.from_dotlist([f"output_dir={folder}", *changes]))
        return train(set_up(checked_settings(config, changes)))

    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, train_here: Train) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    train_here(folder, "name=first", "model.family=mine", "optim.ema_decay=0.9")
    return folder


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory, first: Path, train_here: Train) -> Path:
    folder = tmp_path_factory.mktemp("second") / "run"
    train_here(folder, f"init_from={first}", *STARTED)
    return folder


def test_a_run_starts_from_the_exported_weights_with_a_new_optimizer_and_a_new_warm_up(
    first: Path, second: Path, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, torch.Tensor]] = []
    fit = run_module.make_trainer

    def note_weights(plan: Any, callbacks: Any) -> Any:
        trainer = fit(plan, callbacks)
        inner = trainer.fit

        def fit_after_noting(module: Any, *rest: Any, **how: Any) -> None:
            started.append({name: tensor.clone() for name, tensor in module.decoder.state_dict().items()})
            inner(module, *rest, **how)

        trainer.fit = fit_after_noting
        return trainer

    monkeypatch.setattr(run_module, "make_trainer", note_weights)
    train_here(tmp_path / "run", f"init_from={first}", *STARTED)
    exported = load(first).decoder.state_dict()
    assert all(torch.equal(started[0][name], tensor) for name, tensor in exported.items())
    rates = [float(row["train/lr"]) for row in rows(second) if row["train/lr"]]
    assert rates[-1] < rates[0] <= 1e-3  # not that of the end of the first run, 1.6e-3 and falling
    steps = [value for name, value in final_state(second).items() if name.endswith(" step")]
    assert {int(step) for step in steps} == {20}
    assert_same_run(tmp_path / "run", second)


def test_shape_tokenizer_and_family_come_from_the_checkpoint_and_result_json_says_so(first: Path, second: Path) -> None:
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (second, first))
    assert ours["shape"] == theirs["shape"]
    assert (ours["tokenizer"], ours["family"]) == (theirs["tokenizer"], "mine")
    fingerprint = load(first).provenance.fingerprint
    start = {"checkpoint": str(first), "revision": None, "fingerprint": fingerprint, "tokens_before": 10240}
    assert ours["init_from"] == start | {"vocab": "same"}
    assert theirs["init_from"] is None
    assert ours["val"]["loss"] < theirs["val"]["loss"]


@pytest.mark.parametrize("compiled", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_run_trains_for_rounded_weights_and_exports_those_that_are_not_rounded(
    first: Path, second: Path, train_here: Train, tmp_path: Path, compiled: str
) -> None:
    folder = tmp_path / "run"
    result = train_here(folder, f"init_from={first}", *STARTED, "quantize=int4", f"trainer.compile={compiled}")
    assert result["quantize"] == "int4"
    assert "| trained for | quantize=int4 |" in (export(folder, tmp_path / "out") / "README.md").read_text()
    decoder, unaware = load(folder).decoder, load(second).decoder
    assert decoder.state_dict().keys() == unaware.state_dict().keys()
    assert not torch.equal(decoder.layers[0].mlp.up_proj.weight, unaware.layers[0].mlp.up_proj.weight)  # type: ignore[union-attr]
    settings = OmegaConf.load(folder / "config.yaml")
    corpus = prepare(settings["data"], tokenizer_source(settings), cache_dir=Path(settings["cache_dir"]))
    tokens = torch.from_numpy(corpus.val.read(0, corpus.val.num_tokens).astype("int64"))
    losses = []
    for rounded in (False, True):
        if rounded:
            round_in_training(decoder, "int4")
        windows = [tokens[None, start : start + 33] for start in range(0, len(tokens) - 1, 32)]
        losses.append(torch.cat([decoder.token_losses(w[:, :-1], w[:, 1:])[0] for w in windows]).mean().item())
    assert result["val"]["loss"] == pytest.approx(losses[1], rel=1e-6)
    unrounded_error, rounded_error = (abs(result["val"]["loss"] - loss) for loss in losses)
    assert rounded_error < unrounded_error / 10  # how much the rounding costs depends on the machine
    with pytest.raises(ValueError, match="quantize is int4 there, None here"):
        train_here(folder, f"init_from={first}", *STARTED)


def test_a_run_that_is_killed_goes_on_bit_for_bit_without_its_initial_checkpoint(
    first: Path, second: Path, train_here: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    command = (tmp_path / "run", f"init_from={copy}", *STARTED)
    write = Journal._write

    def end_at_10(journal: Journal, step: int, *rest: Any) -> None:
        write(journal, step, *rest)
        if step == 10:  # the newest checkpoint is of step 7
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", end_at_10)
        with pytest.raises(InterruptedError):
            train_here(*command)
    shutil.rmtree(copy)
    result = train_here(*command)
    assert_same_run(tmp_path / "run", second)
    assert (result["init_from"]["checkpoint"], result["init_from"]["tokens_before"]) == (str(copy), 10240)
    chained = train_here(tmp_path / "third", f"init_from={tmp_path}/run/model", *STARTED)
    assert chained["init_from"]["tokens_before"] == 10240 + 5120


def test_what_contradicts_the_checkpoint_is_refused(
    first: Path, second: Path, train_here: Train, tmp_path: Path
) -> None:
    refused = {
        "model.hidden_size=64": r"hidden_size=64 contradicts init_from=.*, where it is 32: leave out the keys",
        "model.vocab_size=300": r"vocab_size=300 contradicts .* where it is 260: leave it out, or set init_vocab=match",
        f"branch_from={second}": "are both set: a branch continues the optimizer",
        "tokenizer.kind=bpe": r"tokenizer=bpe would train a tokenizer, but .* 257 ids: leave tokenizer out",
        f"output_dir={second}": r"holds a run with other settings \(seed is 1 there, 2 here\)",
    }
    for change, message in refused.items():
        with pytest.raises(ValueError, match=message) as error:
            train_here(tmp_path / "run", f"init_from={first}", *STARTED, "seed=2", change)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"init_from='nowhere' does not exist: give a run directory"):
        train_here(tmp_path / "run", "init_from=nowhere")
    with pytest.raises(ValueError, match=r"finished run .*output_dir with init_from=.*, or with branch_from="):
        train_here(second, f"init_from={first}", *STARTED, "train.tokens=10240")
    assert "init_from=CHECKPOINT too" in refusal(["tokenizer=checkpoint", "dry_run=plan"])
    assert not (tmp_path / "run").exists()


def test_the_chat_template_is_that_of_the_checkpoint_whatever_the_cache_holds_of_another(
    first: Path, tmp_path: Path, text_file: Path
) -> None:
    """Of two checkpoints with the same tokenizer.json, and of one without a template before them."""
    talks = tmp_path / "talks.jsonl"
    talks.write_text("".join(f'{{"prompt": "{n} + 1", "completion": "{n + 1}"}}\n' for n in range(100)))
    cache_dir = tmp_path / "cache"
    for number, template in enumerate((None, CHATML, MARKED)):
        checkpoint = Path(shutil.copytree(first / "model", tmp_path / str(number) / "release"))
        if template is not None:
            (checkpoint / "chat_template.jinja").write_text(template)
        changes = [f"init_from={checkpoint}", "output_dir=none"]
        command = [item for item in make_command(text_file, cache_dir, *changes)[2:] if not item.startswith("model.")]
        given = composed(*(item for item in command if not item.startswith("tokenizer")))
        tokenizer = tokenizer_source(checked_settings(OmegaConf.create(given), changes))
        for data, expected in (("local", template), ("chat", template or PLAIN_TEMPLATE)):
            texts = choice("data", data) | {"paths": str(text_file if data == "local" else talks)}
            corpus = prepare(texts, tokenizer, cache_dir=cache_dir)
            assert corpus.tokenizer.chat_template == expected
            assert corpus.fingerprint == corpus.documents_fingerprint or data == "chat"


def test_a_longer_context_is_no_contradiction(first: Path, train_here: Train, tmp_path: Path) -> None:
    longer = ("model.max_position_embeddings=4096", "model.rope_theta=50000", "train.sequence_length=64")
    shape = train_here(tmp_path / "run", f"init_from={first}", *STARTED, *longer)["shape"]
    assert (shape["max_position_embeddings"], shape["rope_theta"]) == (4096, 50000)


def test_a_new_vocabulary_keeps_the_rows_of_tokens_that_both_have(
    first: Path, train_here: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the tokenizer that train.py takes by default, which is trained on the text."""
    vocabulary = ("init_vocab=match", "model.vocab_size=400", "tokenizer.vocab_size=400")
    result = train_here(tmp_path / "run", f"init_from={first}", *STARTED, *vocabulary)
    assert "vocabulary   257 of 400 rows are the checkpoint's" in capsys.readouterr().out  # all bytes, and the end
    assert (result["tokenizer"]["name"], result["shape"]["vocab_size"]) == ("bpe-400", 400)


def test_rows_are_matched_by_the_text_of_tokens_and_the_others_are_the_mean() -> None:
    old = byte_tokenizer()
    content = json.loads(old.content)
    ids = content["model"]["vocab"]
    content["model"]["vocab"] = {token: (number + 7) % 256 for token, number in ids.items() if number < 256}
    content["model"]["vocab"]["new"] = 256
    content["added_tokens"][0] |= {"id": 257, "content": "</s>"}
    new = Tokenizer("new", json.dumps(content), eos="</s>")
    weight = torch.randn(260, 3, dtype=torch.float64)
    found = with_rows(weight, matching_rows(old, new, 264))
    for text in ("a", "~", "\n"):
        assert torch.equal(found[new.encode(text)], weight[old.encode(text)])
    assert torch.equal(found[257], weight[256])  # the end of a text, whatever it is called
    torch.testing.assert_close(found[[256, 258, 263]], weight.mean(0).expand(3, 3))


def test_a_release_that_transformers_wrote_is_a_start(train_here: Train, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**shape, num_attention_heads=4, tie_word_embeddings=True)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "release")
    byte_tokenizer().save(tmp_path / "release")
    result = train_here(tmp_path / "run", f"init_from={tmp_path}/release", *STARTED)
    assert (result["family"], result["init_from"]["tokens_before"]) == ("release", None)
    assert result["val"]["loss"] < 5.2  # below that of a uniform guess, 5.56
    assert load_tokenizer(tmp_path / "run" / "model").fingerprint == byte_tokenizer().fingerprint
