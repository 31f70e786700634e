"""Imports only go down: which room of slm may import which is a contract (see docs/architecture.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "__init__.py": {"checkpoints", "evaluation"},  # `from slm import load, generate`
    "runtime": set(),
    "model": set(),
    "report": {"runtime"},
    "tracking": {"runtime"},
    "scaling": {"runtime"},
    "data": {"runtime"},
    "composition": {"model.config", "model.counts", "model.families", "model.quantised", "runtime"},
    "checkpoints": {"model", "data", "runtime"},
    "training": {"model", "data", "composition", "checkpoints", "tracking", "runtime"},
    "analysis": {"scaling", "report", "tracking", "runtime"},
    "evaluation": {*("model", "data", "checkpoints", "scaling", "report", "tracking", "runtime")},
    "sweep": {"analysis", "composition", "data", "scaling", "tracking", "model.config", "model.counts", "runtime"},
}
COMPOSITION = ("resolvers", "settings", "budget", "schedules", "keys")
SWEEP = ("run", "execute", "live")  # which import all others
TORCHLESS = [
    "slm.runtime.address",
    "slm.evaluation.config",
    "slm.training.setup",
    "slm.scaling.tables",
    *(f"slm.composition.{name}" for name in COMPOSITION),
    *(f"slm.sweep.{name}" for name in SWEEP),
]


def modules_imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "slm").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_lies_below_them(path: Path) -> None:
    room = path.relative_to(ROOT / "slm").parts[0]
    for module in modules_imported(path):
        parts = module.split(".")
        if parts[0] != "slm" or len(parts) == 1 or parts[1] == room:
            continue
        assert room in ALLOWED, f"{path} is in no room"
        assert parts[1] in ALLOWED[room] or ".".join(parts[1:3]) in ALLOWED[room], f"{path} imports {module}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "slm").rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    imports = {
        name: {one if one in paths else one.rpartition(".")[0] for one in modules_imported(path)} & {*paths} - {name}
        for name, path in paths.items()
    }
    while leaves := [name for name, others in imports.items() if not others & {*imports}]:
        for name in leaves:
            del imports[name]
    assert not imports, f"in or above a circle: {sorted(imports)}"


def test_the_picture_in_the_docs_is_that_of_the_code() -> None:
    drawn = subprocess.run([sys.executable, ROOT / "docs" / "house.py", "--check"])
    assert drawn.returncode == 0, "run: python docs/house.py"


def test_light_imports_import_no_torch() -> None:
    modules = ["slm", "slm.model.config", "slm.data", *TORCHLESS]
    code = f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
    code += "    assert 'torch' not in sys.modules, name"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
