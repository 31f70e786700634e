"""Commands in the documentation are accepted, its reference is what conf/ says, and every key of conf/ is explained."""

import re
import runpy
from pathlib import Path

import pytest

from slm.composition.comments import read_comments
from slm.composition.help import Manual
from slm.composition.keys import CONF, SCRIPTS
from tests import commands
from tests.running import ROOT

DATED = ROOT / "docs" / "log.md"
"""Its commands are those of the commits that it names."""
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/*/README.md")} - {DATED})
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.mark.parametrize(
    "page", [*PAGES, *(CONF / f"{script}.yaml" for script in SCRIPTS)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_command_is_one_that_the_programs_accept(page: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "named_in_commands"
    refused = {line: commands.refusal(line, folder) for line in commands.commands(page)}
    assert not {line: why for line, why in refused.items() if why}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python train.py tran.tokens=5", "tran.tokens is not a setting of train.py"),
        ("python train.py train.tokens=1M", "train.tokens=1M must be a number above 0; write 1_000_000"),
        ("python train.py train.tokens=5", "gives 5 tokens, fewer than one step"),
        ("python train.py -m seed=1,2 optim=adam", "Could not find 'optim/adam'"),
        ("python evaluate.py data=pydocs", "give one checkpoint=..."),
        ("python sweep.py runs=TABLE.csv sweep.seeds=[1,2]", "is for training a sweep"),
        ("python sweep.py \"sweep.also=['train.tokns=5']\"", "train.tokns is not a setting of train.py"),
        ("python benchmarks/all.py --nonsense", "benchmarks/all.py has no --nonsense"),
        ("python benchmarks/nonsense.py", "No such file"),
        ("pytest -m nonsense", "there are no tests marked nonsense"),
        ('pip install -e ".[nonsense]" && pytest', "no such extra"),
    ],
)
def test_a_command_that_a_program_would_refuse_is_found(line: str, said: str, tmp_path: Path) -> None:
    assert said in commands.refusal(line, tmp_path)


@every_page
def test_blocks_of_commands_start_programs_that_are_known(page: Path) -> None:
    assert not commands.unknown_programs(page)


@every_page
def test_every_setting_named_in_a_sentence_exists(page: Path) -> None:
    named = re.findall(r"`([a-z_]+\.[a-z_.]+)=[^`]*`", commands.FENCE.sub("", page.read_text()))
    manuals = [Manual(script, (CONF, ROOT / "docs" / "extending")) for script in SCRIPTS]
    groups = {group for manual in manuals for group in manual.file.groups}
    assert not [key for key in named if key.partition(".")[0] in groups and not any(m.about(key) for m in manuals)]


def test_commands_are_found_wherever_they_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("""
`python train.py
seed=2` and `train.tokens`

```sh
OMP_NUM_THREADS=1 python a.py \\
  --b          # a comment's
python -c "
print(1)"
```

    python evaluate.py checkpoint=a

```text
$ pytest -x
8.5 s, and it's
the end
```

```python
python = 1
```
""")
    found = [list(commands.parts_of(line)) for line in commands.commands(page)]
    assert found == [
        [["python", "a.py", "--b"]],
        [["python", "-c", "\nprint(1)"]],
        [["pytest", "-x"]],
        [["python", "evaluate.py", "checkpoint=a"]],
        [["python", "train.py", "seed=2"]],
    ]


def test_reference_pages_are_what_their_command_writes() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]()
    committed = {path: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")}
    assert committed == written, "run: python docs/reference.py"


def test_every_file_and_key_of_conf_is_explained() -> None:
    manuals = [Manual(script) for script in SCRIPTS]
    bare = [key for manual in manuals for key in manual.file.keys if "." in key and not manual.about(key)]
    for manual in manuals:
        for group in manual.file.groups:
            for choice, file in manual.choices(group).items():
                bare += [] if file.about else [f"{group}/{choice}.yaml"]
                is_global = group in ("family", "experiment")  # whose keys are those of other files
                keys = (key if is_global else f"{group}.{key}" for key in file.keys)
                bare += [key for key in keys if not manual.about(key, None if is_global else choice)]
    sections = {"model", "data", "tokenizer", "optim", "schedule", "train", "checkpoint", "sweep.lr"}
    assert {*bare} <= sections  # their keys are explained


def test_files_with_comments_are_those_of_conf() -> None:
    assert {path.name for path in CONF.glob("*.yaml")} == {f"{script}.yaml" for script in SCRIPTS}
    known = {group for script in SCRIPTS for group in Manual(script).file.groups}
    assert known == {path.name for path in CONF.iterdir() if path.is_dir()}
    assert read_comments(CONF / "optim" / "muon.yaml").parents == ("adamw",)
