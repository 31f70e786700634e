"""An evaluation from settings to results: what is measured once, what is measured again, what ends with which code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm.evaluation import measure
from slm.evaluation.run import SKIPPED_TASKS, evaluate
from tests.checkpoints.releases import llama, save
from tests.evaluation.asked import small

MEASURED = ("loss", "perplexity", "bits_per_byte", "se_loss", "tokens", "bytes", "words", "windows")


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("releases")
    return [save(llama(num_hidden_layers=layers), folder / f"llama-{layers}") for layers in (1, 2, 3)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text("\n\n".join(f"Paragraph {n} says that {n} and {n + 1} make {2 * n + 1}." for n in range(20)))
    return path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints whose perplexity was taken, as it is."""
    taken: list[str] = []
    real = measure.perplexity

    def counted(decoder: Any, stream: Any, protocol: Any, **options: Any) -> dict[str, Any]:
        taken.append(f"{decoder.config.num_layers}-{protocol.name}")
        return real(decoder, stream, protocol, **options)

    monkeypatch.setattr(measure, "perplexity", counted)
    return taken


def listed(checkpoints: list[Path]) -> str:
    return f"checkpoints=[{','.join(map(str, checkpoints))}]"


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out" / "results.json").read_text())


def figures(entries: list[dict[str, Any]]) -> list[Any]:
    """What does not depend on the clock."""
    return [
        (entry["name"], entry["params_total"], [[one[key] for key in MEASURED] for one in entry["perplexity_results"]])
        for entry in entries
    ]


def test_an_interrupted_evaluation_goes_on_where_it_stopped_and_equals_an_uninterrupted_one(
    releases: list[Path], text: Path, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate(small(tmp_path / "whole", text, listed(releases))) == 0
    counting = measure.perplexity
    loads.clear()

    def stops(*arguments: Any, **options: Any) -> dict[str, Any]:
        if len(loads) == 3:
            raise KeyboardInterrupt
        return counting(*arguments, **options)

    monkeypatch.setattr(measure, "perplexity", stops)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small(tmp_path / "parts", text, listed(releases)))
    monkeypatch.setattr(measure, "perplexity", counting)
    assert evaluate(small(tmp_path / "parts", text, listed(releases))) == 0
    assert loads == [f"{layers}-{name}" for layers in (1, 2, 3) for name in ("sliding", "non_overlapping")]
    assert figures(results(tmp_path / "parts")) == figures(results(tmp_path / "whole"))
    assert all(entry["status"] == "completed" for entry in results(tmp_path / "parts"))


def test_a_checkpoint_is_added_to_an_evaluation_and_only_it_is_measured(
    releases: list[Path], text: Path, tmp_path: Path, loads: list[str]
) -> None:
    evaluate(small(tmp_path, text, f"checkpoint={releases[1]}"))
    loads.clear()
    evaluate(small(tmp_path, text, listed(releases[:2])))
    assert loads == ["1-sliding", "1-non_overlapping"]
    assert [entry["name"] for entry in results(tmp_path)] == ["llama-1", "llama-2"]
    assert (tmp_path / "out" / "results.csv").read_text().count("\n") == 3


def test_a_checkpoint_whose_weights_changed_is_measured_again(text: Path, tmp_path: Path, loads: list[str]) -> None:
    folder = save(llama(num_hidden_layers=1), tmp_path / "m")
    evaluate(small(tmp_path, text, f"checkpoint={folder}"))
    before = results(tmp_path)
    save(llama(num_hidden_layers=1, initializer_range=0.3), folder)
    evaluate(small(tmp_path, text, f"checkpoint={folder}"))
    assert len(loads) == 4
    (after,) = results(tmp_path)
    assert after["perplexity_results"][0]["loss"] != before[0]["perplexity_results"][0]["loss"]


@pytest.mark.parametrize("change", ["dtype=bfloat16", "perplexity.max_tokens=50", "speed.new_tokens=5"])
def test_a_directory_of_other_settings_is_refused(
    change: str, releases: list[Path], text: Path, tmp_path: Path
) -> None:
    evaluate(small(tmp_path, text, f"checkpoint={releases[0]}", "perplexity.protocols=[]"))
    with pytest.raises(ValueError, match=f"other settings of {change.partition('=')[0].partition('.')[0]}"):
        evaluate(small(tmp_path, text, f"checkpoint={releases[0]}", "perplexity.protocols=[]", change))


