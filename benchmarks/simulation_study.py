"""Coverage of the intervals, and error rate of the verdict, by simulation: `python benchmarks/simulation_study.py`

`analyse` runs on tables drawn from known laws, with the laws of `analysis=quick`; it chooses law, unit and method, as
for a user. Intervals of 95% should cover the truth in 95% of tables, and the verdict "the families differ" should be
given in at most 5% of tables with equal families. Results are stored in `--keep`, from which the same command
continues. An hour on two cores; `--replications 40` for a quick look.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the parallelism is in the processes

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling import Settings, analyse, table_from_frame

SETTINGS: dict[str, Any] = {
    "laws": ("power", "power_floor", "chinchilla"),
    "targets": ("loss",),
    "bootstrap": 0,
    "calibration": 0,
}
Law = Callable[[Any, Any], Any]
"""Loss as a function of N and D (numbers or arrays)."""


def power(A: float = 20.0, alpha: float = 0.11) -> Law:
    return lambda N, D: A * N**-alpha


def floored(A: float = 90.0, alpha: float = 0.3, E: float = 1.8) -> Law:
    return lambda N, D: E + A * N**-alpha


def chinchilla(
    A: float = 482.01, alpha: float = 0.3478, E: float = 1.8172, B: float = 2085.43, beta: float = 0.3658
) -> Law:
    return lambda N, D: E + A / N**alpha + B / D**beta


@dataclass(frozen=True)
class Family:
    """A family's true law and its sizes [n]; scatter is that of log loss."""

    name: str
    law: Law
    exponents: dict[str, float]
    sizes: np.ndarray
    noise: float
    """Scatter between seeds."""
    worth: float = 1.0
    """How many parameters of the first family one of its own is worth."""


@dataclass(frozen=True)
class Scenario:
    """A design. `law` is the name of the true law in the analysis; `equal` says whether the exponents are equal."""

    name: str
    law: str
    families: tuple[Family, ...]
    equal: bool = True
    seeds: int = 1
    tokens: tuple[float, ...] = (1e10,)
    misfit: float = 0.0
    """Scatter of a family's size about its law, the same for all seeds and tokens."""
    shared: float = 0.0
    """Scatter of a size about the law that all families share."""
    tails: str = "normal"
    rows: str = "runs"
    """runs, checkpoints (all tokens of a size are one run) or branches (of one trunk)."""
    share: float = 1.0
    """Share of the replications, lower for slow designs."""

    @property
    def key(self) -> str:
        """Key of the stored results: after changing a design, change its name or use a new file."""
        return f"{self.law}: {self.name}"

    def frame(self, rng: np.random.Generator) -> pd.DataFrame:
        common = self.shared * rng.standard_normal(max(len(f.sizes) for f in self.families))
        rows = []
        for f in self.families:
            own = self.misfit * rng.standard_normal(len(f.sizes)) + common[: len(f.sizes)]
            for i, N in enumerate(f.sizes):
                for D in self.tokens:
                    for seed in range(self.seeds):
                        row = {"family": f.name, "params_total": N, "tokens": D, "seed": seed}
                        row["loss"] = float(f.law(N, D)) * np.exp(own[i] + f.noise * self._draw(rng))
                        rows.append(row | self._marks(f, i, D, seed))
        if self.tails == "one outlier":
            rows[int(rng.integers(len(self.families[0].sizes) * len(self.tokens) * self.seeds))]["loss"] *= 1.04
        return pd.DataFrame(rows)

    def _draw(self, rng: np.random.Generator) -> float:
        return float(rng.standard_t(3) / np.sqrt(3) if self.tails == "t with 3 df" else rng.standard_normal())

    def _marks(self, f: Family, i: int, D: float, seed: int) -> dict[str, Any]:
        run = f"{f.name}-{i}-{seed}"
        if self.rows == "checkpoints":
            return {"run_id": run}
        return {"run_id": f"{run}-{D:.3g}", "trunk": run} if self.rows == "branches" else {}


def sizes(middle: float, span: float, count: int, shift: float = 1.0) -> np.ndarray:
    return np.round(middle * shift * np.geomspace(span**-0.5, span**0.5, count))


