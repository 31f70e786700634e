"""A user's own mixers, laws and data sources: the modules named in `extensions`, imported before the config is checked.

Such a module calls `register_mixer`, `register_law` or `register_source`; docs/extending.md shows how.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from slm.runtime.settings import NAME, check_kind, list_of

EXTENSIONS = list_of(NAME, "modules and .py files, such as [my_mixer.py,my_package.laws]", least=0)
_loaded: list[str] = []


def load_extensions(config: Mapping[str, Any]) -> list[str]:
    """Import each of `config["extensions"]`, once a process; returns them with absolute paths of files.

    Raises `ValueError` for one that cannot be imported.
    """
    named = config.get("extensions", [])
    check_kind("extensions", named, EXTENSIONS)
    names = [str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in named]
    for name in names:
        if name not in _loaded:
            try:
                _import(name)
            except Exception as error:
                raise ValueError(f"extensions: {name} cannot be imported: {type(error).__name__}: {error}") from error
            _loaded.append(name)
    return names


def loaded_extensions() -> list[str]:
    """What `load_extensions` has imported in this process."""
    return list(_loaded)


def _import(name: str) -> None:
    if not name.endswith(".py"):
        import_module(name)
        return
    module_name = f"extension{len(_loaded)}_{Path(name).stem}"
    spec = spec_from_file_location(module_name, name)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[module_name] = module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
