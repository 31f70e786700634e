"""Items of tasks: what is written of each, and errors of differences between checkpoints that answered the same."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from slm.data.questions import answer_scores
from slm.evaluation.report.results import Results
from slm.evaluation.report.rows import rows
from slm.evaluation.report.tasks import compare_tasks, tasks_section
from slm.evaluation.tasks.items import items_of, measures, samples_file, write_samples
from tests.evaluation.reported import entry, task
from tests.seeds import seeded


def test_the_right_answer_is_measured_over_the_bytes_of_its_continuation_and_against_the_best_wrong_one() -> None:
    """Chances of 2^-6, 2^-12 and 2^-30 in 3, 4 and 10 bytes are 2, 3 and 3 bits a byte; é is two bytes."""
    nats = [-bits * math.log(2) for bits in (6, 12, 30)]
    continuations = [" ab", " é!", " ninebytes"]
    assert answer_scores(nats, continuations, [0]) == pytest.approx((2, 1))
    assert answer_scores(nats, continuations, [1]) == pytest.approx((3, -1))
    assert answer_scores(nats, continuations, [0, 1]) == pytest.approx((2, 1))  # of two right ones, the likelier
    assert math.isnan(answer_scores(nats[:2], continuations[:2], [0, 1])[1])


def result(items: list[dict[str, Any]], **other: Any) -> dict[str, Any]:
    made = measures(items, "acc_norm")
    return task(sum(item["correct"] for item in items) / len(items), len(items)) | made | other


def answered(rng: np.random.Generator, hard: np.ndarray, shift: float, *, query: str = "q") -> list[dict[str, Any]]:
    """Items that are hard for every model alike, answered by one that needs `shift` more bits per byte."""
    bits = 2 + hard + shift + rng.normal(0, 0.1, len(hard))
    asked = [{"prompt": f"{query} {n}", "choices": [" a", " b"], "bytes": [2, 2], "gold": 0} for n in range(len(hard))]
    scores = [{"bits_per_byte": float(x), "margin": float(2.2 - x), "correct": bool(x < 2.2)} for x in bits]
    return [a | b for a, b in zip(asked, scores, strict=True)]


def test_the_error_of_a_difference_is_that_of_the_differences_of_the_items() -> None:
    """As the paired t-test has it. A thousand items are stored in 200 blocks, whose error has an error of 5%."""
    rng = np.random.default_rng(seeded())
    for num_items, tolerance in ((150, 1e-9), (1000, 0.2)):
        hard = rng.normal(0, 0.6, num_items)
        made = [answered(rng, hard, shift) for shift in (0.0, 0.05)]
        entries = [entry(name, 10**7, tasks={"quiz": result(items)}) for name, items in zip("ab", made, strict=True)]
        for metric, key in (("bits_per_byte", "bits_per_byte"), ("margin", "margin"), ("value", "correct")):
            first, second = ([float(item[key]) for item in items] for items in made)
            difference = compare_tasks(*entries, ["quiz"], metric)
            assert difference.value == pytest.approx(np.mean(first) - np.mean(second))
            expected = difference.value / stats.ttest_rel(first, second).statistic
            assert difference.error.se == pytest.approx(expected, rel=tolerance)
        text = tasks_section(Results(entries)).markdown()  # type: ignore[union-attr]
        assert "| paired |" in text
        assert compare_tasks(*entries, ["quiz"], "bits_per_byte").is_significant
        errors = [of["tasks"]["quiz"]["also"]["bits_per_byte"]["se"] for of in entries]
        assert math.hypot(*errors) > 3 * difference.error.se  # type: ignore[operator]


def test_written_answers_are_paired_by_question_though_chat_templates_write_the_prompts_differently() -> None:
    rng = np.random.default_rng(seeded(3))
    hard = rng.normal(0, 1, 150)
    right = [(hard + rng.normal(0, 0.3, 150) < limit).astype(float) for limit in (0.5, 0.3)]
    entries = []
    for name, values in zip("ab", right, strict=True):
        items = [{"prompt": f"<{name}>{n}", "target": str(n), "exact_match": x} for n, x in enumerate(values)]
        made = task(np.mean(values), 150, metric="exact_match") | measures(items, "exact_match")
        entries.append(entry(name, 10**7, tasks={"calls": made}))
    difference = compare_tasks(*entries, ["calls"])
    assert difference.error.se == pytest.approx(difference.value / stats.ttest_rel(*right).statistic)


def test_differences_on_other_items_or_of_older_results_are_not_paired() -> None:
    rng = np.random.default_rng(seeded(1))
    hard = rng.normal(0, 0.6, 50)
    ours = result(answered(rng, hard, 0.0))
    for theirs, reason in (
        (result(answered(rng, hard, 0.0, query="r")), "different items"),
        (task(0.5, 50), "no items stored"),
    ):
        entries = [entry("a", 10**7, tasks={"quiz": ours}), entry("b", 10**7, tasks={"quiz": theirs})]
        error = compare_tasks(*entries, ["quiz"]).error
        assert error.reason == reason
        assert error.se == pytest.approx(math.hypot(ours["se"], theirs["se"]))
        assert f"independent: {reason}" in tasks_section(Results(entries)).markdown()  # type: ignore[union-attr]


def test_an_older_result_has_no_measures_in_the_report_and_a_newer_one_has_all_in_the_csv() -> None:
    older = entry("old", 10**7, tasks={"quiz": task(0.5, 50)})
    assert "Bits per byte of the right answer" not in tasks_section(Results([older])).markdown()  # type: ignore[union-attr]
    rng = np.random.default_rng(seeded(2))
    made = result(answered(rng, rng.normal(0, 0.6, 50), 0.0))
    old_row, row = rows(Results([older, entry("new", 10**7, tasks={"quiz": made})]))
    assert row["tasks/quiz/chance"] == 0.5
    for metric in ("bits_per_byte", "margin"):
        assert row[f"tasks/quiz/{metric}"] == made["also"][metric]["value"]
        assert row[f"tasks/quiz/{metric}/se"] == made["also"][metric]["se"]
        assert old_row[f"tasks/quiz/{metric}"] is None


def harness_task(**changes: Any) -> SimpleNamespace:
    fields = {"OUTPUT_TYPE": "multiple_choice", "multiple_input": 0, "config": SimpleNamespace(process_results=None)}
    return SimpleNamespace(**fields | {"doc_to_choice": lambda doc: doc["choices"]} | changes)


def sample(nats: list[float], target: Any, **other: Any) -> dict[str, Any]:
    choices = ["long choice", "no", "yes"][: len(nats)]
    arguments = [("Q", f" {choice}") for choice in choices]
    made = {"doc_id": 7, "doc": {"choices": choices}, "target": target, "filter": "none", "arguments": arguments}
    return made | {"filtered_resps": [(x, False) for x in nats], "metrics": ["acc_norm"], "acc_norm": 1.0} | other


def test_an_item_has_the_prediction_that_its_accuracy_counts_and_the_choices_as_scored(tmp_path: Path) -> None:
    items = items_of(harness_task(), [sample([-11.0, -4.0, -9.0], "long choice")], "acc_norm")
    write_samples(tmp_path / "a.jsonl", items)
    (read,) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert (read["item"], read["prompt"], read["gold"], read["prediction"], read["correct"]) == (7, "Q", 0, 0, True)
    assert read["choices"] == [" long choice", " no", " yes"]
    assert (read["log_likelihoods"], read["bytes"]) == ([-11.0, -4.0, -9.0], [12, 3, 4])
    assert read["bits_per_byte"] == pytest.approx(11 / 12 / math.log(2))
    assert read["margin"] == pytest.approx((4 / 3 - 11 / 12) / math.log(2))


@pytest.mark.parametrize(
    ("task_changes", "target"),
    [
        ({"OUTPUT_TYPE": "generate_until"}, "yes"),
        ({"config": SimpleNamespace(process_results=len)}, 0),  # such as truthfulqa_mc2, with right answers of its own
        ({}, -100),  # the harness's mark for a right answer that is not among the choices
        ({}, "neither"),
    ],
)
def test_what_has_no_known_right_choice_is_logged_and_not_measured(task_changes: dict[str, Any], target: Any) -> None:
    items = items_of(harness_task(**task_changes), [sample([-1.0, -2.0], target)], "acc_norm")
    assert (items[0]["target"], items[0]["acc_norm"]) == (target, 1.0)
    assert measures(items, "acc_norm") == {}


def test_files_of_samples_are_told_apart_and_have_plain_names() -> None:
    names = {samples_file("a b/c", checkpoint, "0123456789") for checkpoint in ("org/m-1", "runs/ü/", ".")}
    assert len(names) == 3
    assert all(name.count("/") == 1 and name.endswith("-01234567.jsonl") for name in names)
