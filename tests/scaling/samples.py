"""Samples and tables with known laws behind them, for tests of the scaling analysis."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slm.scaling import Table, get_law, table_from_frame
from slm.scaling.forms import Floats
from slm.scaling.sample import Sample
from tests.seeds import generator, seeded

SHARED = Path(__file__).parents[3] / "shared" / "data" / "scaling"

POWER, FLOOR, CHINCHILLA = (get_law(name) for name in ("power", "power_floor", "chinchilla"))
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
TRUE: dict[str, dict[str, float]] = {
    "power": {"A": 20.0, "alpha": 0.1},
    "power_floor": {"E": 1.7, "A": 400.0, "alpha": 0.33},
    "power_D": {"A": 25.0, "alpha": 0.095},
    "power_floor_D": {"E": 1.8, "A": 900.0, "alpha": 0.3},
    "power_C": {"A": 30.0, "alpha": 0.05},
    "power_floor_C": {"E": 1.5, "A": 300.0, "alpha": 0.12},
    "chinchilla": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.36},
    "kaplan_joint": {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
    "width_depth": {"E": 1.6, "A": 30.0, "B": 1.5, "C": 1500.0, "a": 0.6, "b": 0.8, "c": 0.35},
}
"""Parameters of a plausible instance of each law."""

RANGES = {"N": (1e7, 2e9), "D": (5e8, 2e11), "C": (1e17, 1e22), "w": (128, 2048), "d": (2, 48)}


def plain_law(name: str, p: Mapping[str, float], x: Mapping[str, Floats]) -> Floats:
    """Every law as its paper prints it, term by term."""
    match name:
        case "power" | "power_D" | "power_C":
            return np.asarray(p["A"] * x[(name + "_N").split("_")[1]] ** -p["alpha"])
        case "power_floor" | "power_floor_D" | "power_floor_C":
            return np.asarray(p["E"] + p["A"] * x[(name + "_N").split("_")[2]] ** -p["alpha"])
        case "chinchilla":
            return np.asarray(p["E"] + p["A"] / x["N"] ** p["alpha"] + p["B"] / x["D"] ** p["beta"])
        case "kaplan_joint":
            inner = (p["N_c"] / x["N"]) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / x["D"]
            return np.asarray(inner ** p["alpha_D"])
        case "width_depth":
            terms = p["A"] / x["w"] ** p["a"] + p["B"] / x["d"] ** p["b"] + p["C"] / x["D"] ** p["c"]
            return np.asarray(p["E"] + terms)
    raise KeyError(name)


def log_law(name: str, params: Mapping[str, float], log_x: Floats) -> Floats:
    """The log of `plain_law` at rows of log variables [rows, V]."""
    return np.log(plain_law(name, params, dict(zip(get_law(name).variables, np.exp(log_x.T), strict=True))))


def power_law(A: float, alpha: float, floor: float = 0.0) -> Callable[[Any], Any]:
    return lambda N: floor + A * N**-alpha


def slope_and_error(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Of a regression on x of each row of y, with n - 2 degrees of freedom."""
    z = x - x.mean()
    slope = y @ z / (z @ z)
    rest = y - y.mean(axis=1, keepdims=True) - slope[:, None] * z
    return slope, np.sqrt((rest**2).sum(axis=1) / (len(x) - 2) / (z @ z))


def design(variables: tuple[str, ...], rows: int, seed: int = 0) -> Floats:
    """Log variables [rows, V] spread over realistic ranges: a line for one variable, random beyond."""
    rng = generator(seed)
    columns = []
    for v, name in enumerate(variables):
        low, high = np.log(RANGES[name])
        columns.append(np.linspace(low, high, rows) if v == 0 else rng.uniform(low, high, rows))
    return np.stack(columns, axis=1)


def sample(log_y: Floats, log_x: Floats, clusters: Floats | None = None, cells: Floats | None = None) -> Sample:
    """Rows that are runs and cells of their own unless told otherwise."""
    rows = np.arange(len(log_y))
    log_x = log_x[:, None] if log_x.ndim == 1 else log_x
    return Sample(log_y, log_x, rows if clusters is None else clusters, rows if cells is None else cells)


def grouped(rng: np.random.Generator, groups: int, each: int, shared: float, own: float) -> tuple[Floats, ...]:
    """(log y, log x, group) of a line of slope -0.1: a group is at one size and has an error that its rows share."""
    group = np.repeat(np.arange(groups), each)
    x = np.linspace(15, 22, groups)[group]
    return 3 - 0.1 * x + shared * rng.normal(size=groups)[group] + own * rng.normal(size=len(x)), x, group


def noisy(name: str, rows: int, sigma: float, seed: int = 0) -> Sample:
    """Rows of the law `name` of `TRUE` with Gaussian log noise."""
    log_x = design(get_law(name).variables, rows, seed)
    noise = sigma * np.random.default_rng([seeded(seed), 1]).standard_normal(rows)
    return sample(log_law(name, TRUE[name], log_x) + noise, log_x)


def runs(
    laws: Mapping[str, Callable[[float], float]],
    sizes: Sequence[float] | Mapping[str, Sequence[float]],
    *,
    noise: float = 0.0,
    shared: float = 0.0,
    seeds: int = 1,
    seed: int = 0,
) -> Table:
    """Runs of families, each a function of N with Gaussian log noise, at `sizes`: the same for all, or each its own.

    `shared` moves a size of all families together.
    """
    rng = generator(seed)
    by_family = sizes if isinstance(sizes, Mapping) else dict.fromkeys(laws, sizes)
    common = shared * np.random.default_rng([seeded(seed), 1]).standard_normal(max(map(len, by_family.values())))
    rows: list[dict[str, Any]] = [
        {"family": name, "params_total": N, "tokens": 3e10, "seed": s}
        | {"loss": law(N) * np.exp(common[i] + noise * rng.standard_normal())}
        for name, law in laws.items()
        for i, N in enumerate(by_family[name])
        for s in range(seeds)
    ]
    return table_from_frame(pd.DataFrame(rows))
