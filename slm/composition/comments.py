"""Read what the comments in conf/ say about files, groups and keys. `--help` and docs/reference have no other source.

The comment on the line of a key belongs to it, and so do the lines below that begin in the same column with `#`. A key
without one has the comment lines directly above it. The comment at the top of a file is about the file. The fields of
a model have no file that lists them all, so they have the docstrings of `ModelConfig`.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from slm.model import config as model_config

ONLY_COMMENT = re.compile(r"( *)# ?(.*)")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class FileComments:
    """The comments of one file of conf/."""

    about: str
    """The comment at the top, "" if there is none."""
    parents: tuple[str, ...]
    """The files of the same group from which its defaults list starts."""
    groups: dict[str, str]
    """Group of the defaults list -> its comment."""
    keys: dict[str, str]
    """Dotted key -> its comment, "" if it has none; in the order of the file, without the keys of Hydra."""


@cache
def read_comments(path: Path) -> FileComments:
    """Return the comments of a YAML file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    num_top_lines = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    about = [line.lstrip("# ") for line in lines[:num_top_lines] if not line.startswith("# @")]
    root = yaml.compose(text, Loader=LOADER)
    parents, groups, keys = [], {}, {}
    for name, value in root.value if root else ():
        if name.value == "defaults":
            parents = [item.value for item in value.value if isinstance(item, yaml.ScalarNode)]
            entries = [entry for item in value.value if isinstance(item, yaml.MappingNode) for entry in item.value]
            groups = {group.value: _comment(lines, group, choice, num_top_lines) for group, choice in entries}
        elif name.value != "hydra":
            for key, key_node, value_node in _keys(name, value):
                keys[key] = _comment(lines, key_node, value_node, num_top_lines)
    groups = {group: comment for group, comment in groups.items() if not group.startswith("override ")}
    return FileComments(" ".join(about), tuple(name for name in parents if name != "_self_"), groups, keys)


@cache
def model_fields() -> dict[str, str]:
    """Return the allowed words and the docstring of each field of `ModelConfig`, with YAML's null for None."""
    tree = ast.parse(Path(model_config.__file__).read_text(encoding="utf-8"))
    shape = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ModelConfig")
    return {
        field.target.id: _words(field.annotation) + re.sub(r"\bNone\b", "null", " ".join(text.value.value.split()))
        for field, text in pairwise(shape.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _words(annotation: ast.expr) -> str:
    """The words that a field of type `Literal` allows, as in `pre | post: `."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal"):
        return ""
    return " | ".join(ast.literal_eval(annotation.slice)) + ": "


def _keys(name: yaml.ScalarNode, value: yaml.Node, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys with their nodes: a key, and the keys below it if they have lines of their own."""
    yield f"{prefix}{name.value}", name, value
    if isinstance(value, yaml.MappingNode) and not value.flow_style:
        for child, child_value in value.value:
            yield from _keys(child, child_value, f"{prefix}{name.value}.")


def _comment(lines: list[str], key: yaml.ScalarNode, value: yaml.Node, num_top_lines: int) -> str:
    """The comment that belongs to a key; comments in the first `num_top_lines` lines are about the file."""
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    end = key.end_mark if is_block or value.end_mark.line >= len(lines) else value.end_mark
    number = end.line
    beside = re.match(r":? +# ?(.*)", lines[number][end.column :])
    if beside:
        column = lines[number].index("#", end.column)
        below = _block(lines[number + 1 :], column)
        return " ".join([beside[1], *below])
    above = _block(lines[num_top_lines : key.start_mark.line][::-1], key.start_mark.column)
    return " ".join(reversed(above))


def _block(lines: list[str], column: int) -> list[str]:
    """The comments at the beginning of `lines`, as long as they start in this column."""
    found = []
    for line in lines:
        match = ONLY_COMMENT.fullmatch(line)
        if not match or len(match[1]) != column:
            break
        found.append(match[2])
    return found
