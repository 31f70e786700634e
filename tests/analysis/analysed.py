"""Small analysis directories for the tests of figures and report, with names that are hard on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling.analysis import analyse
from slm.scaling.settings import Settings
from slm.scaling.tables import Table, table_from_frame
from tests.seeds import generator

AUDIT: dict[str, Any] = {
    "controlled": False,
    "violations": [{"what": "seeds", "families": {}, "sentence": "Families differ in seeds: a 1; b 2."}],
    "unknown": [{"what": "schedule", "sentence": "The table does not state the schedule of every run."}],
    "checked": [],
    "varies": [],
}


def two_families() -> Table:
    """Two families of seven sizes and two seeds with a floor; one has a name that is hard on Markdown and HTML."""
    rng = generator(3)
    rows = []
    for family, alpha in (("deep_thin", 0.34), ("<b>wide|$x$</b>", 0.30)):
        for N in np.geomspace(4e6, 4e8, 7):
            for seed in (1, 2):
                loss = (1.8 + 300 * N**-alpha) * np.exp(0.004 * rng.standard_normal())
                row = {"family": family, "params_total": N, "tokens": 1e9, "seed": seed, "loss": loss}
                rows.append(row | {"tokens_per_second": 1e12 / N})
    return table_from_frame(pd.DataFrame(rows), name="two")


def one_family() -> Table:
    """Five sizes without seeds: a floor cannot be told."""
    N = np.geomspace(1e8, 8e8, 5)
    noise = np.array([0.006, -0.003, -0.006, -0.001, 0.005])
    loss = 20 * N**-0.1 * np.exp(noise)
    return table_from_frame(pd.DataFrame({"family": "only", "params_total": N, "tokens": 1e10, "loss": loss}))


def isoflop_runs() -> Table:
    """One family at three budgets of six sizes, under a law in N and D."""
    rows = []
    rng = generator(5)
    for flops in (1e18, 1e19, 1e20):
        best = 0.1 * np.sqrt(flops)
        for N in np.geomspace(best / 4, best * 4, 6):
            D = flops / 6 / N
            loss = (1.8 + 480 / N**0.35 + 2000 / D**0.36) * np.exp(0.001 * rng.standard_normal())
            rows.append({"family": "iso", "params_total": N, "tokens": D, "loss": loss, "budget": flops})
    return table_from_frame(pd.DataFrame(rows), name="iso")


def analysed(folder: Path, table: Table, **settings: Any) -> Path:
    """An analysis directory as `sweep.py` writes it, without figures and report."""
    folder.mkdir(parents=True, exist_ok=True)
    found = analyse(table, Settings(bootstrap=50, calibration=50, **settings))
    write(folder, "fits", found.fits)
    write(folder, "comparison", found.comparison)
    write(folder, "audit", AUDIT)
    command = "python sweep.py runs=two.csv 'where=a < b'"
    write(folder, "settings", {"command": command, "name": table.name, "analysis": {"law": "auto"}})
    table.frame.to_csv(folder / "results.csv", index=False)
    return folder


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