def three(law: Callable[..., Law], exponents: dict[str, float], at: np.ndarray, noise: float) -> tuple[Family, ...]:
    """Three families with equal exponents whose levels differ by a constant factor on N."""
    A = {"power": 20.0, "floored": 90.0, "chinchilla": 482.01}[law.__name__]
    return tuple(
        Family(name, law(A * factor), exponents, at, noise, factor ** (-1 / exponents["alpha"]))
        for name, factor in (("a", 1.0), ("b", 1.15), ("c", 0.9))
    )


ALPHA, FLOORED = {"alpha": 0.11}, {"E": 1.8, "alpha": 0.3}
BOTH = {"E": 1.8172, "alpha": 0.3478, "beta": 0.3658}
GRID = tuple(np.geomspace(4e8, 4e10, 4))


def scenarios() -> tuple[Scenario, ...]:
    six, small, wide = sizes(1.1e7, 30, 6), sizes(3.5e8, 8, 4), sizes(3e7, 1000, 8)
    eight = sizes(1.1e7, 30, 8)
    study, hundred = sizes(3.3e5, 45, 6), sizes(1.1e7, 100, 8)
    a, b, c = three(power, ALPHA, six, 0.01)
    noisy = (Family("a", a.law, ALPHA, eight[::2], 0.04), Family("b", b.law, ALPHA, eight, 0.01, b.worth))
    apart = tuple(
        Family(f.name, f.law, ALPHA, sizes(1.1e7, 30, count, shift), noise, f.worth)
        for f, shift, count, noise in ((a, 1.0, 5, 0.04), (b, 1.3, 8, 0.01), (c, 1.7, 8, 0.01))
    )
    shifted = three(floored, FLOORED, six, 0.003)
    grid: dict[str, Any] = {"tokens": GRID, "share": 0.25}
    ab = three(chinchilla, BOTH, sizes(2e8, 100, 6), 0.005)[:2]
    off = (ab[0], Family("b", ab[1].law, BOTH, sizes(2.6e8, 100, 6), 0.005, ab[1].worth))
    runs = three(chinchilla, BOTH, sizes(2e8, 100, 8), 0.001)[:2]
    return (
        Scenario("3 sizes over 8x", "power", three(power, ALPHA, sizes(3.5e8, 8, 3), 0.005)),
        Scenario("4 sizes over 8x", "power", three(power, ALPHA, small, 0.005)),
        Scenario("6 sizes over 30x, 3 seeds", "power", (a, b, c), seeds=3),
        Scenario("the same, sizes off the law by as much as seeds scatter", "power", (a, b, c), seeds=3, misfit=0.01),
        Scenario("the same, families off the law together", "power", (a, b, c), seeds=2, shared=0.02, misfit=0.003),
        Scenario("scatter differs by 4, half the sizes in common", "power", noisy),
        Scenario("scatter differs by 4, no size in common", "power", apart, share=0.5),
        Scenario("heavy tails", "power", (a, b, c), tails="t with 3 df"),
        Scenario("one outlier of 4%", "power", (a, b, c), tails="one outlier"),
        Scenario("5 sizes over 30x", "power_floor", three(floored, FLOORED, sizes(1.1e7, 30, 5), 0.003)),
        Scenario("6 sizes over 8x", "power_floor", three(floored, FLOORED, sizes(3.5e8, 8, 6), 0.005)),
        Scenario("6 sizes over 30x, 3 seeds", "power_floor", three(floored, FLOORED, six, 0.005), seeds=3),
        Scenario("8 sizes over 1000x, 3 seeds", "power_floor", three(floored, FLOORED, wide, 0.005), seeds=3,
                 share=0.5),
        Scenario("ranges shifted by 4, some sizes in common", "power_floor",
                 (shifted[0], Family("b", shifted[0].law, FLOORED, np.round(six * (six[1] / six[0]) ** 2), 0.003))),
        Scenario("ranges shifted by 5.5, no size in common", "power_floor",
                 (shifted[0], Family("b", shifted[0].law, FLOORED, np.round(six * 5.5), 0.003))),
        Scenario("6 N x 4 D", "chinchilla", ab, **grid),
        Scenario("6 N x 4 D, shapes off the law", "chinchilla", ab, misfit=0.005, **grid),
        Scenario("6 N x 4 D, shapes off the law, no size in common", "chinchilla", off, misfit=0.005, **grid),
        Scenario("trunks with 4 branches", "chinchilla", ab, misfit=0.005, rows="branches", **grid),
        Scenario("8 runs of 10 checkpoints", "chinchilla", runs, misfit=0.005, rows="checkpoints",
                 tokens=tuple(np.geomspace(4e8, 4e10, 10)), share=0.25),
        Scenario("exponents differ by 0.02, as first_study scatters", "power",
                 (Family("a", power(), ALPHA, study, 0.005),
                  Family("b", power(20 * 3.3e5**0.02, 0.13), {"alpha": 0.13}, study, 0.005)),
                 equal=False, seeds=2, shared=0.02, misfit=0.004),
        Scenario("exponents differ by 0.02, no size in common", "power",
                 (Family("a", power(), ALPHA, study, 0.005),
                  Family("b", power(20 * 3.3e5**0.02, 0.13), {"alpha": 0.13}, sizes(4.4e5, 45, 6), 0.005)),
                 equal=False, seeds=2, misfit=0.004),
        Scenario("exponents differ by 0.05, 8 sizes over 100x", "power_floor",
                 (Family("a", floored(), FLOORED, hundred, 0.002),
                  Family("b", floored(90 * 1.1e7**0.05, 0.35), {"E": 1.8, "alpha": 0.35}, hundred, 0.002)),
                 equal=False, seeds=2, shared=0.005),
    )  # fmt: skip