def test_a_release_without_a_text_says_which_there_are(releases: list[Path], tmp_path: Path) -> None:
    settings = small(tmp_path, tmp_path, f"checkpoint={releases[0]}") | {"data": None}
    with pytest.raises(
        ValueError,
        match=r"is not a run of train\.py, so it has no validation text: give a text, such as data=wikitext2",
    ):
        evaluate(settings)


def test_windows_longer_than_the_context_are_refused_before_anything_is_loaded(
    releases: list[Path], text: Path, tmp_path: Path, loads: list[str]
) -> None:
    with pytest.raises(ValueError, match="max_length=65 of protocol sliding is longer than the 64 positions"):
        evaluate(small(tmp_path, text, listed(releases), "perplexity.sliding.max_length=65"))
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_task_that_fails_is_in_the_table_and_the_exit_code_and_is_tried_again(
    releases: list[Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[dict[str, Any]] = [
        {"lost": {"error": "its data set cannot be had."}},
        {"lost": {"metric": "acc", "value": 0.5, "se": 0.1, "n": 20, "num_fewshot": 0}},
    ]
    monkeypatch.setattr(measure, "run_task", lambda *arguments, **options: answers.pop(0))
    monkeypatch.setattr("slm.evaluation.run.check_tasks", lambda tasks, files: None)
    asked = (f"checkpoint={releases[0]}", "tasks=lost", "speed.enabled=false")
    assert evaluate(small(tmp_path, text, *asked)) == SKIPPED_TASKS
    assert "its data set cannot be had." in (tmp_path / "out" / "report.md").read_text()
    assert evaluate(small(tmp_path, text, *asked)) == 0
    assert results(tmp_path)[0]["tasks"]["lost"]["value"] == 0.5


def test_a_text_that_changed_is_scored_again_and_its_old_figures_go(
    releases: list[Path], tmp_path: Path, loads: list[str]
) -> None:
    text = tmp_path / "t.txt"
    for words in ("One text. " * 40, "Another text, which is another. " * 20):
        text.write_text(words)
        evaluate(small(tmp_path, text, f"checkpoint={releases[0]}", "speed.enabled=false"))
    assert len(loads) == 4
    (entry,) = results(tmp_path)
    # Every byte but the first, which nothing predicts.
    assert [one["bytes"] for one in entry["perplexity_results"]] == [
        len("Another text, which is another. ") * 20 - 1
    ] * 2


def test_a_task_file_that_changed_is_asked_again(releases: list[Path], text: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    file = tmp_path / "quiz.jsonl"
    asked = (f"checkpoint={releases[0]}", f"task_files={{quiz: {file}}}", "perplexity.protocols=[]")
    for count in (3, 5):
        line = json.dumps({"query": "One and one make", "choices": ["two", "three"], "gold": 0})
        file.write_text("".join(f"{line}\n" for _ in range(count)))
        assert evaluate(small(tmp_path, text, *asked)) == 0
        assert results(tmp_path)[0]["tasks"]["quiz"]["n"] == count


def test_a_group_of_tasks_that_failed_once_leaves_no_error_behind(
    releases: list[Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"metric": "acc", "value": 0.5, "se": 0.1, "n": 20, "num_fewshot": 0}
    answers: list[dict[str, Any]] = [{"group": {"error": "no network."}}, {"one": dict(good), "two": dict(good)}]
    monkeypatch.setattr(measure, "run_task", lambda *arguments, **options: answers.pop(0))
    monkeypatch.setattr("slm.evaluation.run.check_tasks", lambda tasks, files: None)
    asked = (f"checkpoint={releases[0]}", "tasks=group", "speed.enabled=false", "perplexity.protocols=[]")
    assert [evaluate(small(tmp_path, text, *asked)) for _ in range(3)] == [SKIPPED_TASKS, 0, 0]
    assert list(results(tmp_path)[0]["tasks"]) == ["one", "two"]


@pytest.mark.parametrize("name", ["results.json", "report.md", "config.yaml", "config.json"])
def test_a_folder_of_something_else_is_left_alone(name: str, releases: list[Path], text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("not ours")
    with pytest.raises(ValueError, match=f"holds {name} and is not an evaluation"):
        evaluate(small(tmp_path, text, f"checkpoint={releases[0]}"))
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, "not ours")]


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", "null", '[{"versions": 3}]'])
def test_results_that_are_damaged_are_refused(content: str, releases: list[Path], text: Path, tmp_path: Path) -> None:
    asked = (f"checkpoint={releases[0]}", "perplexity.protocols=[]")
    evaluate(small(tmp_path, text, *asked))
    (tmp_path / "out" / "results.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be read: choose another output_dir"):
        evaluate(small(tmp_path, text, *asked))


def test_one_model_under_two_names_is_refused_and_under_another_name_not_measured_again(
    releases: list[Path], text: Path, tmp_path: Path, loads: list[str]
) -> None:
    other = tmp_path / "link"
    other.symlink_to(releases[0])
    with pytest.raises(ValueError, match="link have the same weights: name one"):
        evaluate(small(tmp_path, text, listed([releases[0], other])))
    evaluate(small(tmp_path, text, f"checkpoint={releases[0]}"))
    evaluate(small(tmp_path, text, f"checkpoint={other}"))
    assert len(loads) == 2
    assert [entry["name"] for entry in results(tmp_path)] == ["link"]


def test_tasks_may_be_added_to_an_evaluation(
    releases: list[Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    good = {"metric": "acc", "value": 0.5, "se": 0.1, "n": 20, "num_fewshot": 0}
    monkeypatch.setattr(measure, "run_task", lambda decoder, tokenizer, name, **options: {name: dict(good)})
    monkeypatch.setattr("slm.evaluation.run.check_tasks", lambda tasks, files: None)
    for tasks in ("tasks=null", "tasks=one", "tasks=[one,two]"):
        assert evaluate(small(tmp_path, text, f"checkpoint={releases[0]}", tasks)) == 0
    assert len(loads) == 2
    assert list(results(tmp_path)[0]["tasks"]) == ["one", "two"]


@pytest.mark.parametrize("parts", [["speed.enabled=false"], ["perplexity.protocols=[]"]])
def test_what_is_measured_alone_is_reported_and_tracked(
    parts: list[str], releases: list[Path], text: Path, tmp_path: Path
) -> None:
    assert evaluate(small(tmp_path, text, f"checkpoint={releases[0]}", "logger=wandb", *parts)) == 0
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*"))


def test_an_export_loads_in_transformers_with_the_same_logits(
    releases: list[Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked = (f"checkpoint={releases[1]}", f"export={tmp_path / 'there'}")
    assert evaluate(small(tmp_path, text, *asked)) == 0
    assert str(tmp_path / "there") in capsys.readouterr().out
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (tmp_path / "there", releases[1])
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_prompt_is_continued_and_nothing_is_written(
    releases: list[Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run_generate: Callable
) -> None:
    asked = (f"checkpoint={releases[1]}", "prompt='Para graph'", "generation.max_new_tokens=12", "seed=3")
    evaluate(small(tmp_path, text, *asked))
    assert capsys.readouterr().out == run_generate(releases[1], "Para graph", 12, 3) + "\n"
    assert not (tmp_path / "out").exists()


@pytest.fixture
def run_generate() -> Callable[[Path, str, int, int], str]:
    """The whole sample at once, without the streaming."""

    def run(folder: Path, prompt: str, count: int, seed: int) -> str:
        from slm.checkpoints import load
        from slm.model import generate

        decoder, tokenizer, _ = load(folder)
        ids = tokenizer.encode(prompt)
        drawn = generate(
            decoder, ids, max_new_tokens=count, stop_id=tokenizer.eos_id, num_ids=tokenizer.vocab_size, seed=seed
        )
        return tokenizer.decode([*ids, *drawn])

    return run
