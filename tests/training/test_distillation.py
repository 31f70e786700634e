"""A run may learn from a teacher's predictions, and goes on after a kill as if there had been none."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from slm.checkpoints import load
from slm.data.loader import Batch
from slm.model.counts import flops_per_token, num_params
from slm.training.memory import activation_bytes
from slm.training.module import LanguageModel
from slm.training.plan import plan_lines
from slm.training.run import train
from slm.training.setup import checked_settings, set_up
from tests.composing import composed
from tests.running import make_command, refusal
from tests.training.small import assert_same_run, final_state, rows
from tests.training.test_resume import kill_at

TAUGHT = ["distill=logits", "distill.weight=0.4", "distill.temperature=3", "distill.top_k=20", "optim.lr=8e-3"]


class Trainer:
    """Trains a small student of `teacher` in this process, or gives the command that does."""

    def __init__(self, text_file: Path, cache_dir: Path, teacher: Path) -> None:
        self.teacher = teacher
        places = [f"distill.teacher={teacher}", "trainer.precision=32-true", "trainer.micro_batch_tokens=128"]
        shape = ["model.hidden_size=16", "model.num_heads=1", "model.head_dim=16", "model.intermediate_size=32"]
        self.command = make_command(text_file, cache_dir, *TAUGHT, *places, *shape, "output_dir=none")
        self.config = composed(*self.command[2:])

    def settings(self, folder: Path, *changes: str) -> dict[str, Any]:
        return checked_settings(
            OmegaConf.merge(self.config, OmegaConf.from_dotlist([f"output_dir={folder}", *changes]))
        )

    def train(self, folder: Path, *changes: str) -> dict[str, Any]:
        return train(set_up(self.settings(folder, *changes)))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, text_file: Path, cache_dir: Path) -> Iterator[Trainer]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teacher") / "run"
    config = composed(*make_command(text_file, cache_dir, "optim.lr=2e-2", f"output_dir={folder}")[2:])
    train(set_up(checked_settings(OmegaConf.create(config))))
    yield Trainer(text_file, cache_dir, folder)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, student: Trainer) -> Path:
    folder = tmp_path_factory.mktemp("taught") / "run"
    student.train(folder)
    return folder


def test_a_taught_run_killed_by_sigkill_continues_bit_for_bit(taught: Path, student: Trainer, tmp_path: Path) -> None:
    command = [item for item in student.command if not item.startswith("output_dir=")]
    kill_at([*command, f"output_dir={tmp_path}/run"], tmp_path / "run", 15)
    assert not (tmp_path / "run" / "result.json").exists()
    student.train(tmp_path / "run")
    assert_same_run(tmp_path / "run", taught)
    assert not any("teacher" in name for name in final_state(taught))


def both_losses(logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropy and the soft loss under the settings of `TAUGHT`, by torch."""
    kept = teacher_logits.topk(20).indices
    hidden_rest = torch.full_like(teacher_logits, -torch.inf).scatter(1, kept, teacher_logits.gather(1, kept))
    soft = 9 * F.kl_div((logits / 3).log_softmax(1), (hidden_rest / 3).softmax(1), reduction="batchmean")
    return F.cross_entropy(logits, targets), soft


def test_a_step_has_the_gradient_of_the_formula_and_notes_both_losses(student: Trainer, tmp_path: Path) -> None:
    plan = set_up(student.settings(tmp_path / "run", "trainer.precision=64-true"))
    module = LanguageModel(plan)
    module.decoder.double()
    tokens = torch.randint(257, (4, 33))
    loss = module.training_step(tokens, 0)
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in module.decoder.named_parameters()}
    module.decoder.zero_grad()
    teacher_logits = load(student.teacher).decoder(tokens[:, :-1]).double().flatten(0, 1)
    logits = module.decoder(tokens[:, :-1]).flatten(0, 1)
    hard, soft = both_losses(logits, teacher_logits, tokens[:, 1:].flatten())
    (0.6 * hard + 0.4 * soft).backward()
    for name, weight in module.decoder.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-7)  # the teacher computes in float32
    torch.testing.assert_close(loss, 0.6 * hard + 0.4 * soft, rtol=1e-5, atol=1e-6)
    noted = module.step_loss.double() * plan.accumulation
    torch.testing.assert_close(noted, torch.stack([hard, soft]).detach(), rtol=1e-5, atol=1e-6)


