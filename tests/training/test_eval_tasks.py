"""Questions of local files at the validations of a run, against evaluate.py's harness and exact log-likelihoods."""

import json
import math
import random
import re
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slm.checkpoints import load
from slm.composition.settings import check_settings
from slm.data.questions import Request
from slm.training.plan import make_plan, plan_lines
from slm.training.run_directory import RunDirectory
from slm.training.tasks import EvalTask, encode_tasks, score_tasks
from tests.running import SMALL_RUN, refusal
from tests.seeds import seeded
from tests.training.small import CPU, assert_same_run, config, random_decoder, rows
from tests.training.test_resume import finish, kill_at

Command = Callable[..., list[str]]
CONTEXT = 128


def questions(folder: Path) -> dict[str, Path]:
    """Two tasks of 12 questions, one of each form; one question is longer than the context."""
    rng = random.Random(seeded())
    words = ["kit", "sun", "naïve", "語", "lamp of", "river stone", "a", "bread warm"]

    def text(length: int) -> str:
        return " ".join(rng.choice(words) for _ in range(length))

    choices = [
        {"query": text(rng.randint(1, 9)), "choices": [text(rng.randint(1, 4)) for _ in range(n)], "gold": n - 2}
        for n in (2, 3, 4) * 4
    ]
    choices[3]["query"] = "x" * (CONTEXT + 50) + "\n"
    contexts = [
        {"context_options": [text(6), text(5)], "continuation": text(3), "gold": rng.randrange(2)} for _ in range(12)
    ]
    files = {}
    for name, records in (("quiz", choices), ("wino-1", contexts)):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(record) + "\n" for record in records))
    return files


def setting(files: dict[str, Path]) -> str:
    return "train.eval_tasks={" + ", ".join(f"{name}: {path}" for name, path in files.items()) + "}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return questions(tmp_path_factory.mktemp("questions"))


def test_tasks_of_a_killed_run_are_those_of_an_uninterrupted_one_and_of_evaluate_on_its_weights(
    files: dict[str, Path], train_command: Command, tmp_path: Path
) -> None:
    changes = [setting(files), "trainer.precision=32-true", "train.eval_task_limit=10", "train.tokens=7680"]
    changes.append(f"model.max_position_embeddings={CONTEXT}")
    printed = finish(train_command(*changes, f"output_dir={tmp_path}/whole"))
    assert "10 questions of quiz and 10 questions of wino-1 at each of 3 validations" in printed
    assert "2 requests of quiz cut on the left to the model's context" in printed
    kill_at(train_command(*changes, f"output_dir={tmp_path}/run"), tmp_path / "run", 15)
    assert "continuing" in finish(train_command(*changes, f"output_dir={tmp_path}/run"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "whole")]
    assert results[0]["tasks"] == results[1]["tasks"]
    corpus = RunDirectory(tmp_path / "run").corpus()
    with (
        pytest.raises(ValueError, match=f"tasks is {corpus['tasks']} there, of another file here"),
        RunDirectory(tmp_path / "run").lock({}, corpus | {"tasks": "of another file"}),
    ):
        raise AssertionError("a run does not go on with other questions")
    found = [row for row in rows(tmp_path / "run") if row["val/loss"]]
    assert len({row["tasks/quiz/bits_per_byte"] for row in found}) == 3
    assert_exact(results[0]["tasks"]["quiz"], tmp_path / "run" / "model", files["quiz"])

    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'slm[eval]'")
    from slm.evaluation.tasks.run import run_task

    decoder, tokenizer, _ = load(tmp_path / "run" / "model")
    for name, ours in results[0]["tasks"].items():
        options: dict[str, Any] = {"limit": 10, "num_fewshot": None, "batch_tokens": 512, "autocast": None, "seed": 1}
        theirs = run_task(decoder, tokenizer, name, file=str(files[name]), **options)[name]
        assert (ours["metric"], ours["n"], ours["chance"]) == (theirs["metric"], theirs["n"], theirs["chance"])
        assert ours["value"] == theirs["value"] == float(found[-1][f"tasks/{name}"])
        assert ours["se"] == pytest.approx(theirs["se"])
        assert ours["also"].keys() == theirs["also"].keys()
        for metric, measured in ours["also"].items():
            assert measured["value"] == pytest.approx(theirs["also"][metric]["value"], abs=1e-5)
            assert measured["se"] == pytest.approx(theirs["also"][metric]["se"], abs=1e-5)
        for metric in ("bits_per_byte", "margin"):
            assert float(found[-1][f"tasks/{name}/{metric}"]) == ours["also"][metric]["value"]


