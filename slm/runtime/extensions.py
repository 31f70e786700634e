"""Import the modules named in `extensions` before the config is checked: a user's mixers, laws and data sources.

Such a module calls `register_mixer`, `register_law` or `register_source`; docs/extending.md shows how.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from slm.runtime.settings import NAME, check_kind, list_of

EXTENSIONS = list_of(NAME, "modules and .py files, such as [my_mixer.py,my_package.laws]", min_length=0)
_loaded: list[str] = []


def load_extensions(config: Mapping[str, Any]) -> list[str]:
    """Import each module in `config["extensions"]` once per process; returns the names, with absolute file paths.

    Raises `ValueError` for a module that cannot be imported.
    """
    given = config.get("extensions", [])
    check_kind("extensions", given, EXTENSIONS)
    names = [str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in given]
    for name in names:
        if name not in _loaded:
            try:
                _import(name)
            except Exception as error:
                raise ValueError(f"extensions: {name} cannot be imported: {type(error).__name__}: {error}") from error
            _loaded.append(name)
    return names


def loaded_extensions() -> list[str]:
    """Return the names of the modules that `load_extensions` has imported in this process."""
    return list(_loaded)


def _import(name: str) -> None:
    if not name.endswith(".py"):
        import_module(name)
        return
    module_name = f"extension{len(_loaded)}_{Path(name).stem}"
    spec = spec_from_file_location(module_name, name)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[module_name] = module_from_spec(spec)  # dataclasses look up their module in sys.modules
    spec.loader.exec_module(module)
