"""Write docs/reference/: what each group and key of the three programs means, from the comments in conf/.

    python docs/reference.py

`--help` shows the same; slm/composition/comments.py says which comment belongs to which key.
"""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from hydra import compose, initialize_config_dir

from slm.composition.help import COMPUTED, REQUIRED, Manual, Setting
from slm.composition.keys import CONF, SCRIPTS, keys_of_choices
from slm.composition.resolvers import register

FOLDER = Path(__file__).parent / "reference"
SHARED = {"evaluate": ("data", "logger"), "sweep": ("logger",)}
"""Script -> groups that the page of train.py explains."""


def pages() -> dict[Path, str]:
    """Path of each page -> its text."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {FOLDER / f"{script}.md": "\n".join(page(script)) + "\n" for script in SCRIPTS}


def page(script: str) -> Iterator[str]:
    """The lines of the page of a script."""
    config = compose(script, return_hydra_config=True)
    manual, chosen = Manual(script), config.hydra.runtime.choices
    yield f"# Settings of {script}.py"
    yield ""
    yield "<!-- written by docs/reference.py -->"
    yield ""
    yield f"`python {script}.py --help` shows the same, with the values that the command line gives. Both come from the"
    yield "comments in `conf/`. `KEY=VALUE` sets a key, and `GROUP=CHOICE` chooses the file of a group."
    yield ""
    yield "## Groups"
    yield ""
    yield from table("group", "default", "chooses")
    for group, about in manual.file.groups.items():
        address = f"train.md#{group}" if group in SHARED.get(script, ()) else f"#{group}"
        yield cells(f"[`{group}`]({address})", f"`{chosen.get(group) or 'null'}`", text(about))
    sections = manual.sections(config)
    for group in dict.fromkeys([*sections, *manual.file.groups]):
        if group in SHARED.get(script, ()):
            continue
        yield from ["", f"## {group or 'Keys without a group'}", ""]
        if group in manual.file.groups:
            yield from table(f"`{group}=`", "is")
            yield from (cells(f"`{name}`", text(file.about)) for name, file in manual.choices(group).items())
        settings = [*sections.get(group, []), *other_settings(manual, group, chosen.get(group))]
        if group in manual.file.groups and settings:
            yield ""
        if settings:
            yield from table("key", "default", "is")
            yield from (cells(f"`{key}`", value(given), text(about)) for key, given, about in settings)


def other_settings(manual: Manual, group: str, default: str | None) -> Iterator[Setting]:
    """The keys of a group that its default choice does not have, each with the choices that have it."""
    if group not in manual.file.groups or group == "model":  # every model has the same keys
        return
    trees = dict(reversed(keys_of_choices(group).items()))
    settings = {choice: list(manual.settings({group: tree}, {group: choice})) for choice, tree in trees.items()}
    seen = {setting.key for setting in settings.pop(default or "", [])}
    for setting in chain.from_iterable(settings.values()):
        if setting.key not in seen:
            seen.add(setting.key)
            names = [f"`{name}`" for name, others in settings.items() if setting.key in {each.key for each in others}]
            yield setting._replace(about=f"{setting.about} (with {', '.join(names)})")


def table(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [cells(*names), "|" + "---|" * len(names)]


def cells(*values: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(values)} |"


def value(given: str) -> str:
    """A value as code; words that stand for a value as text."""
    return given.strip("()") if given in (COMPUTED, REQUIRED) else f"`{given}`"


def text(comment: str) -> str:
    """A comment as Markdown, with links to the pages that it names."""
    parts = comment.split("`")  # every second one is code
    parts[::2] = [re.sub(r"([|*<])", r"\\\1", part).replace("\\<", "&lt;") for part in parts[::2]]
    return re.sub(r"\bdocs/(\w+)\.md", r"[docs/\1.md](../\1.md)", "`".join(parts))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
