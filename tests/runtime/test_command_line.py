"""Texts of a command line reach the settings as they were typed."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slm.composition import settings as training
from slm.evaluation.config import KINDS
from slm.runtime.command_line import one_sentence, quote_texts, run_script
from tests.evaluation.asked import asked
from tests.running import ROOT

TRAIN_KINDS = {**training.KINDS, **training.OPTIONAL_KINDS}
WITH_MEANING = st.text(alphabet="ab \\\"'${}[](),=:\n\t#*é.@-~", max_size=12)  # in Hydra, OmegaConf or YAML


def read(word: str) -> object:
    """The value that Hydra and OmegaConf make of an override."""
    override = OverridesParser.create().parse_override(word)
    key = override.get_key_element()
    return OmegaConf.to_container(OmegaConf.create({key: override.value()}), resolve=True)[key]


def is_left_to_hydra(text: str) -> bool:
    return text == "null" or (len(text) > 1 and text[0] == text[-1] and text[0] in "'\"")


@settings(max_examples=100, deadline=None)
@given(WITH_MEANING.filter(lambda text: not is_left_to_hydra(text)))
@example('Say "hi", [ok]?')
@example("a=b, ${c} and \\${d}\\")
@example("\\\n")
@example(" 5 ")
@example("true")
@example('"Hi," he said. "Bye."')
def test_a_prompt_is_the_text_that_was_typed(text: str) -> None:
    (word,) = quote_texts([f"prompt={text}"], KINDS)
    assert read(word) == text


def test_quoted_twice_is_quoted_once_and_null_is_no_text() -> None:
    words = [
        'prompt=Say "hi", [ok]?',
        "prompt=null",
        "prompt='a b'",
        'prompt="a, b"',
        "seed=3",
        "perplexity.protocols=[]",
    ]
    quoted = quote_texts(words, KINDS)
    assert quoted[1:] == words[1:]
    assert quote_texts(quoted, KINDS) == quoted


@pytest.mark.parametrize("name", ["a=b (1), c", "größe.txt", "5", "true", "it's", "a[1].txt", "x, y"])
@pytest.mark.parametrize("key", ["output_dir", "name", "+cache_dir"])
def test_a_name_or_path_may_have_any_characters(key: str, name: str) -> None:
    (word,) = quote_texts([f"{key}={name}"], TRAIN_KINDS)
    assert read(word) == name


def test_other_keys_are_quoted_only_if_hydra_cannot_read_them() -> None:
    kept = shlex.split("output_dir=runs/${seed} data.paths=[a,b] tokenizer=bpe tasks=[a optim.betas=[0.9,0.95] -cn x")
    assert quote_texts(kept, TRAIN_KINDS) == kept
    (paths,) = quote_texts(["data.paths=texts (new)/größe=1.txt"], TRAIN_KINDS)
    assert read(paths) == "texts (new)/größe=1.txt"


def test_commas_separate_runs_of_a_multirun_and_nothing_else() -> None:
    word = "train.sample_prompt=One,two"
    assert quote_texts(["-m", word], TRAIN_KINDS)[1] == word
    assert read(quote_texts([word], TRAIN_KINDS)[0]) == "One,two"
    sentence = "train.sample_prompt=Is (it), [so]? ${x}"
    assert read(quote_texts(["-m", sentence], TRAIN_KINDS)[1]) == "Is (it), [so]? ${x}"


def test_the_composed_config_of_evaluate_has_the_prompt() -> None:
    text = 'He said: "a, b" = {c: [d]} ${e}\nand \\more'
    assert asked(*quote_texts(["checkpoint=x", f"prompt={text}"], KINDS))["prompt"] == text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("name", ["/dev/full", None])
def test_a_full_disk_is_one_sentence_that_says_what_to_do(name: str | None) -> None:
    with pytest.raises(OSError, match="No space") as refused, Path("/dev/full").open("w") as file:
        file.write("x")
    refused.value.filename = name
    said = one_sentence(refused.value)
    assert said.removeprefix("/dev/full: ") == (
        "No space left on device: free space on that disk, and give the same command again"
    )
    assert said.startswith("/dev/full: ") == (name is not None)


def test_an_error_of_a_file_begins_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        (tmp_path / "missing").read_text()
    assert one_sentence(refused.value) == f"{tmp_path / 'missing'}: No such file or directory"


@pytest.mark.parametrize(
    ("script", "number", "code", "line"),
    [
        *((script, signal.SIGINT, 130, "interrupted") for script in ("train", "sweep", "evaluate")),
        ("train", signal.SIGUSR1, 143, "SIGUSR1: stopped while nothing was trained; the same command continues"),
    ],
)
def test_a_signal_during_the_first_import_is_one_line(
    script: str, number: int, code: int, line: str, tmp_path: Path
) -> None:
    (tmp_path / "hydra.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(20)\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / f"{script}.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"\n{line}\n")


def test_an_error_that_ctrl_c_caused_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    def half_imported() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("cannot import name x from partially initialized module") from None

    with pytest.raises(SystemExit) as ended:
        run_script(half_imported, [], {})
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