@dataclass
class Outcome:
    """The verdict on one table, and whether each interval covers the truth, by kind; an open end always covers."""

    said: bool | None = None
    wrong: bool = False
    """Whether the verdict names a difference with the wrong sign, or any difference between equal families."""
    p: float | None = None
    open_ends: int = 0
    covers: dict[str, list[bool]] = field(default_factory=dict)

    def note(self, kind: str, low: float | None, truth: float, high: float | None) -> None:
        self.open_ends += (low is None) + (high is None)
        inside = (low is None or low <= truth) and (high is None or truth <= high)
        self.covers.setdefault(kind, []).append(bool(inside))


def try_one(job: tuple[int, int]) -> dict[str, Any]:
    place, seed = job
    scenario = scenarios()[place]
    rng = np.random.default_rng([place, seed])
    table = table_from_frame(scenario.frame(rng))
    found = analyse(table, Settings(**SETTINGS), seed=seed, verdict_only=True)
    truth = {f.name: f for f in scenario.families}
    outcome = Outcome(found.comparison["verdict"]["distinguishable"])
    for entry in found.fits:
        if entry["law"] == scenario.law and entry["fitted"]:
            for name, value in truth[entry["family"]].exponents.items():
                if name not in entry["not_identified"]:
                    outcome.note(name, entry["ci95"][name][0], value, entry["ci95"][name][1])
    for pair in found.comparison["paired"]["pairs"]:
        _note_pair(outcome, pair, truth, scenario)
    law = found.comparison["laws"].get(scenario.law)
    for pair in law["pairs"] if law else []:
        if pair["identified"]:
            one, two = (truth[pair[k]].exponents[pair["exponent"]] for k in ("a", "b"))
            outcome.note(f"difference of {pair['exponent']}", pair["ci_low"], one - two, pair["ci_high"])
    for factor in (law or {}).get("efficiency", []):
        if factor["variable"] == "N" and scenario.equal:
            outcome.note("efficiency factor", factor["low"], truth[factor["family"]].worth, factor["high"])
    pairs = found.comparison["verdict"]["pairs"]
    outcome.p = min((pair["p_adjusted"] for pair in pairs), default=None)
    outcome.wrong = any(pair["differs"] and (scenario.equal or pair["delta"] > 0) for pair in pairs)
    return {"key": scenario.key, "seed": seed, **vars(outcome)}


