import json
import math
from pathlib import Path

import pytest

from slm.training.run_directory import RunDirectory

CONFIG = {"seed": 1, "optim": {"lr": 0.1}, "logger": {"tags": []}}
CORPUS = {"data": "aaaa", "tokenizer": "bbbb"}


def begun(path: Path) -> RunDirectory:
    with RunDirectory(path).lock(CONFIG, CORPUS):
        pass
    return RunDirectory(path)


def test_the_same_run_and_other_logging_may_continue_it(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.check(CONFIG | {"logger": {"tags": ["new"]}})
    with folder.lock(CONFIG, CORPUS):
        pass


def test_a_run_from_before_documents_could_be_masked_goes_on_without_masking_them(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.check(CONFIG | {"train": {"document_masking": False}})
    with pytest.raises(ValueError, match=r"train\.document_masking is False there, True here"):
        folder.check(CONFIG | {"train": {"document_masking": True}})


def test_a_run_from_before_keys_of_the_hub_were_renamed_goes_on(tmp_path: Path) -> None:
    data = {"source": "hub", "path": "x/y", "subset": None}
    with RunDirectory(tmp_path).lock(CONFIG | {"data": data}, CORPUS):
        pass
    now = {"source": "hub", "repo": "x/y", "config": None, "split": "train"}
    RunDirectory(tmp_path).check(CONFIG | {"data": now})
    with pytest.raises(ValueError, match=r"data\.repo is x/y there, x/z here"):
        RunDirectory(tmp_path).check(CONFIG | {"data": now | {"repo": "x/z"}})


def test_a_run_from_before_text_could_be_split_in_another_way_goes_on(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).lock(CONFIG | {"tokenizer": {"kind": "bpe"}}, CORPUS):
        pass
    RunDirectory(tmp_path).check(CONFIG | {"tokenizer": {"kind": "bpe", "split": "slm"}})
    with pytest.raises(ValueError, match=r"tokenizer\.split is slm there, llama3 here"):
        RunDirectory(tmp_path).check(CONFIG | {"tokenizer": {"kind": "bpe", "split": "llama3"}})


def test_two_processes_may_not_train_in_it_at_once(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    with folder.lock(CONFIG, CORPUS), pytest.raises(ValueError, match="in use"), folder.lock(CONFIG, CORPUS):
        pass


def test_a_folder_with_somebody_elses_files_of_our_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"holds model but no config\.yaml"):
        RunDirectory(tmp_path).check(CONFIG)
    (tmp_path / "model").rmdir()
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path).check(CONFIG)


def test_a_broken_config_is_named_and_a_broken_result_counts_as_none(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    (folder.path / "result.json").write_text("{")
    assert folder.result() == {}
    (folder.path / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read"):
        folder.check(CONFIG)


def test_results_are_json_even_where_numbers_are_not_finite(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.write_result({"val": {"loss": math.nan}, "betas": [0.9, math.inf]})
    written = json.loads((folder.path / "result.json").read_text(), parse_constant=pytest.fail)
    assert written == {"val": {"loss": None}, "betas": [0.9, None]}


def test_what_was_left_out_is_kept_in_corpus_json_and_does_not_say_which_corpus_it_is(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")  # from before it was counted
    with folder.lock(CONFIG, CORPUS | {"left_out": {"also_in_validation": 3}}):
        pass
    assert json.loads((folder.path / "corpus.json").read_text())["left_out"] == {"also_in_validation": 3}
