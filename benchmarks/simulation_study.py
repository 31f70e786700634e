"""Do the intervals cover, and does the family test reject as often as it says? `python benchmarks/simulation_study.py`

Simulated tables at realistic designs with Gaussian scatter of log loss, analysed by the library's own `fit_sample`,
`uncertainty` and `likelihood_ratio`. Coverage of 95% intervals should be 95%, rejection at 5% should be 5%; with 1,000
replications both have a standard error of 0.7 points. Minutes on two cores; `--replications 100` for a quick look.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes, not two processes' worth of threads

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from slm.scaling.families import fit_joint, gather, likelihood_ratio
from slm.scaling.fitting import fit_sample
from slm.scaling.intervals import uncertainty
from slm.scaling.laws import LAWS
from slm.scaling.pairs import difference
from slm.scaling.sample import Sample

CALIBRATION = 199


@dataclass(frozen=True)
class Scenario:
    name: str
    law: str
    params: dict[str, float]
    sizes: tuple[tuple[float, ...], ...]  # one tuple of the law's variables a cell
    seeds: int
    sigma: float

    def sample(self, rng: np.random.Generator, **changed: float) -> Sample:
        log_x = np.repeat(np.log(np.array(self.sizes)), self.seeds, axis=0)
        law = LAWS[self.law]
        theta = law.coordinates(self.params | changed, np.zeros(log_x.shape[1]))
        log_y = law.log_value(theta[None], log_x)[0] + self.sigma * rng.standard_normal(len(log_x))
        return Sample(log_y, log_x, np.arange(len(log_x)), np.repeat(np.arange(len(self.sizes)), self.seeds))


def line(start: float, stop: float, count: int) -> tuple[tuple[float, ...], ...]:
    return tuple((float(n),) for n in np.geomspace(start, stop, count))


def grid(*axes: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, point)) for point in np.stack(np.meshgrid(*axes), -1).reshape(-1, len(axes)))


FLOOR = {"E": 1.8, "A": 90.0, "alpha": 0.3}
CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
SCENARIOS = (
    Scenario("4 sizes over 8x, 1 seed", "power", {"A": 20, "alpha": 0.11}, line(1.25e8, 1e9, 4), 1, 0.005),
    Scenario("6 sizes over 30x, 3 seeds", "power", {"A": 20, "alpha": 0.11}, line(2e6, 6e7, 6), 3, 0.01),
    Scenario("5 sizes over 8x, 1 seed", "power_floor", FLOOR, line(1.25e8, 1e9, 5), 1, 0.005),
    Scenario("6 sizes over 8x, 1 seed", "power_floor", FLOOR, line(1.25e8, 1e9, 6), 1, 0.005),
    Scenario("6 sizes over 30x, 3 seeds", "power_floor", FLOOR, line(2e6, 6e7, 6), 3, 0.005),
    Scenario("8 sizes over 1000x, 3 seeds", "power_floor", FLOOR, line(1e6, 1e9, 8), 3, 0.005),
    Scenario(
        "6 N x 4 D over 100x, 1 seed",
        "chinchilla",
        CHINCHILLA,
        grid(np.geomspace(2e7, 2e9, 6), np.geomspace(4e8, 4e10, 4)),
        1,
        0.005,
    ),
    Scenario(
        "8 N x 5 D over 300x, 2 seeds",
        "chinchilla",
        CHINCHILLA,
        grid(np.geomspace(2e7, 6e9, 8), np.geomspace(4e8, 1.2e11, 5)),
        2,
        0.01,
    ),
)


def cover(job: tuple[int, int]) -> dict[str, tuple[bool, bool]]:
    """For each parameter of one replication: whether its interval covers the truth, and whether it is identified."""
    place, seed = job
    scenario = SCENARIOS[place]
    rng = np.random.default_rng([place, seed])
    found = fit_sample(LAWS[scenario.law], scenario.sample(rng))
    of = uncertainty(found, replicates=0, rng=rng)
    result = {}
    for name, truth in scenario.params.items():
        low, high = of.ci[name]
        inside = (low is None or low <= truth) and (high is None or truth <= high)
        result[name] = (inside, name not in of.not_identified)
    return result


def reject(job: tuple[int, int]) -> tuple[float, float, float]:
    """p of one replication of three families that share exponents but neither A nor E.

    Of the likelihood ratio of all three, calibrated and by chi-squared, and of one pair's difference by its profile.
    """
    place, seed = job
    scenario = SCENARIOS[place]
    rng = np.random.default_rng([1000 + place, seed])
    law = LAWS[scenario.law]
    fits = {}
    for family, factor in (("a", 1.0), ("b", 1.15), ("c", 0.9)):
        changed = {"A": scenario.params["A"] * factor}
        if "E" in scenario.params:
            changed["E"] = scenario.params["E"] * (1 + 0.1 * (factor - 1))
        fits[family] = fit_sample(law, scenario.sample(rng, **changed))
    families = gather(fits)
    ratio = likelihood_ratio(
        families, fit_joint(families, "shared_exponents"), fit_joint(families, "separate"), CALIBRATION, rng
    )
    a, b = (("a", fits["a"]), ("b", fits["b"]))
    pair = difference(
        (*a, uncertainty(a[1], replicates=0, rng=rng)), (*b, uncertainty(b[1], replicates=0, rng=rng)), law.exponents[0]
    )
    return ratio.p, ratio.p_chi2, 1.0 if pair.p is None else pair.p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=1000)
    parser.add_argument("--law", choices=sorted({s.law for s in SCENARIOS}), help="only the scenarios of this law")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    R = asked.replications
    chosen = [(place, s) for place, s in enumerate(SCENARIOS) if asked.law in (None, s.law)]
    started = time.monotonic()
    with ProcessPoolExecutor(asked.processes) as pool:
        print("| law | design | sigma | parameter | covered | identified | covered where identified |")
        print("|---|---|---|---|---|---|---|")
        for place, scenario in chosen:
            results = list(pool.map(cover, [(place, seed) for seed in range(R)], chunksize=10))
            for name in scenario.params:
                inside, known = np.array([result[name] for result in results]).T
                among = f"{inside[known].mean():.1%}" if known.any() else "never identified"
                print(
                    f"| {scenario.law} | {scenario.name} | {scenario.sigma} | {name} | {inside.mean():.1%} "
                    f"| {known.mean():.1%} | {among} |",
                    flush=True,
                )
        print("\n| law | design | rejects equal exponents at 5% | by chi-squared | one pair, by profile |")
        print("|---|---|---|---|---|")
        for place, scenario in chosen:
            p = np.array(list(pool.map(reject, [(place, seed) for seed in range(R)], chunksize=5)))
            shares = " | ".join(f"{share:.1%}" for share in (p <= 0.05).mean(axis=0))
            print(f"| {scenario.law} | {scenario.name} | {shares} |", flush=True)
    print(f"\n{R} replications, {CALIBRATION} simulations a p-value, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
