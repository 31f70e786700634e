"""Choose among measured candidates (checkpoints, or shapes of a table) by use case, with the probability of each.

Notable: results and costs are drawn from their errors many times, and every draw chooses again. A choice's probability
is the share of draws that make it. Below `SURE`, the data cannot say which candidate it is.
- latency first: the fastest candidate that meets the limits, `max_loss` included;
- balanced: on the Pareto front of result and log latency, the candidate farthest below the line between its two ends.
  Up to it, a doubling of latency gains more than it does on average over the front; beyond it, less;
- quality first: the candidate with the lowest result among those that meet the limits.

Legend: R draws, K candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.scaling.allocation import pareto_front
from slm.scaling.forms import Floats
from slm.scaling.measures import MEASURES, SPEEDS

Entry = dict[str, Any]
SURE = 0.8  # least probability of a choice that is called one
JOINT = 0.95  # candidates are listed, the most probable first, until they have this probability together
DRAWS = 2000  # the standard error of a probability of 0.8 is then 0.009
USES = ("latency first", "balanced", "quality first")
MAX_LISTED = 6


@dataclass(frozen=True)
class Candidates:
    """K candidates. Arrays have the estimates in row 0 and R draws below: [1 + R, K]. A missing cost is NaN."""

    names: Sequence[str]
    losses: Floats
    costs: Mapping[str, Floats]  # key of `MEASURES` -> costs (`Measure.invert`)

    def entries(self, meets: Sequence[float], level: float) -> list[Entry]:
        """For each candidate `name`, `loss` with `low` and `high`, `meets`, and the estimates of its `measures`."""
        ends = np.quantile(self.losses[1:], [0.5 - level / 2, 0.5 + level / 2], axis=0)
        rows = zip(self.names, self.losses[0].tolist(), *ends.tolist(), meets, strict=True)
        entries = [dict(zip(("name", "loss", "low", "high", "meets"), row, strict=True)) for row in rows]
        for k, entry in enumerate(entries):
            costs = {key: float(drawn[0, k]) for key, drawn in self.costs.items()}
            entry["measures"] = {k: None if np.isnan(c) else MEASURES[k].invert(c) for k, c in costs.items()}
        return entries


def draws_of(estimates: Floats, errors: Floats, rng: np.random.Generator, *, df: float = np.inf) -> Floats:
    """Return the estimates and `DRAWS` draws around them [1 + R, K], by Student's t with `df` degrees of freedom."""
    variates = rng.standard_normal((DRAWS, len(estimates)))
    if np.isfinite(df):
        variates /= np.sqrt(rng.chisquare(df, (DRAWS, 1)) / df)  # candidates share the estimate of their scatter
    return np.concatenate([estimates[None], estimates + errors * variates])


def latency_of(costs: Mapping[str, Floats]) -> str | None:
    """The measure that is the latency: decoding, else prefill; None if no candidate has a speed."""
    return next((key for key in SPEEDS if key in costs and np.isfinite(costs[key][0]).any()), None)


def choose(candidates: Candidates, limits: Mapping[str, float | None]) -> Entry:
    """Return `latency` (its key), `meets` (of each candidate, the share of draws within the limits) and `choices`.

    Each choice has `use`, `best` (None if there is none), `probability`, `sure`, `among`: [name, probability] of
    the most probable candidates, and `none`, the probability of none. `why` says why there is none.
    """
    meets = np.ones(candidates.losses.shape, dtype=bool)
    unknown = np.full(candidates.losses.shape, np.nan)  # meets no limit
    for key, limit in limits.items():
        if limit is not None and key in MEASURES:
            meets &= candidates.costs.get(key, unknown) <= MEASURES[key].invert(limit) * (1 + 1e-12)
    latency = latency_of(candidates.costs)
    seconds = candidates.costs[latency] if latency else unknown
    is_good = candidates.losses <= (limits.get("max_loss") or np.inf)
    is_fast = meets & np.isfinite(seconds)
    chosen = {
        "latency first": _lowest(seconds, is_fast & is_good),
        "balanced": np.array([_knee(*row) for row in zip(np.log2(seconds), candidates.losses, is_fast, strict=True)]),
        "quality first": _lowest(candidates.losses, meets),
    }
    if len(candidates.names) < 2:  # nothing to choose from
        chosen = dict.fromkeys(USES, np.full(len(seconds), -1))
    choices = [_choice(use, chosen[use], candidates.names) for use in USES]
    for choice in choices:
        if choice["best"] is None:
            choice["why"] = _why_none(choice["use"], meets[0], is_good[0], latency)
    return {"latency": latency, "meets": meets[1:].mean(axis=0).tolist(), "choices": choices}


def _lowest(values: Floats, allowed: np.ndarray) -> np.ndarray:
    """The index of the lowest allowed value of each row, -1 without any."""
    masked = np.where(allowed & np.isfinite(values), values, np.inf)
    return np.where(np.isfinite(masked).any(axis=1), masked.argmin(axis=1), -1)


def _knee(log_seconds: Floats, losses: Floats, allowed: np.ndarray) -> int:
    """The index of the balanced candidate; -1 if none lies below the line between the ends of the front."""
    rows = np.flatnonzero(allowed)
    front = rows[pareto_front(np.stack([log_seconds[rows], losses[rows]], axis=1))] if len(rows) else rows
    front = front[np.argsort(log_seconds[front])]
    if len(front) < 3 or log_seconds[front[-1]] == log_seconds[front[0]]:
        return -1
    x, y = log_seconds[front], losses[front]
    below = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0]) - y
    return int(front[below.argmax()]) if below.max() > 1e-12 * abs(y[0]) else -1


def _choice(use: str, chosen: np.ndarray, names: Sequence[str]) -> Entry:
    """`chosen` [1 + R] has the index of the choice from the estimates, then from each draw; -1 for none."""
    shares = np.bincount(chosen[1:] + 1, minlength=len(names) + 1) / (len(chosen) - 1)
    best = int(chosen[0])
    order = [index for index in np.argsort(-shares[1:], kind="stable") if shares[index + 1] > 0]
    num_listed = int(np.searchsorted(np.cumsum(shares[1:][order]), JOINT * shares[1:].sum())) + 1
    among = [[names[index], float(shares[index + 1])] for index in order[: min(num_listed, MAX_LISTED)]]
    probability = float(shares[best + 1])
    name = names[best] if best >= 0 else None
    choice = {"use": use, "best": name, "probability": probability, "sure": probability >= SURE}
    return choice | {"among": among, "none": float(shares[0])}


def _why_none(use: str, meets: np.ndarray, is_good: np.ndarray, latency: str | None) -> str:
    if len(meets) < 2:
        return "only one candidate was measured"
    if not meets.any():
        return "no candidate meets the limits"
    if use != "quality first" and latency is None:
        return "no speed was measured"
    if use == "latency first":
        return "no candidate within the limits reaches max_loss" if not (meets & is_good).any() else "no speed is known"
    return "the front of result and latency has no candidate below the line between its ends"
