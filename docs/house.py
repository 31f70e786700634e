"""Draw the rooms of slm and their imports into docs/architecture.md.

    python docs/house.py            # rewrites the picture
    python docs/house.py --check    # exit status 1 if the picture is not that of the code (tests/test_rooms.py)

An arrow means "imports". Left out are arrows to `runtime`, which every room but `model` may import, and arrows that a
longer path implies.
"""

import ast
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- drawn by docs/house.py -->\n", "<!-- end of the drawing -->"
GROUND = "runtime"


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports, each with the name taken from it (`slm.data.cache.open_corpus`)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms() -> dict[str, set[str]]:
    """Each folder of slm with the folders that it imports."""
    folders = sorted(path.name for path in (ROOT / "slm").iterdir() if (path / "__init__.py").exists())
    imports: dict[str, set[str]] = {}
    for room in folders:
        modules = [name for path in (ROOT / "slm" / room).rglob("*.py") for name in imported_modules(path)]
        imports[room] = {name.split(".")[1] for name in modules if name.startswith("slm.")} & {*folders} - {room}
    return imports


def arrows(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports between rooms without those that a longer path implies."""
    direct = {(a, b) for a, others in imports.items() for b in others if b != GROUND}
    reach = set(direct)
    for middle in imports:
        reach |= {(a, b) for a, b in permutations(imports, 2) if (a, middle) in reach and (middle, b) in reach}
    implied = {(a, b) for a, b in direct for middle in imports if (a, middle) in reach and (middle, b) in reach}
    return sorted(direct - implied)


def drawing() -> str:
    """The picture as a Mermaid diagram: scripts on top, each with the rooms that it calls."""
    lines = ["```mermaid", "flowchart TD"]
    imports = rooms()
    for script in ("train", "evaluate", "sweep"):
        modules = {name.split(".")[1] for name in imported_modules(ROOT / f"{script}.py") if name.startswith("slm.")}
        called = modules & {"training", "evaluation", "sweep", "analysis"}
        lines += [f"  {script}.py([{script}.py]) --> {room}" for room in sorted(called)]
    lines += [f"  {a} --> {b}" for a, b in arrows(imports)]
    lines += [f"  {GROUND}[{GROUND}: imported by all]", "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Rewrite or check the picture; returns the exit status."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    drawn = before + BEGIN + drawing() + END + after
    if "--check" in sys.argv[1:]:
        return int(drawn != page)
    PAGE.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
