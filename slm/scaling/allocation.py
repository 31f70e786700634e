"""How to spend compute: compute-optimal N and D, also with serving, compute to reach a loss, cost, Pareto fronts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from slm.scaling.forms import Floats
from slm.scaling.laws import Law


@dataclass(frozen=True)
class Allocation:
    """The best N (`params`) and D (`tokens`) for a budget."""

    flops: float
    params: float
    tokens: float
    loss: float


def compute_optimal(law: Mapping[str, float], flops: float, *, unit: float = 6.0) -> Allocation:
    """Minimise L = E + A/N^alpha + B/D^beta with N D = C/`unit` fixed (Hoffmann et al. 2022, equation 4).

    N* = G (C/unit)^(beta/(alpha+beta)) and D* = (C/unit)^(alpha/(alpha+beta)) / G, where
    G = (alpha A / (beta B))^(1/(alpha+beta)). `unit` is C / (N D): 6 by Kaplan's rule, but a table may count otherwise.
    """
    E, A, B, alpha, beta = (law[name] for name in ("E", "A", "B", "alpha", "beta"))
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    N = G * (flops / unit) ** (beta / (alpha + beta))
    D = flops / unit / N
    return Allocation(flops, N, D, E + A * N**-alpha + B * D**-beta)


def numeric_optimum(law: Law, params: Mapping[str, float], flops: float, *, unit: float = 6.0) -> Allocation | None:
    """Minimise any law in N and D with N D = C/`unit` fixed; None if the loss is lowest at an end, N = 1 or D = 1."""
    log_nd = np.log(flops / unit)
    theta = law.coordinates(params, np.zeros(2))[None]

    def log_loss(log_n: Floats) -> Floats:
        columns = {"N": log_n, "D": log_nd - log_n}
        return law.log_value(theta, np.stack([columns[name] for name in law.variables], axis=1))[0]

    grid = np.linspace(0, log_nd, 1001)
    best = int(np.argmin(log_loss(grid)))
    if best in (0, len(grid) - 1):
        return None
    bounds = grid[best - 1], grid[best + 1]
    lowest = optimize.minimize_scalar(lambda x: log_loss(np.array([x]))[0], bounds=bounds, options={"xatol": 1e-10})
    N, D, loss = np.exp([lowest.x, log_nd - lowest.x, lowest.fun]).tolist()
    return Allocation(flops, N, D, loss)


def flops_to_reach(law: str, params: Mapping[str, float], loss: float, *, unit: float = 6.0) -> float | None:
    """Return the fewest FLOPs at which `chinchilla` (optimally allocated), `power_C` or `power_floor_C` reaches `loss`.

    Returns None if `loss` is not above the floor. `unit` is as in `compute_optimal`. At the optimum both terms of
    `chinchilla` are proportional to C^-(alpha beta/(alpha+beta)), so one evaluation gives their constant factor.
    """
    above_floor = loss - params.get("E", 0.0)
    if above_floor <= 0:
        return None
    if law != "chinchilla":
        return float((params["A"] / above_floor) ** (1 / params["alpha"]))
    above_floor_at_1e20 = compute_optimal(params, 1e20, unit=unit).loss - params["E"]
    return float(1e20 * (above_floor_at_1e20 / above_floor) ** (1 / params["alpha"] + 1 / params["beta"]))


def lifetime_optimum(
    law: Mapping[str, float], loss: float, served_tokens: float, *, unit: float = 6.0
) -> Allocation | None:
    """Minimise the FLOPs of training and serving, unit N D + unit/3 N `served_tokens`, subject to L(N, D) = `loss`.

    Sardana et al. 2023 (arXiv:2401.00448), equation 2, where `unit` is 6: a forward pass is a third of a training step.
    `flops` of the result has both. Returns None if `loss` is not above the floor. With A/N^alpha = q (L - E), both N
    and D follow from q, and the derivative by q is zero where D (alpha q / (beta (1 - q)) - 1) = `served_tokens` / 3.
    The left side rises with q, so there is one such q.
    """
    E, A, B, alpha, beta = (law[name] for name in ("E", "A", "B", "alpha", "beta"))
    if loss <= E:
        return None

    def log_tokens(logit: float) -> float:
        return float((np.log(B / (loss - E)) + np.logaddexp(0, logit)) / beta)  # -log(1 - q) = log(1 + e^logit)

    def excess(above: float) -> float:  # `above`: the logit of q minus its value without serving, log(beta / alpha)
        return log_tokens(start + above) + np.log(np.expm1(above)) - np.log(served_tokens / 3)

    start, above = float(np.log(beta / alpha)), 0.0
    if served_tokens > 0:
        end = 1.0
        while excess(end) < 0:
            end *= 2
        above = optimize.brentq(lambda log_above: excess(np.exp(log_above)), -100, np.log(end), xtol=1e-12)
        above = float(np.exp(above))
    N = float(np.exp((np.log(A / (loss - E)) + np.logaddexp(0, -start - above)) / alpha))
    D = float(np.exp(log_tokens(start + above)))
    return Allocation(unit * N * D + unit / 3 * N * served_tokens, N, D, loss)


def cost(flops: float, flops_per_second: float | None, price_per_hour: float | None) -> dict[str, float | None]:
    """Return `device_hours` at an achieved speed (peak x MFU), and their `price`; empty if the speed is unknown."""
    if flops_per_second is None:
        return {}
    hours = flops / flops_per_second / 3600
    return {"device_hours": hours, "price": None if price_per_hour is None else hours * price_per_hour}


def pareto_front(smaller_is_better: Floats) -> np.ndarray:
    """Return boolean [rows]: whether no other row dominates a row of `smaller_is_better` [rows, criteria]."""
    row, other = smaller_is_better[None], smaller_is_better[:, None]
    dominates = (other <= row).all(axis=2) & (other < row).any(axis=2)  # [other, row]
    return np.asarray(~dominates.any(axis=0))