@torch.no_grad()
def assert_exact(result: dict[str, Any], model: Path, file: Path) -> None:
    """In float64, one question after another; a byte is a token."""
    decoder, tokenizer, _ = load(model, dtype=torch.float64)
    bits = []
    for line in file.read_text().splitlines()[:10]:
        record = json.loads(line)
        given, scored = tokenizer.encode(record["query"].rstrip()), f" {record['choices'][record['gold']]}"
        ids = tokenizer.encode(record["query"][len(record["query"].rstrip()) :] + scored)
        inputs = (given + ids)[-CONTEXT - 1 :][:-1]
        log_probabilities = decoder(torch.tensor([inputs]))[0, -len(ids) :].log_softmax(-1)
        nats = log_probabilities.gather(1, torch.tensor(ids)[:, None]).sum().item()
        bits.append(-nats / math.log(2) / len(scored.encode()))
    assert result["also"]["bits_per_byte"]["value"] == pytest.approx(statistics.mean(bits), abs=1e-5)
    assert result["also"]["bits_per_byte"]["se"] == pytest.approx(statistics.stdev(bits) / 10**0.5, abs=1e-5)


def test_processes_share_the_requests_and_each_counts_once() -> None:
    """Bits per byte are linear in the log-likelihoods, so those of the processes add up to the whole."""
    rng = random.Random(seeded(3))
    requests = []
    for _ in range(7):  # 14 requests of up to 12 tokens
        inputs = [tuple(rng.choices(range(20), k=rng.randint(3, 12))) for _ in "ab"]
        requests.append([Request(ids, tuple(rng.choices(range(20), k=2))) for ids in inputs])
    records = [{"query": "q", "choices": ["abc", "de"], "gold": 0}] * 7
    tasks = [EvalTask(name="quiz", records=records, requests=requests, num_cut=0)]
    decoder = random_decoder().double()
    expected = 0.0
    for (ids, targets), _ in requests:
        log_probabilities = decoder(torch.tensor([ids]))[0, -2:].log_softmax(-1)
        expected -= log_probabilities[[0, 1], list(targets)].sum().item() / math.log(2) / len(" abc") / 7

    def scored(rank: int, world_size: int) -> float:
        strategy = SimpleNamespace(reduce=lambda nats, reduce_op: nats)
        parts = {"precision_plugin": SimpleNamespace(forward_context=nullcontext), "strategy": strategy}
        trainer = SimpleNamespace(global_rank=rank, world_size=world_size, **parts)
        plan = SimpleNamespace(micro_batch_size=3, sequence_length=8)
        module: Any = SimpleNamespace(trainer=trainer, plan=plan, device=torch.device("cpu"), decoder=decoder)
        return score_tasks(module, tasks)["quiz"]["also"]["bits_per_byte"]["value"]

    for world_size in (1, 2, 3, 20):
        assert sum(scored(rank, world_size) for rank in range(world_size)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{quiz: nowhere.jsonl}", r"^train\.eval_tasks\.quiz='nowhere\.jsonl' matches no file"),
        ("{quiz: BAD}", r"^train\.eval_tasks\.quiz: .*bad\.jsonl line 1 lacks gold: it must have the keys query/"),
        ("{a/b: BAD}", r"must be a mapping of names \(letters, digits, _ and -\) to files"),
        ("quiz.jsonl", r"^train\.eval_tasks=quiz\.jsonl must be a mapping of names"),
        ("{quiz: null}", r"^train\.eval_tasks=.* must be a mapping of names"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_work(
    given: str, said: str, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"query": "a", "choices": ["b", "c"]}\n')
    given = f"train.eval_tasks={given.replace('BAD', str(tmp_path / 'bad.jsonl'))}"
    message = refusal([*SMALL_RUN, f"data.paths={text_file}", given, f"output_dir={tmp_path}/run"])
    assert re.search(said, message), message
    assert not (tmp_path / "run").exists()


def test_a_choice_longer_than_the_context_is_refused_with_its_number(tmp_path: Path) -> None:
    from slm.data.vocabulary import plan_tokenizer

    record = {"query": "a", "choices": ["b", "c"], "gold": 0}
    long = {"query": "a", "choices": ["b", "c" * 2048], "gold": 0}
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (record, long)))
    settings = config(eval_tasks={"long": str(tmp_path / "long.jsonl")})
    tokenizer = plan_tokenizer({"kind": "bytes"}).make(lambda: iter([]))
    said = (
        r"^train\.eval_tasks\.long: question 2: a continuation of 2049 tokens .* 1 to 2048 tokens \(model\.max_position"
    )
    with pytest.raises(ValueError, match=said):
        encode_tasks(make_plan(settings, CPU), tokenizer)


def test_the_plan_states_the_share_of_flops_that_questions_cost(tmp_path: Path) -> None:
    """19 steps of 512 tokens with 4 validations of 100 bytes, so of 100 tokens forward, a third of a step's FLOPs."""
    line = {"query": "q" * 24, "choices": ["a" * 25, "b" * 25], "gold": 0}  # 2 x (24 + 1 + 25) bytes
    (tmp_path / "quiz.jsonl").write_text(json.dumps(line) + "\n")
    settings = config(eval_tasks={"quiz": str(tmp_path / "quiz.jsonl")}, eval_every=5)
    settings["tokenizer"]["kind"] = "bytes"
    check_settings(settings)
    printed = next(line for line in plan_lines(make_plan(settings, CPU)) if line.startswith("tasks"))
    assert "1 question of quiz at each of 4 validations, about 400 tokens forward" in printed
    assert f"{400 / 3 / (19 * 512):.1%} of" in printed
