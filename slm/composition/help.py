"""Write what `--help` prints: the groups and keys of a script, each with its comment in conf/ (`comments.py`)."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from slm.composition.comments import FileComments, model_fields, read_comments
from slm.composition.keys import CONF
from slm.runtime.settings import as_typed

COLUMN = 42  # of the comments
WIDTH = 118  # of the text
COMPUTED, REQUIRED = "(computed)", "(must be set)"


class Setting(NamedTuple):
    """A key, its value as a user types it, and its comment."""

    key: str
    value: str
    about: str


@dataclass(frozen=True)
class Manual:
    """What conf/ says about the groups and keys of a script."""

    script: str
    folders: tuple[Path, ...] = (CONF,)
    """Folders with config groups, by precedence: those of --config-dir, and conf/."""

    @cached_property
    def file(self) -> FileComments:
        """The comments of conf/SCRIPT.yaml; the keys of its `groups` are the groups that the script uses."""
        return read_comments(CONF / f"{self.script}.yaml")

    def choices(self, group: str) -> dict[str, FileComments]:
        """The choices of a group in alphabetical order, each with its comments."""
        files = {path.stem: path for folder in reversed(self.folders) for path in (folder / group).glob("*.yaml")}
        return {name: read_comments(files[name]) for name in sorted(files)}

    def about(self, key: str, choice: str | None = None) -> str:
        """The comment of a key: in conf/SCRIPT.yaml, else where the chosen file of its group or another one has it."""
        if self.file.keys.get(key):
            return self.file.keys[key]
        group, _, name = key.partition(".")
        choices = self.choices(group)
        comments = (file.keys.get(name) for file in _nearest_first(choices, choice))
        return next(filter(None, comments), model_fields().get(name, "") if group == "model" else "")

    def settings(
        self, tree: Mapping[str, Any], choices: Mapping[str, str | None], prefix: str = ""
    ) -> Iterator[Setting]:
        """The keys of `tree` with values and comments. `choices` has the chosen file of each group."""
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping) and self._is_section(key):
                yield from self.settings(value, choices, f"{key}.")
            else:
                yield Setting(key, typed(value), self.about(key, choices.get(key.partition(".")[0])))

    def sections(self, config: DictConfig) -> dict[str, list[Setting]]:
        """The keys of a composed config that has Hydra's own part: those without a group under "", then by group."""
        tree: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
        found: dict[str, list[Setting]] = {"": []}
        for name in sorted(tree, key=lambda name: name in self.file.groups):
            if name != "hydra":
                for setting in self.settings({name: tree[name]}, config.hydra.runtime.choices):
                    found.setdefault(name if "." in setting.key else "", []).append(setting)
        return found

    def _is_section(self, key: str) -> bool:
        """Whether conf/ lists keys below this key. Keys below any other are a part of its value."""
        if key in self.file.groups:
            return True
        group = key.partition(".")[0]
        keys = [*self.file.keys, *(f"{group}.{known}" for file in self.choices(group).values() for known in file.keys)]
        return any(known.startswith(f"{key}.") for known in keys)


def _nearest_first(choices: Mapping[str, FileComments], choice: str | None) -> Iterator[FileComments]:
    """The chosen file, the files that it starts from, and then all files of its group."""
    if choice is not None and choice in choices:
        yield choices[choice]
        for parent in choices[choice].parents:
            yield from _nearest_first({name: file for name, file in choices.items() if name != choice}, parent)
    yield from choices.values()


def typed(value: Any) -> str:
    """Return a value of a config as a user types it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(typed, value))}]"
    if isinstance(value, str) and "${" in value:
        return COMPUTED
    if isinstance(value, int | float) and value >= 10_000 and value == int(value):
        return f"{int(value):_}"
    return REQUIRED if value == "???" else as_typed(value)


def help_text(manual: Manual, config: DictConfig) -> str:
    """Return the groups and keys of a script as aligned text; `config` is the composed config with Hydra's own part."""
    lines = ["Groups and their choices (GROUP=CHOICE), each with its choice here:", ""]
    for group, about in manual.file.groups.items():
        names = ", ".join(manual.choices(group))
        chosen = as_typed(config.hydra.runtime.choices.get(group))
        lines += row(f"{group}={chosen}", f"{about}: {names}")
    lines += ["", "Keys (KEY=VALUE), each with its value here:"]
    for settings in manual.sections(config).values():
        lines.append("")
        for setting in settings:
            lines += row(f"{setting.key}={setting.value}", setting.about)
    return "\n".join(lines)


def row(left: str, right: str) -> Iterable[str]:
    """Lines with `left` in the first column and `right`, wrapped, in the second."""
    first = textwrap.wrap(left, WIDTH, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False)
    second = textwrap.wrap(right, WIDTH - COLUMN, break_on_hyphens=False)
    if len(first) == 1 and len(first[0]) <= COLUMN - 2 and second:
        first[0] = first[0].ljust(COLUMN) + second.pop(0)
    return first + [" " * COLUMN + line for line in second]


def register_help(script: str) -> None:
    """Register the resolver `help`, with which the help template in conf/SCRIPT.yaml takes its groups and keys."""

    def resolve(*, _root_: DictConfig) -> str:
        sources = [source for source in _root_.hydra.runtime.config_sources if source.schema == "file"]
        folders = tuple(dict.fromkeys([Path(source.path) for source in sources] + [CONF]))
        return help_text(Manual(script, folders), _root_).replace("$", "$$")  # Hydra makes a string.Template of it

    OmegaConf.register_new_resolver("help", resolve, replace=True)
