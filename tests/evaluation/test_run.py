"""An evaluation from settings to results: what is measured once, what is measured again, what ends with which code."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from slm.checkpoints import load, load_any
from slm.evaluation import measure
from slm.evaluation.chat import talk
from slm.evaluation.run import SKIPPED_TASKS, evaluate
from slm.model import generate
from tests.checkpoints.releases import llama, save
from tests.evaluation.asked import small

MEASURED = ("loss", "perplexity", "bits_per_byte", "se_loss", "tokens", "bytes", "words", "windows")
GOOD = {"metric": "acc", "value": 0.5, "se": 0.1, "n": 20, "num_fewshot": 0}
Run = Callable[..., int]


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
def run(releases: list[Path], text: Path, tmp_path: Path) -> Run:
    """Evaluate on the text in `folder`: the first release, unless another checkpoint is named."""

    def run_in(*overrides: str, folder: Path = tmp_path) -> int:
        first = () if "checkpoint" in str(overrides) else (one(releases[0]),)
        return evaluate(small(folder, text, *first, *overrides))

    return run_in


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """LAYERS-PROTOCOL of each perplexity that is measured."""
    names: list[str] = []
    real = measure.perplexity

    def counted(decoder: Any, stream: Any, protocol: Any, **options: Any) -> dict[str, Any]:
        names.append(f"{decoder.config.num_layers}-{protocol.name}")
        return real(decoder, stream, protocol, **options)

    monkeypatch.setattr(measure, "perplexity", counted)
    return names


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """To be filled with the results of the tasks that will be run, in order; a task may have any name."""
    results: list[dict[str, Any]] = []
    monkeypatch.setattr(measure, "run_task", lambda *arguments, **options: results.pop(0))
    monkeypatch.setattr("slm.evaluation.run.check_tasks", lambda tasks, files: None)
    return results


def one(checkpoint: Path) -> str:
    return f"checkpoint={checkpoint}"


def several(checkpoints: list[Path]) -> str:
    return f"checkpoints=[{','.join(map(str, checkpoints))}]"


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out" / "results.json").read_text())


def figures(folder: Path) -> list[Any]:
    """What does not depend on the clock."""
    return [
        (entry["name"], entry["params_total"], [[one[key] for key in MEASURED] for one in entry["perplexity_results"]])
        for entry in results(folder)
    ]


def test_an_interrupted_evaluation_continues_and_equals_an_uninterrupted_one(
    run: Run, releases: list[Path], tmp_path: Path, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(several(releases), folder=tmp_path / "whole") == 0
    counting = measure.perplexity
    taken.clear()

    def interrupt(*arguments: Any, **options: Any) -> dict[str, Any]:
        if len(taken) == 3:
            raise KeyboardInterrupt
        return counting(*arguments, **options)

    monkeypatch.setattr(measure, "perplexity", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(several(releases), folder=tmp_path / "parts")
    monkeypatch.setattr(measure, "perplexity", counting)
    assert run(several(releases), folder=tmp_path / "parts") == 0
    assert taken == [f"{layers}-{name}" for layers in (1, 2, 3) for name in ("sliding", "non_overlapping")]
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")
    assert all(entry["status"] == "completed" for entry in results(tmp_path / "parts"))


def test_only_an_added_checkpoint_is_measured(run: Run, releases: list[Path], tmp_path: Path, taken: list[str]) -> None:
    run(one(releases[1]))
    taken.clear()
    run(several(releases[:2]))
    assert taken == ["1-sliding", "1-non_overlapping"]
    assert [entry["name"] for entry in results(tmp_path)] == ["llama-1", "llama-2"]
    assert (tmp_path / "out" / "results.csv").read_text().count("\n") == 3


def test_a_checkpoint_whose_weights_changed_is_measured_again(run: Run, tmp_path: Path, taken: list[str]) -> None:
    losses = []
    for std in (0.1, 0.3):
        run(one(save(llama(num_hidden_layers=1, initializer_range=std), tmp_path / "m")))
        (entry,) = results(tmp_path)
        losses.append(entry["perplexity_results"][0]["loss"])
    assert len(taken) == 4
    assert losses[0] != losses[1]


def test_a_checkpoint_is_measured_beside_its_rounded_selves(
    run: Run, text: Path, tmp_path: Path, taken: list[str]
) -> None:
    wide = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    release = save(llama(num_hidden_layers=1, intermediate_size=64, **wide), tmp_path / "llama-1")
    once = (one(release), "perplexity.protocols=[non_overlapping]", "dtype=float64")
    run(*once)
    assert run(*once, "quantize=[null,int8,int4_dynamic]") == 0
    assert taken == ["1-non_overlapping"] * 3  # what was measured alone is not measured again
    table = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [row["model"] for row in table] == ["llama-1", "llama-1 int8", "llama-1 int4_dynamic"]
    assert [row["quantize"] for row in table] == ["", "int8", "int4_dynamic"]
    assert [row["family"] for row in table] == ["unnamed", "unnamed int8", "unnamed int4_dynamic"]
    ids = [*text.read_bytes()]
    for row, kind in zip(table, (None, "int8", "int4_dynamic"), strict=True):
        decoder = load(release, dtype=torch.float64, quantize=kind).decoder
        assert int(row["model_bytes"]) == decoder.counts().model_bytes
        assert float(row["bits_per_weight"]) == pytest.approx(8 * int(row["model_bytes"]) / int(row["params_total"]))
        windows = [torch.tensor([ids[start : start + 33]]) for start in range(0, len(ids) - 1, 32)]
        losses = torch.cat([decoder.token_losses(window[:, :-1], window[:, 1:])[0] for window in windows])
        assert float(row["loss"]) == pytest.approx(float(losses.mean()), rel=1e-9)
    assert len({row["loss"] for row in table}) == 3
    report = (tmp_path / "out" / "report.md").read_text()
    difference = float(table[1]["bits_per_byte"]) - float(table[0]["bits_per_byte"])
    lines = report.split("# Quantisation")[1].splitlines()
    shown = next(line for line in lines if line.startswith("| llama-1 int8 "))
    assert float(shown.split("|")[2].split("±")[0]) == pytest.approx(difference, rel=0.02)


def test_an_export_for_an_engine_is_not_rounded_again(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "model.pte"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"quantize=int4: .*model\.pte runs in the precision of its file"):
        load_any(file, quantize="int4")


def test_a_rounding_that_a_checkpoint_cannot_have_is_refused_before_anything_is_measured(
    run: Run, releases: list[Path], tmp_path: Path, taken: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    odd = releases[0]
    wide = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64}
    even = save(llama(num_hidden_layers=1, **wide), tmp_path / "even")
    with pytest.raises(ValueError, match=r"q_proj has 48 inputs, which 32 does not divide: give quantize=int8"):
        run(one(odd), "quantize=[null,int8,int4]")
    assert not taken
    with_baseline = (one(even), f"+baselines.checkpoints=[{odd}]", "perplexity.protocols=[non_overlapping]")
    assert run(*with_baseline, "quantize=[null,int4]") == SKIPPED_TASKS
    assert [entry["name"] for entry in results(tmp_path)] == ["even", "even int4", "llama-1"]
    assert f"{odd} int4 is skipped: quantize=int4 rounds" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["dtype=bfloat16", "perplexity.max_tokens=50", "speed.new_tokens=5"])
def test_a_directory_of_other_settings_is_refused(change: str, run: Run) -> None:
    run("perplexity.protocols=[]")
    with pytest.raises(ValueError, match=f"other values of {change.partition('=')[0].partition('.')[0]}"):
        run("perplexity.protocols=[]", change)


def test_a_release_without_a_text_says_which_there_are(releases: list[Path], tmp_path: Path) -> None:
    settings = small(tmp_path, tmp_path, one(releases[0])) | {"data": None}
    with pytest.raises(ValueError, match=r"is not a run of train\.py, .*: give a text, such as data=wikitext2"):
        evaluate(settings)


def test_windows_beyond_the_context_are_refused_before_loading(run: Run, releases: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_length=65 of protocol sliding is longer than the 64 positions"):
        run(several(releases), "perplexity.sliding.max_length=65")
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_task_that_fails_is_named_and_tried_again(run: Run, tmp_path: Path, answers: list[dict[str, Any]]) -> None:
    answers += [{"lost": {"error": "its data set cannot be had."}}, {"lost": GOOD}]
    assert run("tasks=lost", "speed.enabled=false") == SKIPPED_TASKS
    assert "its data set cannot be had." in (tmp_path / "out" / "report.md").read_text()
    assert run("tasks=lost", "speed.enabled=false") == 0
    assert results(tmp_path)[0]["tasks"]["lost"]["value"] == 0.5


def test_a_changed_text_loses_its_old_figures(releases: list[Path], tmp_path: Path, taken: list[str]) -> None:
    text = tmp_path / "t.txt"
    for words in ("One text. " * 40, "Another text, which is another. " * 20):
        text.write_text(words)
        evaluate(small(tmp_path, text, one(releases[0]), "speed.enabled=false"))
        (entry,) = results(tmp_path)
        # Every byte but the first, which nothing predicts.
        assert [score["bytes"] for score in entry["perplexity_results"]] == [len(words) - 1] * 2
    assert len(taken) == 4


def test_a_task_file_that_changed_is_asked_again(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    line = json.dumps({"query": "One and one make", "choices": ["two", "three"], "gold": 0}) + "\n"
    for count in (3, 5):
        (tmp_path / "quiz.jsonl").write_text(line * count)
        assert run(f"task_files={{quiz: {tmp_path}/quiz.jsonl}}", "perplexity.protocols=[]") == 0
        assert results(tmp_path)[0]["tasks"]["quiz"]["n"] == count


def test_items_are_written_once_and_again_only_if_they_are_missing(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    lines = [{"query": "One and one make", "choices": ["two", "three"], "gold": n % 2} for n in range(6)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [f"task_files={{quiz: {tmp_path}/quiz.jsonl}}", "perplexity.protocols=[]", "speed.enabled=false"]
    assert run(*asked) == 0  # without items, which may be asked for later
    for removed in (True, False, True):
        before = [file.stat().st_mtime_ns for file in tmp_path.glob("out/samples/*.jsonl")]
        assert run(*asked, "task_log_samples=true") == 0
        result = results(tmp_path)[0]["tasks"]["quiz"]
        (file,) = [tmp_path / "out" / name for name in result["samples"]]
        assert ([file.stat().st_mtime_ns] == before) != removed
        items = [json.loads(line) for line in file.read_text().splitlines()]
        assert [item["gold"] for item in items] == [0, 1] * 3
        assert sum(item["correct"] for item in items) / 6 == result["value"]
        assert sum(item["margin"] for item in items) / 6 == pytest.approx(result["also"]["margin"]["value"])
        if not removed:
            file.unlink()


def test_a_group_of_tasks_that_failed_once_leaves_no_error(run: Run, tmp_path: Path, answers: list[dict]) -> None:
    answers += [{"group": {"error": "no network."}}, {"one": GOOD, "two": GOOD}]
    asked = ("tasks=group", "speed.enabled=false", "perplexity.protocols=[]")
    assert [run(*asked) for _ in range(3)] == [SKIPPED_TASKS, 0, 0]
    assert list(results(tmp_path)[0]["tasks"]) == ["one", "two"]


@pytest.mark.parametrize("name", ["results.json", "report.md", "config.yaml", "config.json"])
def test_a_folder_of_something_else_is_left_alone(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("not ours")
    with pytest.raises(ValueError, match=f"holds {name} but no evaluation"):
        run()
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(name, "not ours")]


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]", "null", '[{"versions": 3}]'])
def test_results_that_are_damaged_are_refused(content: str, run: Run, tmp_path: Path) -> None:
    run("perplexity.protocols=[]")
    (tmp_path / "out" / "results.json").write_text(content)
    with pytest.raises(ValueError, match="cannot be read: choose another one"):
        run("perplexity.protocols=[]")


def test_one_model_under_two_names_is_refused_and_under_another_name_not_measured_again(
    run: Run, releases: list[Path], tmp_path: Path, taken: list[str]
) -> None:
    other = tmp_path / "link"
    other.symlink_to(releases[0])
    with pytest.raises(ValueError, match="link have the same weights: give only one"):
        run(several([releases[0], other]))
    run()
    run(one(other))
    assert len(taken) == 2
    assert [entry["name"] for entry in results(tmp_path)] == ["link"]


def test_only_added_tasks_are_run(run: Run, tmp_path: Path, taken: list[str], answers: list[dict[str, Any]]) -> None:
    answers += [{"one": GOOD}, {"two": GOOD}]
    for tasks in ("tasks=null", "tasks=one", "tasks=[one,two]"):
        assert run(tasks) == 0
    assert (len(taken), answers) == (2, [])
    assert list(results(tmp_path)[0]["tasks"]) == ["one", "two"]


@pytest.mark.parametrize("part", ["speed.enabled=false", "perplexity.protocols=[]"])
def test_a_measurement_without_the_others_is_reported_and_tracked(part: str, run: Run, tmp_path: Path) -> None:
    assert run("logger=wandb", part) == 0
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*"))


def test_an_export_loads_in_transformers_with_the_same_logits(
    run: Run, releases: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"export={tmp_path / 'there'}") == 0
    assert str(tmp_path / "there") in capsys.readouterr().out
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "there", releases[0])]
    with torch.no_grad():
        ours, theirs = (model(torch.arange(40)[None]).logits for model in models)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_prompt_is_continued_by_the_whole_sample_and_nothing_is_written(
    releases: list[Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(small(tmp_path, text, one(releases[0]), "prompt='Para graph'", "generation.max_new_tokens=12", "seed=3"))
    decoder, tokenizer, _ = load(releases[0])
    ids, limits = tokenizer.encode("Para graph"), {"stop_id": tokenizer.eos_id, "num_ids": tokenizer.vocab_size}
    sample = generate(decoder, ids, max_new_tokens=12, seed=3, **limits)
    assert capsys.readouterr().out == tokenizer.decode([*ids, *sample]) + "\n"
    assert not (tmp_path / "out").exists()
