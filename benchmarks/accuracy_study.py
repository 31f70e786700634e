"""Coverage of the intervals of accuracies, by simulation: `python benchmarks/accuracy_study.py`

Tables are drawn from known laws of a task: its loss scatters between runs, and its accuracy is that of `items`
questions answered independently. Intervals of 95% should cover the truth, and the accuracy of a new run, in 95% of
tables. A direct law is fitted as the true one; the two-step law chooses the laws of both steps, as for a user. Results
are stored in `--keep`, from which the same command continues; `--replications 40` for a quick look.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the parallelism is in the processes

import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling import Settings, table_from_frame
from slm.scaling.bounded import Bounded
from slm.scaling.details import predictions_at
from slm.scaling.entries import Task, fit_family
from slm.scaling.laws import LAWS
from slm.scaling.solver import Loss
from slm.scaling.targets import with_target
from slm.scaling.two_step import two_step

BEYOND = (2.0, 10.0)  # multiples of the largest N at which a new run is predicted
ONE_BUDGET = (1e11,)


@dataclass(frozen=True)
class Design:
    """A task: its law, `direct` from N and D to accuracy or in two steps, and the runs of a table."""

    name: str
    sizes: np.ndarray
    chance: float
    law: str
    params: dict[str, float]
    """Those of the law M behind the link for a direct law; those of the task loss for the two-step law."""
    tokens: tuple[float, ...] = ONE_BUDGET
    sigmoid: tuple[float, float] | None = None
    """Slope k, and the task loss at which the accuracy is half way to one; None: the law is direct."""
    seeds: int = 1
    items: int = 2000
    scatter: float = 0.004
    """Scatter of the log task loss between runs."""
    shape_scatter: float = 0.0
    """Scatter of the log task loss between shapes, shared by all runs of a shape."""

    def mean(self, N: Any, D: Any) -> Any:
        """M of a direct law, or the task loss."""
        p = self.params
        return p.get("E", 0.0) + p["A"] * N ** -p["alpha"] + p.get("B", 0.0) * D ** -p.get("beta", 0.0)

    def runs(self, N: Any, D: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        """Task losses and measured accuracies of new runs."""
        T = self.mean(N, D)
        if self.sigmoid is None:
            z = 1 / (1 + T) if self.law.startswith("logistic") else np.exp(-T)
        else:
            k, middle = self.sigmoid
            shapes, shape = np.unique(N, return_inverse=True)
            shared = self.shape_scatter * rng.standard_normal(len(shapes))[shape.reshape(np.shape(T))]
            T = T * np.exp(shared + self.scatter * rng.standard_normal(np.shape(T)))
            z = 1 / (1 + np.exp(k * (T - middle)))
        return T, rng.binomial(self.items, self.chance + (1 - self.chance) * z) / self.items

    def frame(self, rng: np.random.Generator) -> pd.DataFrame:
        N, D, seed = (a.ravel() for a in np.meshgrid(self.sizes, self.tokens, range(self.seeds), indexing="ij"))
        T, accuracy = self.runs(N, D, rng)
        columns = {"params_total": N, "tokens": D, "seed": seed, "task": T, "acc": accuracy}
        return pd.DataFrame({"family": "a", **columns})


def sizes(low: float, high: float, count: int) -> np.ndarray:
    return np.round(np.geomspace(low, high, count))


LADDER = {"E": 0.586, "A": 131.7, "B": 39.7, "alpha": 0.353, "beta": 0.231}
"""HellaSwag's task loss in results/olmo_ladder."""
DESIGNS = (
    Design("logistic_power, 6 sizes over 30x", sizes(3e7, 9e8, 6), 0.25, "logistic_power", {"A": 4e4, "alpha": 0.55}),
    Design("the same, 500 items", sizes(3e7, 9e8, 6), 0.25, "logistic_power", {"A": 4e4, "alpha": 0.55}, items=500),
    Design("logistic_power, 8 sizes over 100x, 3 seeds, chance 0.5", sizes(1e7, 1e9, 8), 0.5, "logistic_power",
           {"A": 600.0, "alpha": 0.32}, seeds=3),
    Design("exponential_power, 6 sizes over 30x", sizes(3e7, 9e8, 6), 0.25, "exponential_power",
           {"A": 500.0, "alpha": 0.32}),
    Design("logistic_power_floor, 8 sizes over 100x, 3 seeds", sizes(1e7, 1e9, 8), 0.25, "logistic_power_floor",
           {"E": 0.4, "A": 5e5, "alpha": 0.7}, seeds=3),
    Design("logistic_chinchilla, 5 N x 5 D", sizes(1e8, 3e9, 5), 0.25, "logistic_chinchilla",
           {"E": 0.36, "A": 8e6, "B": 4e9, "alpha": 0.8, "beta": 0.9}, tuple(np.geomspace(3e9, 3e11, 5))),
    Design("two steps, 8 sizes over 100x", sizes(1e7, 1e9, 8), 0.25, "power_floor",
           {"E": 0.6, "A": 50.0, "alpha": 0.28}, sigmoid=(9.0, 0.85)),
    Design("two steps, 8 sizes over 100x, 3 seeds, chance 0.5", sizes(1e7, 1e9, 8), 0.5, "power_floor",
           {"E": 0.6, "A": 50.0, "alpha": 0.28}, sigmoid=(9.0, 0.85), seeds=3),
    Design("two steps, 5 N x 5 D", sizes(1.9e8, 3.2e9, 5), 0.25, "chinchilla", LADDER,
           tuple(np.geomspace(4e9, 4e11, 5)), (12.9, 0.765), items=10000),
    Design("the same, shapes deviate by 0.4%", sizes(1.9e8, 3.2e9, 5), 0.25, "chinchilla", LADDER,
           tuple(np.geomspace(4e9, 4e11, 5)), (12.9, 0.765), items=10000, shape_scatter=0.004),
)  # fmt: skip


