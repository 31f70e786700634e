"""The commands in the documentation, and a check of each that runs nothing."""

import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from slm.composition import settings as train_settings
from slm.composition.budget import shape_and_steps
from slm.composition.keys import check_keys, explain_unknown_keys
from slm.composition.resolvers import register
from slm.evaluation import config as evaluation
from slm.runtime.command_line import one_sentence, quote_texts
from slm.sweep import config as sweep
from slm.sweep.design import check_design
from slm.sweep.recipe import Recipe
from tests.running import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = ("python", "pytest", "pip")
NOT_OURS = (
    ".",
    "cd",
    "cp",
    "export",
    "git",
    "jupyter",
    "mkdir",
    "mkdocs",
    "mypy",
    "rm",
    "ruff",
    "srun",
    "tensorboard",
    "wandb",
)
"""Programs in scripts that are not checked."""
KINDS = {
    "train": {**train_settings.KINDS, **train_settings.OPTIONAL_KINDS},
    "evaluate": evaluation.KINDS,
    "sweep": sweep.KINDS,
}
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
OUR_PROGRAM = re.compile(rf"^([A-Z_]+=\S* |.* && )*(srun .*)?({'|'.join(OURS)}) ")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The command lines of a page that start a program of ours: in its blocks of code, and in its sentences."""
    if page.suffix == ".yaml":  # the examples of --help, each followed by two spaces and what it does
        text = yaml.safe_load(page.read_text())["hydra"]["help"]["template"]
        return [re.split(r"  +", line.strip())[0] for line in text.splitlines() if line.startswith("  python ")]
    text = page.read_text()
    lines = [line for language, block in FENCE.findall(text) for line in lines_of(language, block)]
    sentences = FENCE.sub("", text)
    lines += re.findall(r"^    .*$", sentences, re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", sentences)]
    lines = [line.strip().removeprefix("$ ") for line in lines]
    return list(dict.fromkeys(line for line in lines if OUR_PROGRAM.search(line) and " ..." not in line))


def lines_of(language: str, block: str) -> Iterator[str]:
    """The command lines of a block of code: whole ones, if the block is a script."""
    pending = ""
    for line in block.replace("\\\n", " ").splitlines() if language in ("", "sh", "bash", "text") else ():
        pending += line
        try:
            shlex.split(pending, comments=True)
        except ValueError:  # a quotation that ends on a later line
            pending = f"{pending}\n" if language in ("sh", "bash") else ""
        else:
            yield pending
            pending = ""


def unknown_programs(page: Path) -> list[str]:
    """The programs in the scripts of a page that are neither checked nor known."""
    scripts = [(language, block) for language, block in FENCE.findall(page.read_text()) if language in ("sh", "bash")]
    parts = [words for script in scripts for line in lines_of(*script) for words in parts_of(line)]
    return [words[0] for words in parts if words[0] not in (*OURS, *NOT_OURS)]


def parts_of(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without comments and variables of the environment."""
    for part in re.split(r" (?:&&|\|) ", line):
        words = shlex.split(part, comments=True)
        while words and ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        if words:
            yield words


def refusal(line: str, folder: Path) -> str:
    """Why a program would refuse a command line, or ""."""
    try:
        check(line, folder)
    except Exception as error:
        return one_sentence(error)
    return ""


def check(line: str, folder: Path) -> None:
    """Raise an error if a program would refuse a command line. `folder` gets the files that the line names."""
    for program, *words in parts_of(line):
        if program == "srun":
            program, *words = words[words.index("python") :]
        if program == "python":
            _check_script(words[0], words[1:], folder)
        elif program == "pytest":
            _check_pytest(words)
        elif program == "pip":
            named = ",".join(re.findall(r"\[(.*?)\]", " ".join(words))).split(",")
            assert {*filter(None, named)} <= {*PROJECT["project"]["optional-dependencies"]}, f"no such extra: {line}"


def _check_script(script: str, words: Sequence[str], folder: Path) -> None:
    if script.startswith("-"):  # a module of Python, or code
        return
    if script in ("train.py", "evaluate.py", "sweep.py"):
        given = get_args_parser().parse_args(words)
        words = quote_texts([*given.overrides, *(["-m"] if given.multirun else [])], KINDS[Path(script).stem])
        overrides = tuple(first_value(word) if given.multirun else word for word in words if word != "-m")
        if overrides:  # else the program is only named
            check_settings(Path(script).stem, overrides, given.config_dir, folder)
        return
    source = (ROOT / script).read_text()
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert f'"{flag}"' in source, f"{script} has no {flag}"


def _check_pytest(words: Sequence[str]) -> None:
    marks = [mark.partition(":")[0] for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
    for before, word in zip(["", *words], words, strict=False):
        assert before != "-m" or word in marks, f"there are no tests marked {word}"
        assert not word.startswith("tests/") or (ROOT / word).exists(), f"{word} does not exist"


def first_value(override: str) -> str:
    """An override of a multirun with the first of its values."""
    parsed = OverridesParser.create().parse_override(override)
    return (
        f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}" if parsed.is_sweep_override() else override
    )


@cache
def check_settings(script: str, overrides: tuple[str, ...], config_dir: str | None, folder: Path) -> None:
    """Check the settings of one of the three programs as far as this needs neither torch, texts nor checkpoints."""
    register()
    evaluation.register()
    added = config_dir and (ROOT / config_dir).exists()
    searchpath = [f"hydra.searchpath=[file://{ROOT / config_dir}]"] if added and config_dir else []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), explain_unknown_keys(script):
        settings = OmegaConf.to_container(compose(script, overrides=[*searchpath, *overrides]), resolve=True)
    assert isinstance(settings, dict)
    check_keys(settings, script, overrides)
    if script == "train":
        train_settings.check_settings(settings)
        if not settings["extensions"]:  # whose mixers are not loaded here
            shape_and_steps(settings)
    elif script == "evaluate":
        evaluation.check_settings(settings)
    else:
        for key in ("runs", "device"):
            if (file := settings[key]) and file not in ("mobilellm_published", "here"):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).touch()
                settings[key] = str(folder / file)
        sweep.check_settings(settings, overrides)
        design = check_design(settings["sweep"])
        Recipe(design.families[0], design.common_overrides)
