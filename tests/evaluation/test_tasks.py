"""Names of tasks, tasks from local files, and runs of several of which some fail."""

import copy
import gzip
import json
import math
import socket
import statistics
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'slm[eval]'")

import datasets
import huggingface_hub.constants
import pandas as pd
import torch

from slm.data.questions import read_records
from slm.data.vocabulary import plan_tokenizer
from slm.evaluation.tasks import MOBILELLM, check_tasks, task_manager
from slm.evaluation.tasks.local import make_task
from slm.evaluation.tasks.run import _entries, run_task
from tests.evaluation.toys import random_decoder

CHOICES = [
    {"query": "The sun is", "choices": ["warm", "cold and far away"], "gold": 0},
    {"query": "Ice is\n", "choices": ["cold", "warm", "naïve"], "gold": 0},
    {"query": "1 and 1 are", "choices": ["3", "2"], "gold": 1},
]
CONTEXTS = [
    {"context_options": ["The cat", "The stone"], "continuation": "purrs.", "gold": 0},
    {"context_options": ["The cat and the cat", "The cat and the stone"], "continuation": "sank", "gold": 1},
]
QUICK = {"limit": None, "num_fewshot": None, "batch_tokens": 512, "autocast": None, "seed": 1}


def write(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model() -> tuple:
    tokenizer = plan_tokenizer({"kind": "bytes"}).make(lambda: iter([]))
    return random_decoder(vocab_size=tokenizer.vocab_size, max_position_embeddings=128), tokenizer


@torch.no_grad()
def log_likelihood(model: tuple, context: str, continuation: str) -> float:
    decoder, tokenizer = model
    given, scored = tokenizer.encode(context), tokenizer.encode(continuation)
    logits = decoder.double()(torch.tensor([given + scored[:-1]]))[0, len(given) - 1 :].log_softmax(-1)
    decoder.float()
    return logits.gather(1, torch.tensor(scored)[:, None]).sum().item()


def bits_per_byte(nats: float, continuation: str) -> float:
    return -nats / math.log(2) / len(continuation.encode())


def best(scores: list[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def test_choices_are_scored_after_the_query_and_one_space(model: tuple, tmp_path: Path) -> None:
    results = run_task(*model, "mine", file=write(tmp_path / "a.jsonl", CHOICES), **QUICK)
    right, right_by_length, bits, margins = [], [], [], []
    for record in CHOICES:
        # Spaces at the end of a query are scored with the choice; byte tokens make no other difference.
        query = record["query"].rstrip()
        space = record["query"][len(query) :] + " "
        scores = [log_likelihood(model, query, space + choice) for choice in record["choices"]]
        right.append(best(scores) == record["gold"])
        of_choices = [bits_per_byte(*pair) for pair in zip(scores, [f" {c}" for c in record["choices"]], strict=True)]
        bits.append(of_choices.pop(record["gold"]))
        margins.append(min(of_choices) - bits[-1])
        by_length = [score / len(choice) for score, choice in zip(scores, record["choices"], strict=True)]
        right_by_length.append(best(by_length) == record["gold"])
    result = results["mine"]
    assert (result["metric"], result["n"], result["num_fewshot"]) == ("acc_norm", 3, 0)
    assert result["value"] == pytest.approx(sum(right_by_length) / 3)
    assert result["also"]["acc"]["value"] == pytest.approx(sum(right) / 3)
    for name, values in (("bits_per_byte", bits), ("margin", margins)):
        assert result["also"][name]["value"] == pytest.approx(statistics.mean(values), rel=1e-5)
        assert result["also"][name]["se"] == pytest.approx(statistics.stdev(values) / 3**0.5, rel=1e-4)
    assert result["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    p = result["value"]
    assert result["se"] == pytest.approx((p * (1 - p) / 2) ** 0.5)  # sample standard deviation / sqrt(n), n = 3
    assert "a.jsonl" in result["notes"][0]


def test_a_continuation_is_scored_after_each_context(model: tuple, tmp_path: Path) -> None:
    results = run_task(*model, "wino", file=write(tmp_path / "w.jsonl", CONTEXTS), **QUICK)
    right, margins = [], []
    for record in CONTEXTS:
        scores = [log_likelihood(model, option, " " + record["continuation"]) for option in record["context_options"]]
        right.append(best(scores) == record["gold"])
        right_nats = scores.pop(record["gold"])
        margins.append(bits_per_byte(scores[0] - right_nats, " " + record["continuation"]))
    assert results["wino"]["metric"] == "acc"
    assert results["wino"]["also"]["margin"]["value"] == pytest.approx(statistics.mean(margins), rel=1e-5)
    assert results["wino"]["value"] == pytest.approx(sum(right) / 2)


def test_examples_before_a_question_are_others_with_their_answers(tmp_path: Path) -> None:
    task = make_task("mine", read_records("mine", write(tmp_path / "a.jsonl", CHOICES)))
    task.set_config(key="num_fewshot", value=2)
    task.set_fewshot_seed(seed=1)
    prompt = task.fewshot_context(task.eval_docs[0], 2)
    assert prompt.endswith("\n\nThe sun is")
    assert prompt.count("The sun is") == 1
    assert "Ice is\n cold" in prompt
    assert "1 and 1 are 2\n\n" in prompt


def test_limit_and_number_of_examples_are_kept(model: tuple, tmp_path: Path) -> None:
    options = QUICK | {"file": write(tmp_path / "a.jsonl", CHOICES), "limit": 2, "num_fewshot": 1}
    results = run_task(*model, "mine", **options)
    assert (results["mine"]["n"], results["mine"]["num_fewshot"]) == (2, 1)
    assert results == run_task(*model, "mine", **options)


def test_a_task_whose_data_cannot_be_had_is_skipped_and_the_others_run(
    model: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    look_up = Mock(side_effect=OSError("no network in this test"))
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    results = run_task(*model, "piqa", file=None, **QUICK)
    results |= run_task(*model, "mine", file=write(tmp_path / "a.jsonl", CHOICES), **QUICK)
    assert look_up.call_count < 5  # the hub's own clients would go on for minutes
    assert list(results["piqa"]) == ["error"]
    assert "data of piqa are not in the local cache and the hub cannot be reached" in results["piqa"]["error"]
    assert results["mine"]["n"] == 3
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["tasks", " piqa"], ["tasks", " mine"]]


def test_a_question_longer_than_the_context_is_cut_from_the_left(model: tuple, tmp_path: Path) -> None:
    records = [{"query": "x " * 200 + "The sun is", "choices": ["warm", "cold"], "gold": 0}]
    results = run_task(*model, "long", file=write(tmp_path / "l.jsonl", records), **QUICK)
    query = records[0]["query"][-(129 - len(" warm")) :]
    scores = [log_likelihood(model, query, " " + choice) for choice in ("warm", "cold")]
    assert results["long"]["also"]["acc"]["value"] == float(best(scores) == 0)
    assert results["long"]["se"] is None  # one question has none
    assert "2 requests were cut on the left to the context of 128 tokens" in results["long"]["notes"][-1]


def test_a_diverged_model_has_an_error_in_place_of_an_accuracy(model: tuple, tmp_path: Path) -> None:
    decoder, tokenizer = copy.deepcopy(model[0]), model[1]
    with torch.no_grad():
        decoder.norm.weight.fill_(torch.nan)
    results = run_task(decoder, tokenizer, "mine", file=write(tmp_path / "a.jsonl", CHOICES), **QUICK)
    assert results["mine"]["error"].startswith("log-likelihoods are not finite")
    assert "value" not in results["mine"]


def test_a_metric_that_is_no_number_is_an_error_and_results_stay_json() -> None:
    rows = {"a": {"mcc,none": math.nan, "mcc_stderr,none": "N/A", "sample_len": 3}}
    rows["b"] = {"acc,none": 0.5, "acc_stderr,none": math.nan, "mcc,none": math.nan, "sample_len": 3}
    found = _entries({"results": rows, "n-shot": {}})
    assert found["a"] == {"error": "mcc of a is nan, not a finite number"}
    assert (found["b"]["value"], found["b"]["se"], found["b"]["also"]) == (0.5, None, {})


def test_a_package_that_a_task_lacks_is_named_without_a_network(model: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_manager(), "load", Mock(side_effect=ModuleNotFoundError("No module named 'langdetect'")))
    results = run_task(*model, "ifeval", file=None, **QUICK)
    assert results == {"ifeval": {"error": "ModuleNotFoundError: No module named 'langdetect'"}}


def test_the_papers_eight_are_tasks_of_the_harness() -> None:
    assert len(MOBILELLM) == 8
    check_tasks(MOBILELLM, {})


def test_an_unknown_task_is_refused_with_the_nearest_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^tasks: 'arc_eazy' is neither a task .* did you mean arc_easy or .*\?$"):
        check_tasks(["arc_eazy"], {})
    with pytest.raises(ValueError, match="did you mean myquiz"):
        check_tasks(["myquizz"], {"myquiz": write(tmp_path / "a.jsonl", CHOICES)})


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'slm\[eval\]'"):
        check_tasks(["piqa"], {})
    check_tasks([], {})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("null", "line 2 is not a question"),
        ("[1]", "line 2 is not a question: it must have the keys query/choices/gold or context_options/"),
        ('{"query": "a", "gold": 0}', "line 2 is not a question"),
        ('{"query": "a", "choices": ["b", "c"]}', "line 2 lacks gold"),
        ('{"query": "a", "choices": ["b"], "gold": 0}', "line 2: choices=.* at least two texts"),
        ('{"query": "a", "choices": ["b", ""], "gold": 0}', "line 2: choices=.* none empty"),
        ('{"query": 7, "choices": ["b", "c"], "gold": 0}', "line 2: query=7 must be text"),
        ('{"query": "a", "choices": ["b", "c"], "gold": 2}', "line 2: gold=2 must be 0 to 1"),
        ('{"query": "a", "choices": ["b", "c"], "gold": "b"}', "line 2: gold=b must be 0 to 1"),
        ('{"query": "a", "choices": ["b", "c"], "gold": true}', "line 2: gold=true must"),
        (json.dumps(CONTEXTS[0]), "mixes records"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(CHOICES[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"^task_files\.mine[=:].*bad\.jsonl.*{said}") as error:
        check_tasks(["mine"], {"mine": str(path)})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "matches no file"), (b"", "is empty"), (b"\n", "holds no question"), (b"\xff\n", "line 1 is not UTF-8")],
)
def test_a_bad_file_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^task_files\.mine[=:].*bad\.jsonl.*{said}"):
        check_tasks(["mine"], {"mine": str(path)})


def test_half_a_surrogate_pair_becomes_a_question_mark_as_in_training_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "a\\ud800", "choices": ["\\udc00b", "c"], "gold": 0}\n')
    assert read_records("mine", str(tmp_path / "a.jsonl")) == [{"query": "a?", "choices": ["?b", "c"], "gold": 0}]


@pytest.mark.parametrize("name", ["[1] quiz.JSONL", "quiz.ndjson.gz", "quiz.parquet"])
def test_a_task_is_read_from_every_kind_of_rows(name: str, tmp_path: Path) -> None:
    lines = "\ufeff" + "".join(json.dumps(record) + "\r\n" for record in CHOICES)
    if name.endswith(".parquet"):
        pd.DataFrame(CHOICES).to_parquet(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())
    assert read_records("mine", str(tmp_path / name)) == CHOICES
    assert read_records("mine", str(tmp_path)) == CHOICES  # a folder is the files in it


def test_a_task_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quiz.txt").write_text(json.dumps(CHOICES[0]))
    with pytest.raises(ValueError, match=r"^task_files\.mine: .*quiz\.txt is of an unknown kind; .* one of \.jsonl, "):
        check_tasks(["mine"], {"mine": str(tmp_path / "quiz.txt")})