def test_of_conversations_both_losses_are_means_over_the_scored_tokens_of_the_step(
    student: Trainer, tmp_path: Path
) -> None:
    """Also if a micro-batch scores nothing. The teacher sees as little of other conversations as the student does."""
    plan = set_up(student.settings(tmp_path / "run", "trainer.precision=64-true", "train.document_masking=true"))
    module = LanguageModel(plan, separator=0, counts_scored=True)
    module.decoder.double()
    assert plan.accumulation == 2
    inputs, targets = torch.randint(257, (2, 4, 32))
    targets[torch.rand(targets.shape) < 0.8] = -100
    documents = (torch.arange(32) // 5).expand(4, 32)
    num_scored = (targets != -100).sum()
    nothing = Batch(inputs, torch.full_like(targets, -100), documents, num_scored)
    loss = sum(module.training_step(batch, 0) for batch in (Batch(inputs, targets, documents, num_scored), nothing)) / 2
    teacher, scored = load(student.teacher).decoder, targets.flatten() != -100
    teacher_logits = teacher(inputs, documents_BT=documents).double().flatten(0, 1)[scored]
    logits = module.decoder(inputs, documents_BT=documents).flatten(0, 1)[scored]
    hard, soft = both_losses(logits, teacher_logits, targets.flatten()[scored])
    torch.testing.assert_close(loss, 0.6 * hard + 0.4 * soft, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(module.step_loss.double(), torch.stack([hard, soft]).detach(), rtol=1e-6, atol=1e-6)


def test_validation_is_plain_cross_entropy_and_result_json_names_the_teacher(
    taught: Path, student: Trainer, text_file: Path
) -> None:
    result = json.loads((taught / "result.json").read_text())
    teacher = load(student.teacher)
    record = {"teacher": str(student.teacher), "fingerprint": teacher.provenance.fingerprint, "dtype": "float32"}
    record |= {"temperature": 3, "weight": 0.4, "top_k": 20, "params_total": num_params(teacher.decoder.config)}
    assert record.items() <= result["distill"].items()
    soft_losses = [float(row["train/distill_loss"]) for row in rows(taught) if row["train/distill_loss"]]
    assert soft_losses[-1] < 0.7 * soft_losses[0]
    # At the end, the cross-entropies with the text in training and in validation are near each other.
    assert abs(result["train_loss_final"] - result["val"]["loss"]) < 0.1


def test_the_plan_states_what_the_teacher_costs(student: Trainer, tmp_path: Path) -> None:
    plan = set_up(student.settings(tmp_path / "run"))
    (line,) = [line for line in plan_lines(plan) if line.startswith("teacher ")]
    teacher = load(student.teacher).decoder.config
    flops, share = flops_per_token(teacher, 32) / 3, flops_per_token(teacher, 32) / 3 / plan.token_flops
    assert f"{num_params(teacher):,} parameters" in line
    assert f"{flops:.3e} FLOPs per token, {share:.0%} more than without it" in line
    assert plan.teacher is not None
    assert plan.teacher.bytes == 4 * num_params(teacher)
    options: dict[str, Any] = {"length": 32, "device": "cpu", "dtype": torch.float32, "autocast_dtype": None}
    alone, both = (
        activation_bytes(plan.model, False, 4, **options, document_masking=False, teacher=one)
        for one in (None, plan.teacher)
    )
    assert both - alone >= 4 * 32 * 257 * 4  # at least the teacher's logits of a chunk, here the whole batch


def test_what_cannot_teach_this_run_is_refused(student: Trainer, taught: Path, tmp_path: Path) -> None:
    refused = {
        "distill.teacher=nowhere": r"distill\.teacher='nowhere' does not exist: give a run directory",
        "model.vocab_size=300": r"predicts 260 tokens and the model 300: train with .* model\.vocab_size=260",
        "distill.top_k=999": r"distill\.top_k=999 is more than the 260 tokens of the vocabulary",
        "distill.weight=1.5": r"distill\.weight=1\.5 must be a number above 0 and at most 1",
        "distill.temperature=0": r"distill\.temperature=0 must be a number above 0",
        "distill.dtype=int8": r"distill\.dtype=int8 must be one of auto, float32",
    }
    for change, message in refused.items():
        with pytest.raises(ValueError, match=message) as error:
            student.train(tmp_path / "run", change)
        assert "\n" not in str(error.value)
    assert refusal(["distill.teacher=x"]) == "distill.teacher has no effect here: it needs distill=logits"
    assert refusal(["distill=logits"]) == "distill.teacher must be set: distill.teacher=VALUE"
    with pytest.raises(ValueError, match=r"holds a run with other settings \(distill\.temperature is 3 there, 4 here"):
        student.train(taught, "distill.temperature=4")


def test_a_teacher_of_another_tokenizer_or_that_has_changed_is_refused(
    student: Trainer, taught: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(student.teacher, tmp_path / "other"))
    file = other / "model" / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "</s>"))
    config = other / "model" / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<|endoftext|>", "</s>"))
    with pytest.raises(
        ValueError, match=r"has another tokenizer than the run, so its predictions are for other tokens"
    ):
        student.train(tmp_path / "run", f"distill.teacher={other}")
    assert not (tmp_path / "run").exists()
    going_on = Path(shutil.copytree(taught, tmp_path / "going_on"))
    (going_on / "result.json").unlink()
    corpus = json.loads((going_on / "corpus.json").read_text())
    (going_on / "corpus.json").write_text(json.dumps(corpus | {"teacher": "0123456789abcdef"}))
    with pytest.raises(ValueError, match=r"\(teacher is 0123456789abcdef there"):
        student.train(going_on)


def test_a_completed_run_needs_its_teacher_no_more(taught: Path, student: Trainer, tmp_path: Path) -> None:
    done = Path(shutil.copytree(taught, tmp_path / "done"))
    moved = student.teacher.rename(tmp_path / "moved")
    try:
        assert student.train(done)["status"] == "completed"
    finally:
        moved.rename(student.teacher)