def covers(low: Any, truth: float, high: Any) -> bool | None:
    """Whether an interval covers the truth; None if an end is open, since such an interval is not reported."""
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return None
    return bool(low <= truth <= high)


def try_one(job: tuple[int, int]) -> dict[str, Any]:
    place, seed = job
    design, rng = DESIGNS[place], np.random.default_rng([place, seed])
    task_loss = "task" if design.sigmoid else None
    settings = Settings(target="acc", target_kind="accuracy", chance=design.chance, task_loss=task_loss, predict=BEYOND)
    table = with_target(table_from_frame(design.frame(rng), target="acc"), settings)
    found = _two_steps if design.sigmoid else _direct
    return {"key": design.name, "seed": seed, "covers": found(design, table, settings, rng)}


def _new_runs(design: Design, D: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """A measured accuracy at each multiple of the largest N."""
    return [(factor, float(design.runs(factor * design.sizes.max(), D, rng)[1])) for factor in BEYOND]


def _direct(design: Design, table: Any, settings: Settings, rng: np.random.Generator) -> dict[str, bool | None]:
    link, _, inner = design.law.partition("_")
    law = Bounded(LAWS[inner], link, design.chance)
    task = Task(law, "error of acc", "params_total", Loss())
    result = fit_family(table, "a", task, settings, rng, thorough=False)
    entry = result.entry
    outcome: dict[str, bool | None] = {}
    for name in ("alpha", "beta", "E"):
        if name in design.params and name not in entry["not_identified"]:
            outcome[name] = covers(entry["ci95"][name][0], design.params[name], entry["ci95"][name][1])
    assert result.fit is not None
    D = float(np.median(design.tokens))
    new_runs = _new_runs(design, D, rng)
    points = [{"N": factor * design.sizes.max(), "D": D} for factor, _ in new_runs]
    log_x = np.log([[point[v] for v in law.variables] for point in points])
    for row, (factor, measured) in zip(
        predictions_at(result.fit, log_x, None, entry["run_sigma_log"], settings.level), new_runs, strict=True
    ):
        outcome[f"new run at {factor:g}x"] = covers(row["low"], 1 - measured, row["high"])
    return outcome


def _two_steps(design: Design, table: Any, settings: Settings, rng: np.random.Generator) -> dict[str, bool | None]:
    (family,) = (two_step(table, settings, "params_total", rng, curves=False) or {})["families"]
    first, second = family["steps"]
    truth = design.params | {"k": (design.sigmoid or (0.0, 0.0))[0]}
    outcome: dict[str, bool | None] = {}
    for name, entry in (("alpha", first), ("beta", first), ("E", first), ("k", second)):
        is_true_law = entry is second or first["law"] == design.law
        if name in truth and name in entry["params"] and is_true_law and name not in entry["not_identified"]:
            outcome[name] = covers(entry["ci95"][name][0], truth[name], entry["ci95"][name][1])
    D = float(np.median(design.tokens))
    for (factor, measured), row in zip(_new_runs(design, D, rng), family["predictions"], strict=True):
        outcome[f"new run at {factor:g}x"] = covers(row["accuracy"]["low"], measured, row["accuracy"]["high"])
    if family["held_out"]:
        row = family["held_out"]["rows"][0]
        outcome["largest held out"] = covers(row["accuracy"]["low"], row["measured"], row["accuracy"]["high"])
    return outcome


KINDS = ("alpha", "beta", "E", "k", "new run at 2x", "new run at 10x", "largest held out")


def summarise(results: list[dict[str, Any]]) -> None:
    """Print the share of intervals that cover; if fewer than 95% of tables have one, their share follows."""
    print("| design | tables | " + " | ".join(KINDS) + " |\n|" + "---|" * (len(KINDS) + 2))
    for design in DESIGNS:
        mine = [result["covers"] for result in results if result["key"] == design.name]
        cells = []
        for kind in KINDS:
            inside = [found[kind] for found in mine if found.get(kind) is not None]
            rare = f" of {len(inside) / len(mine):.0%}" if mine and len(inside) < 0.95 * len(mine) else ""
            cells.append(f"{np.mean(inside):.1%}{rare}" if inside else "")
        if mine:
            print(f"| {design.name} | {len(mine)} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=400, help="tables of a design")
    parser.add_argument("--only", default="", help="designs whose name contains this")
    parser.add_argument("--keep", type=Path, help="file of results, one a line")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    lines = asked.keep.read_text().splitlines() if asked.keep and asked.keep.exists() else []
    kept = [json.loads(line) for line in lines if line.endswith("}")]  # the last line may be incomplete
    done = {(result["key"], result["seed"]) for result in kept}
    chosen = [place for place, design in enumerate(DESIGNS) if asked.only in design.name]
    jobs = [(p, s) for s in range(asked.replications) for p in chosen if (DESIGNS[p].name, s) not in done]
    started = time.monotonic()
    with ProcessPoolExecutor(asked.processes) as pool:
        for result in pool.map(try_one, jobs, chunksize=4):
            kept.append(result)
            if asked.keep:
                with asked.keep.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    summarise(kept)
    print(f"\n{len(jobs)} tables in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
