"""Small analysis directories for the tests of figures and report, with names that are hard on them."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slm.analysis.report import page
from slm.analysis.report.directory import Directory
from slm.analysis.report.interactive import interactive_figures
from slm.report.style import draw
from slm.scaling import Settings, Table, analyse, table_from_frame
from tests.scaling.samples import power_law, runs
from tests.seeds import generator

WILD = "<b>wide|$x$</b>"
VIOLATION = {"what": "seeds", "families": {}, "sentence": "Families differ in seeds: a 1; b 2."}
UNKNOWN = {"what": "schedule", "sentence": "The table does not state the schedule of every run."}
AUDIT = {"controlled": False, "violations": [VIOLATION], "unknown": [UNKNOWN], "checked": [], "varies": []}


def two_families() -> Table:
    """Two families of seven sizes and two seeds with a floor; one has a name that is hard on Markdown and HTML."""
    laws = {"deep_thin": power_law(300, 0.34, floor=1.8), WILD: power_law(300, 0.30, floor=1.8)}
    frame = runs(laws, np.geomspace(4e6, 4e8, 7), noise=0.004, seeds=2, seed=3).frame
    frame = frame[["family", "params_total", "tokens", "seed", "loss"]]
    return table_from_frame(frame.assign(tokens_per_second=1e12 / frame["params_total"]), name="two")


def one_family() -> Table:
    """Five sizes without seeds: a floor cannot be told."""
    N = np.geomspace(1e8, 8e8, 5)
    noise = np.array([0.006, -0.003, -0.006, -0.001, 0.005])
    loss = 20 * N**-0.1 * np.exp(noise)
    return table_from_frame(pd.DataFrame({"family": "only", "params_total": N, "tokens": 1e10, "loss": loss}))


def isoflop_runs() -> Table:
    """One family at three budgets of six sizes, under a law in N and D."""
    C = np.repeat([1e18, 1e19, 1e20], 6)
    N = 0.1 * np.sqrt(C) * np.tile(np.geomspace(1 / 4, 4, 6), 3)
    loss = (1.8 + 480 / N**0.35 + 2000 / (C / 6 / N) ** 0.36) * np.exp(0.001 * generator(5).standard_normal(18))
    columns = {"family": "iso", "params_total": N, "tokens": C / 6 / N, "loss": loss, "budget": C}
    return table_from_frame(pd.DataFrame(columns), name="iso")


def analysed(folder: Path, table: Table, **settings: Any) -> Path:
    """An analysis directory as `sweep.py` writes it, without figures and report."""
    folder.mkdir(parents=True, exist_ok=True)
    found = analyse(table, Settings(**{"bootstrap": 50, "calibration": 50} | settings))
    write(folder, "fits", found.fits)
    write(folder, "comparison", found.comparison)
    write(folder, "audit", AUDIT)
    command = "python sweep.py runs=two.csv 'where=a < b'"
    write(folder, "settings", {"command": command, "name": table.name, "analysis": {"law": "auto"}})
    table.frame.to_csv(folder / "results.csv", index=False)
    return folder


def draw_figures(folder: Path) -> list[Path]:
    """Draw every figure that has data in an analysis directory; returns the files written."""
    analysis = Directory.read(folder)
    return draw(folder, {name: partial(make, analysis) for name, make in page.FIGURES.items()})


def write_report(folder: Path) -> None:
    """Write the report of an analysis directory with the figures that are there."""
    analysis = Directory.read(folder)
    page.write_report(analysis, interactive_figures(analysis))


def reported(folder: Path) -> Path:
    draw_figures(folder)
    write_report(folder)
    return folder


def changed(folder: Path, copy: Path, **contents: Any) -> Path:
    """A copy of an analysis directory with other contents of some of its files, and the report of those."""
    shutil.copytree(folder, copy)
    for name, content in contents.items():
        write(copy, name, content)
    write_report(copy)
    return copy


def write(folder: Path, name: str, content: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def without_numbers(value: Any) -> Any:
    """The same content, as if nothing could have been computed."""
    if isinstance(value, dict):
        return {key: without_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_numbers(one) for one in value]
    return None if isinstance(value, float) else value
