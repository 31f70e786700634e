"""data=chat: the loss of a step, runs that are killed, and what a run leaves behind."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from slm.checkpoints import load
from slm.data.conversations import encode_prompt
from slm.data.corpus import prepare
from slm.data.loader import train_loader
from slm.training.module import LanguageModel
from slm.training.plan import make_plan
from tests.composing import choice
from tests.data.chats import CALL
from tests.running import make_command, refusal, run_script, run_two
from tests.seeds import seeded
from tests.training.small import CPU, assert_same_run, config, losses, rows
from tests.training.test_resume import kill_at


def talk(rng: random.Random) -> list[dict]:
    """One to three questions, of which some are answered by a call."""
    messages = []
    for _ in range(rng.randint(1, 3)):
        a, b = rng.randint(1, 50), rng.randint(1, 50)
        answer = {"content": str(a + b)} if rng.random() < 0.7 else {"tool_calls": [CALL]}
        messages += [{"role": "user", "content": f"{a} and {b}?"}, {"role": "assistant", **answer}]
    return messages


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(seeded())
    file = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": talk(rng)}) + "\n" for _ in range(150)))
    return file


@pytest.fixture
def command(talks: Path, cache_dir: Path) -> Callable[..., list[str]]:
    changes = ["data=chat", "train.sequence_length=128", "train.batch_tokens=1024"]
    return lambda *more: make_command(talks, cache_dir, *changes, *more)


def test_the_loss_of_a_step_is_the_mean_over_its_scored_tokens(talks: Path, cache_dir: Path) -> None:
    """However the step is divided: against each conversation in a pass of its own, in float64."""
    corpus = prepare(choice("data", "chat") | {"paths": str(talks)}, {"kind": "bytes"}, cache_dir=cache_dir)
    settings = config(sequence_length=128, batch_tokens=1024, document_masking=True)
    settings["model"] |= {"vocab_size": 260}
    found, gradients = [], []
    for sequences_per_pass in (8, 3):
        plan = make_plan(settings, replace(CPU, micro_batch_tokens=128 * sequences_per_pass))
        module = LanguageModel(plan, separator=0, counts_scored=True).double()
        options = {"sequence_length": 128, "batch_size": 8, "seed": 1, "start_step": 0, "end_step": 1}
        batches = list(train_loader(corpus.train, micro_batch_size=plan.micro_batch_size, **options))
        loss = sum(module.training_step(batch, 0) for batch in batches) / plan.accumulation
        loss.backward()
        found.append(loss.item())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]))
    assert len(batches) > 1
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-12)
    nats, num_scored = 0.0, 0
    rows_of_step = [row for batch in batches for row in zip(batch.inputs, batch.targets, batch.documents, strict=True)]
    for inputs, targets, documents in rows_of_step:
        for number in documents.unique():
            alone = documents == number
            nats += module.decoder.token_losses(inputs[None, alone], targets[None, alone]).sum().item()
            num_scored += int((targets[alone] != -100).sum())
    assert found == pytest.approx([nats / num_scored] * 2, rel=1e-9)


def test_a_run_that_was_killed_is_the_run_that_was_not_and_its_model_can_talk(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    more = ["train.tokens=10240", "trainer.micro_batch_tokens=384", "train.eval_every=5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run_script(command(*more, f"output_dir={whole}"))
    assert done.returncode == 0, done.stderr
    kill_at(command(*more, f"output_dir={killed}", "checkpoint.every_steps=2"), killed, 5)
    done = run_script(command(*more, f"output_dir={killed}"))
    assert "continuing" in done.stdout
    assert_same_run(killed, whole)
    result = json.loads((whole / "result.json").read_text())
    assert result["scored_tokens"] == float(rows(whole)[-1]["scored_tokens"]) < result["train_tokens"]
    val_losses = [float(row["val/loss"]) for row in rows(whole) if row["val/loss"]]
    assert val_losses[-1] < val_losses[0]
    # transformers and slm make the same prompt of the exported template.
    _, tokenizer, _ = load(whole)
    reference = AutoTokenizer.from_pretrained(whole / "model")
    messages = [{"role": "user", "content": "1 and 2?"}]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encode_prompt(messages, tokenizer) == expected
    # evaluate.py scores the same tokens as the run.
    command_line = ["python", str(Path(__file__).parents[2] / "evaluate.py"), f"checkpoint={whole}"]
    settings = ["speed.enabled=false", "logger=csv", "device=cpu", f"output_dir={tmp_path / 'evaluation'}"]
    done = run_script([*command_line, *settings, f"cache_dir={tmp_path / 'cache'}"])
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    found = entry["perplexity_results"]
    assert len(found) == 2
    for score in found:
        assert (score["tokens"], score["bytes"]) == (result["val"]["tokens"], result["val"]["bytes"])
        assert score["loss"] == pytest.approx(result["val"]["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_learn_as_one(command: Callable[..., list[str]], strategy: str, tmp_path: Path) -> None:
    more = ["train.tokens=10240", "train.log_every=2", "trainer.precision=32-true"]
    two = [f"trainer={strategy}", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.micro_batch_tokens=384"]
    assert run_script(command(*more, f"output_dir={tmp_path / 'one'}")).returncode == 0
    assert run_two(command(*more, *two, f"output_dir={tmp_path / 'two'}")).returncode == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert losses(tmp_path / "two", "scored_tokens") == losses(tmp_path / "one", "scored_tokens")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["train.sequence_length=16"], "raise train.sequence_length"),
        (["data.template=none.jinja"], "data.template='none.jinja' cannot be read"),
        (["data.paths=README.md"], "README.md is of an unknown kind"),
        (["data.text_column=text"], "data.text_column"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    changes: list[str], sentence: str, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert sentence in refusal([*command(f"output_dir={tmp_path / 'run'}")[2:], *changes])
