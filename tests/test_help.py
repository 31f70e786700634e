"""What `--help` says, and which comment of a file belongs to which key."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from slm.composition.comments import model_fields, read_comments
from slm.composition.help import WIDTH, Manual, help_text, typed
from slm.composition.keys import CONF, SCRIPTS
from slm.composition.resolvers import register
from tests.running import ROOT


def help_of(script: str, *overrides: str) -> str:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return help_text(Manual(script), compose(script, overrides=list(overrides), return_hydra_config=True))


def entry(text: str, key: str) -> str:
    """The lines of a key, joined."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"  {key}="))
    end = next(i for i in range(start + 1, len(lines) + 1) if i == len(lines) or not lines[i].startswith("      "))
    return " ".join(" ".join(lines[start:end]).split())


def test_a_comment_belongs_to_the_key_beside_or_below_it(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("""\
# @package _global_
# About the file,
# in two lines.
defaults:
  - optim: muon     # the update rule
  - override hydra/job_logging: none
  - _self_
a: 'x # y'          # beside it
b: [1, 2]           # beside it,
                    # and below
# Above it.
c: null

# Not above it.

d: {e: 1, f: 2}     # of a value
g:                  # a group
  # Above and
  # within.
  h: 1
  # Not this,
  i: 2              # but this
j: 3
hydra:
  help: 5           # not ours
""")
    found = read_comments(file)
    assert found.about == "About the file, in two lines."
    assert found.groups == {"optim": "the update rule"}
    beside = {"a": "beside it", "b": "beside it, and below", "c": "Above it.", "d": "of a value", "g": "a group"}
    assert found.keys == beside | {"g.h": "Above and within.", "g.i": "but this", "j": ""}


def test_fields_of_a_model_have_their_docstrings_and_their_words() -> None:
    fields = model_fields()
    assert fields["vocab_size"] == "Rows of the embedding table; may exceed what the tokenizer uses."
    assert fields["head_dim"] == "Width of a head; null is hidden_size / num_heads."
    assert fields["norm"].startswith("rmsnorm | layernorm: ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_fits_the_terminal_and_explains_every_key(script: str) -> None:
    text = help_of(script)
    assert max(map(len, text.splitlines())) <= WIDTH
    keys = text.partition("Keys (KEY=VALUE)")[2].splitlines()[2:]
    bare = [line for i, line in enumerate(keys) if line[2:3].strip() and "  " not in line.strip() and i + 1 < len(keys)]
    assert all(keys[keys.index(line) + 1].startswith("      ") for line in bare)


def test_help_lists_the_groups_that_the_program_uses_and_no_others() -> None:
    groups = {script: help_of(script).partition("Keys (KEY")[0] for script in SCRIPTS}
    assert "  optim=muon" in groups["train"]
    assert "launcher" not in groups["train"]
    assert "analysis" not in groups["train"]
    assert "optim" not in groups["evaluate"] + groups["sweep"]
    assert "  launcher=local" in groups["sweep"]


def test_help_has_the_keys_and_values_of_the_command_line() -> None:
    muon, adamw = help_of("train"), help_of("train", "optim=adamw", "optim.lr=3e-3", "train.tokens=5e6")
    assert entry(muon, "optim.momentum") == "optim.momentum=0.95 of Muon (Nesterov)"
    assert "optim.momentum" not in adamw
    assert entry(adamw, "optim.lr").startswith("optim.lr=0.003 peak; tuned for")
    assert entry(adamw, "train.tokens").startswith("train.tokens=5_000_000 the budget D")
    assert entry(help_of("train", "data=local"), "data.paths").startswith("data.paths=(must be set) A file, a folder")


def test_a_key_without_a_comment_in_its_file_has_that_of_the_file_it_starts_from() -> None:
    manual = Manual("train")
    assert "`val_split`" in manual.about("data.val_fraction", "fineweb_edu")  # of hub.yaml
    assert "`val_paths`" in manual.about("data.val_fraction", "local")
    assert manual.about("data.val_split", "tinystories") == "evaluate.py reads it too"
    assert manual.about("schedule.warmup_fraction", "constant") == manual.about("schedule.warmup_fraction", "cosine")


def test_values_are_written_as_they_are_typed() -> None:
    value = {"a": [1.5, True, None], "b": "${c}", "d": "???", "e": 5e10, "f": 0.1}
    assert typed(value) == "{a: [1.5, true, null], b: (computed), d: (must be set), e: 50_000_000_000, f: 0.1}"


def test_the_program_prints_it_with_groups_of_a_folder_of_ones_own() -> None:
    command = [sys.executable, "train.py", "--config-dir", "docs/extending", "data=lines", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "hub, lines, local" in entry(done.stdout, "data")
    assert entry(done.stdout, "data.file") == "data.file=(must be set) the text file"
    assert "Put -m first or last." in done.stdout
    assert "$" in entry(done.stdout, "cache_dir")