def _note_pair(outcome: Outcome, pair: dict[str, Any], truth: dict[str, Family], scenario: Scenario) -> None:
    """Compare with the slope of the true log ratio over the matched points, and with the true worth of a in N of b."""
    one, two = truth[pair["a"]], truth[pair["b"]]
    N = np.array(pair["sizes"])
    D = np.array(scenario.tokens)
    ratio = [np.mean([np.log(one.law(n, d) / two.law(n, d)) for d in D]) for n in N]
    slope = -np.polyfit(np.log(N), ratio, 1)[0]
    outcome.note("paired difference", pair["ci_low"], slope, pair["ci_high"])
    if (above := pair["above_floor"]) is not None:
        exponents = one.exponents["alpha"] - two.exponents["alpha"]
        outcome.note("paired difference above a floor", above["ci_low"], exponents, above["ci_high"])
    if scenario.law == "power" and scenario.equal and pair["worth"]["factor"] is not None:
        outcome.note("worth, paired", pair["worth"]["low"], one.worth / two.worth, pair["worth"]["high"])


INTERVALS = {
    "alpha": "alpha",
    "beta": "beta",
    "floor": "E",
    "difference, same sizes": "paired difference",
    "the same above a floor": "paired difference above a floor",
    "difference by the law": "difference of alpha",
    "worth": "worth, paired",
    "factor by the law": "efficiency factor",
}
"""Heading of the table -> kind of interval."""


def summarise(results: Sequence[dict[str, Any]]) -> None:
    """Print a table: verdicts of each design, and the share of intervals that cover the truth.

    If fewer than half of the possible intervals are reported, the share reported follows.
    """
    heads = ["law", "design", "tables", "differ", "depends", "cannot say", "wrong", *INTERVALS]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for scenario in scenarios():
        mine = [r for r in results if r["key"] == scenario.key]
        if not mine:
            continue
        none = np.mean([r["said"] is None and r["p"] is None for r in mine])
        depends = np.mean([r["said"] is None and r["p"] is not None for r in mine])
        said, wrong = (np.mean([bool(r[key]) for r in mine]) for key in ("said", "wrong"))
        cells = [scenario.law, scenario.name, str(len(mine)), *(f"{one:.0%}" for one in (said, depends, none, wrong))]
        families = len(scenario.families)
        possible = {"difference": families * (families - 1) // 2, "worth": families * (families - 1) // 2}
        possible |= {"the same": possible["difference"], "factor": families - 1}
        for head, kind in INTERVALS.items():
            inside = [one for r in mine for one in r["covers"].get(kind, [])]
            most = next((n for name, n in possible.items() if head.startswith(name)), families) * len(mine)
            rare = f" of {len(inside) / most:.0%}" if len(inside) < most / 2 else ""
            cells.append(f"{np.mean(inside):.1%}{rare}" if inside else "")
        print("| " + " | ".join(cells) + " |")


def _kept(path: Path) -> list[dict[str, Any]]:
    """Results of an earlier run, without its last line if that is incomplete."""
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=120, help="tables of a design; slow designs get fewer")
    parser.add_argument("--only", help="designs whose law and name contain this")
    parser.add_argument(
        "--keep", type=Path, help="file of results, one a line; those that are in it are not made again"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    kept = _kept(asked.keep) if asked.keep and asked.keep.exists() else []
    done = {(r["key"], r["seed"]) for r in kept}
    chosen = [(place, s) for place, s in enumerate(scenarios()) if not asked.only or asked.only in f"{s.law} {s.name}"]
    jobs = [
        (place, seed)
        for seed in range(asked.replications)
        for place, s in chosen
        if seed < max(1, round(asked.replications * s.share)) and (s.key, seed) not in done
    ]
    started = time.monotonic()
    with ProcessPoolExecutor(asked.processes) as pool:
        for count, result in enumerate(pool.map(try_one, jobs, chunksize=1), start=1):
            kept.append(result)
            if asked.keep:
                with asked.keep.open("a") as file:
                    file.write(json.dumps(result) + "\n")
            if count % 200 == 0:
                left = (time.monotonic() - started) / count * (len(jobs) - count)
                print(f"{count} of {len(jobs)} tables, {left / 60:.0f} min left", flush=True)
    wanted = {s.key for _, s in chosen}
    summarise([r for r in kept if r["key"] in wanted])
    print(f"\n{len(jobs)} tables in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
