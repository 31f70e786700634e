"""Approach 2 of Hoffmann et al. 2022: power laws through the sizes with the lowest loss at each compute budget.

Notable:
- Budgets are values of a column of FLOPs, or groups of runs with clear gaps in FLOPs to all other runs.
- The parabola through a budget's losses is fitted only near the lowest loss. Over wide grids it is biased, since the
  true curve is not symmetric (Czech et al. 2026, arXiv:2603.22339).
- The interval of an exponent comes from the scatter of the lowest points about the power law, so it covers everything
  that moves a lowest point, not only the noise between runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from slm.scaling.forms import Floats

MAX_SPREAD = 1.25
"""Largest ratio of FLOPs in a budget. Published designs stay within 1.1, and their budgets differ by 1.5 or more."""
MIN_GAP = np.log(MAX_SPREAD) / 2  # in log FLOPs, between budgets; a gap must also be wider than the budget itself
BUDGET_COLUMNS = ("isoflop", "budget")  # columns that may declare the FLOPs of budgets, in order of preference
MAX_FLOPS_RATIO = 3.0
"""A column declares FLOPs if its values are within this factor of `flops`. Exact counts are up to twice 6 N D."""
MAX_DECLARED_SPREAD = 2.0
"""`MAX_SPREAD` for declared budgets. At equal exact FLOPs, 6 N D varies by a factor of 1.4 if the context is 16k."""
WINDOW = 5.0
"""The parabola is fitted to sizes within this factor of the lowest point. With 5, exponents agree to 0.002 with those
published by Beck et al. 2025 (arXiv:2510.02228); narrower windows scatter more, wider windows are more biased."""
MIN_SIZES = 5  # per budget
MIN_BUDGETS = 3  # per exponent


@dataclass(frozen=True)
class Exponent:
    """The exponent of C in a power law (a slope against log C), with its interval."""

    value: float
    low: float
    high: float
    se_scatter: float | None = None  # standard error from the scatter within budgets alone; None for `given_optima`


@dataclass(frozen=True)
class Budget:
    """Runs of one compute budget, the parabola through them, and its lowest point."""

    flops: float  # geometric mean over the runs
    runs: int  # number of runs
    params: float | None  # N at the lowest point; None if the parabola opens downwards
    tokens: float | None  # D at the lowest point
    low: float | None
    high: float | None
    """Interval of `params` by Fieller's theorem, from the scatter within all budgets. None means an open end."""
    reason: str | None  # why the budget is not used; None if it is used
    window: tuple[float, float]  # smallest and largest N of the sizes to which the parabola is fitted
    centre: float
    parabola: tuple[float, float, float]  # (c0, c1, c2): log target = c0 + c1 z + c2 z^2 with z = log N - `centre`
    points: Mapping[str, list[float]]  # keys `params` (N) and `value` (the target), with one item per run


@dataclass(frozen=True)
class IsoFlop:
    """The analysis of one family. `reason` says why there are no exponents (None if there are)."""

    grouped_by: str  # the column whose values define the budgets
    ignored: tuple[str, ...]  # columns of `BUDGET_COLUMNS` whose values do not define budgets
    budgets: tuple[Budget, ...]  # only budgets of at least `MIN_SIZES` sizes
    ungrouped: int  # number of rows that are not in `budgets`
    params: Exponent | None  # a in N* ~ C^a, where N* is the size of lowest loss at C FLOPs
    tokens: Exponent | None  # b in D* ~ C^b
    reason: str | None


def isoflop(frame: pd.DataFrame, size: str, target: str, *, level: float = 0.95) -> IsoFlop:
    """Apply approach 2 to the runs of one family, with parabolas of log target in log N.

    Budgets are the values of a column of `BUDGET_COLUMNS` if it holds FLOPs, else groups of nearly equal FLOPs. Runs of
    one size are averaged. Exponents need `MIN_BUDGETS` budgets of `MIN_SIZES` sizes with the lowest point inside.
    """
    column, groups = group_budgets(frame)
    groups = [rows for rows in groups if frame[size].iloc[rows].nunique() >= MIN_SIZES]
    frames = [frame.iloc[rows] for rows in groups]
    fits = [_fit_parabola(runs, size, target) for runs in frames]
    df = sum(len(fit.log_sizes) - 3 for fit in fits)  # a parabola has three coefficients
    variance = sum(fit.sse for fit in fits) / df if df else np.nan  # of the log target at one size
    quantile = float(stats.t.ppf(0.5 + level / 2, df)) if df else np.nan
    variance_t2 = variance * quantile**2  # for Fieller's intervals
    budgets = [_budget(fit, runs, size, target, variance_t2) for fit, runs in zip(fits, frames, strict=True)]
    used = [(fit, budget) for fit, budget in zip(fits, budgets, strict=True) if budget.reason is None]
    ignored = tuple(name for name in BUDGET_COLUMNS if name in frame) if column == "flops" else ()
    ungrouped = len(frame) - sum(len(rows) for rows in groups)
    reason = _why_no_exponents(column, len(budgets), len(used))
    params, tokens = None, None
    if reason is None:
        log_c = np.log([budget.flops for _, budget in used])
        log_n = np.log(np.array([budget.params for _, budget in used], float))
        log_d = np.log(np.array([budget.tokens for _, budget in used], float))
        variances = variance * np.array([fit.vertex_variance for fit, _ in used])
        params = exponent(log_c, log_n, level, variances)
        tokens = exponent(log_c, log_d, level, variances * np.square([fit.token_slope for fit, _ in used]))
    return IsoFlop(column, ignored, tuple(budgets), ungrouped, params, tokens, reason)


def isoflop_bias(frame: pd.DataFrame, size: str, target: str, law: Mapping[str, float]) -> float | None:
    """Return the bias of approach 2's exponent of N on noise-free losses of a `chinchilla` law (None: no exponent)."""
    N, D = frame[size].to_numpy(float), frame["tokens"].to_numpy(float)
    noise_free = law["E"] + law["A"] * N ** -law["alpha"] + law["B"] * D ** -law["beta"]
    estimate = isoflop(frame.assign(**{target: noise_free}), size, target).params
    return None if estimate is None else estimate.value - law["beta"] / (law["alpha"] + law["beta"])


def given_optima(frame: pd.DataFrame, size: str, *, level: float = 0.95) -> tuple[Exponent, Exponent] | str:
    """Return the exponents of N and D in a table of optima, one row per budget; or say why there are no exponents."""
    log_c, log_n, log_d = (np.log(frame[name].to_numpy(float)) for name in ("flops", size, "tokens"))
    if len(log_c) < MIN_BUDGETS:
        return f"there are {len(log_c)} budgets and {MIN_BUDGETS} are needed"
    if np.diff(np.sort(log_c)).min() < MIN_GAP:
        return "several rows have the same budget, but analysis.optima=true needs one row per budget"
    return exponent(log_c, log_n, level), exponent(log_c, log_d, level)


def exponent(log_c: Floats, log_y: Floats, level: float, variances: Floats | None = None) -> Exponent:
    """Fit the least-squares slope of log y against log C, with a t interval of (budgets - 2) degrees of freedom.

    `variances` [budgets] are those of log y that the scatter within budgets implies. The interval is at least a quarter
    as wide as they imply, because three budgets may lie on a line by chance (coverage in simulations: 94 to 97%).
    """
    z = log_c - log_c.mean()
    df = len(log_c) - 2
    slope = float(z @ log_y / (z @ z))
    residuals = log_y - log_y.mean() - slope * z
    t_half_width = float(stats.t.ppf(0.5 + level / 2, df) * np.sqrt(residuals @ residuals / df / (z @ z)))
    se_scatter = None if variances is None else float(np.sqrt(z**2 @ variances) / (z @ z))
    half_width = max(t_half_width, stats.norm.ppf(0.5 + level / 2) / 4 * (se_scatter or 0.0))
    return Exponent(slope, slope - half_width, slope + half_width, se_scatter)


def group_budgets(frame: pd.DataFrame) -> tuple[str, list[np.ndarray]]:
    """Return the column whose values define the budgets, and the row positions of each budget, in order of FLOPs."""
    flops = frame["flops"].to_numpy(float)
    for name in BUDGET_COLUMNS:
        if name in frame and (declared := _declared_flops(frame[name], flops)) is not None:
            return name, [np.flatnonzero(declared == value) for value in np.unique(declared)]
    order = np.argsort(flops, kind="stable")
    log_c = np.log(flops[order])
    return "flops", [order[start:end] for start, end in _clear_groups(log_c, 0, len(order))]


def _declared_flops(column: pd.Series, flops: Floats) -> Floats | None:
    """Return the numbers in the column if they are FLOPs that define budgets; None for other values, such as tokens."""
    text = column.astype(str).str.removeprefix("flops=")  # a sweep writes its budgets as `flops=1e18`
    declared = pd.to_numeric(text, errors="coerce").to_numpy(float)
    if not np.isfinite(declared).all() or (declared <= 0).any():
        return None
    if np.abs(np.log(flops / declared)).max() > np.log(MAX_FLOPS_RATIO):
        return None
    groups = [flops[declared == value] for value in np.unique(declared)]
    is_narrow = all(group.max() <= MAX_DECLARED_SPREAD * group.min() for group in groups)
    return declared if is_narrow else None


def _clear_groups(log_c: Floats, start: int, end: int) -> list[tuple[int, int]]:
    """Split sorted log FLOPs into ranges of indices no wider than `MAX_SPREAD`; keep ranges with wider gaps around."""
    width = log_c[end - 1] - log_c[start]
    if width <= np.log(MAX_SPREAD):
        gap_below = log_c[start] - log_c[start - 1] if start else np.inf
        gap_above = log_c[end] - log_c[end - 1] if end < len(log_c) else np.inf
        return [(start, end)] if min(gap_below, gap_above) > max(width, MIN_GAP) else []
    cut = start + 1 + int(np.argmax(np.diff(log_c[start:end])))  # at the widest gap
    return _clear_groups(log_c, start, cut) + _clear_groups(log_c, cut, end)


def _why_no_exponents(column: str, num_budgets: int, num_used: int) -> str | None:
    if num_used >= MIN_BUDGETS:
        return None
    if not num_budgets and column != "flops":
        return f"no value of the column {column} has {MIN_SIZES} sizes"
    if not num_budgets:
        return f"no {MIN_SIZES} sizes have FLOPs within a factor of {MAX_SPREAD} and a clear gap to all other runs"
    budgets = "1 budget has" if num_budgets == 1 else f"{num_budgets} budgets have"
    used = "1 of them has" if num_used == 1 else f"{num_used} of them have"
    inside = f", and {used} the lowest point inside" if num_used < num_budgets else ""
    return f"{budgets} {MIN_SIZES} sizes or more{inside}; {MIN_BUDGETS} are needed"


@dataclass(frozen=True)
class _Parabola:
    """A parabola fitted near the lowest log target of one budget. A point is the mean over the runs of one size."""

    log_sizes: Floats  # of the points to which the parabola is fitted, in ascending order
    ends: tuple[float, float]  # smallest and largest log size of all points
    centre: float
    c: Floats  # [3], the coefficients as in `Budget.parabola`
    covariance: Floats  # [3, 3], covariance of `c` divided by the variance of a point
    sse: float
    log_tokens: float  # log D at `centre`
    token_slope: float  # slope of log D against log N

    @property
    def vertex_variance(self) -> float:
        """Variance of log N at the lowest point, divided by the variance of a point, to first order."""
        gradient = np.array([0, -1 / (2 * self.c[2]), self.c[1] / (2 * self.c[2] ** 2)])
        return float(gradient @ self.covariance @ gradient)


def _fit_parabola(rows: pd.DataFrame, size: str, target: str) -> _Parabola:
    """Fit a parabola near the size of lowest loss, then fit again near the lowest point of that parabola."""
    logs = [np.log(rows[name].to_numpy(float)) for name in (size, target, "tokens")]
    # Rounding merges only sizes that differ by floating-point error.
    _, group, runs_per_size = np.unique(logs[0].round(9), return_inverse=True, return_counts=True)
    log_n, log_y, log_d = (np.bincount(group, column) / runs_per_size for column in logs)
    lowest_n = log_n[np.argmin(log_y)]
    for is_last in (False, True):
        distance = np.abs(log_n - lowest_n)
        max_distance = max(np.log(WINDOW), np.sort(distance)[MIN_SIZES - 1])  # at least MIN_SIZES sizes
        is_near = distance <= max_distance * (1 + 1e-9)
        centre = float(log_n[is_near].mean())
        z = log_n[is_near] - centre
        X = np.stack([np.ones_like(z), z, z**2], axis=1)
        c = np.linalg.lstsq(X, log_y[is_near], rcond=None)[0]
        if is_last or c[2] <= 0:
            break
        lowest_n = float(np.clip(centre - c[1] / (2 * c[2]), log_n[0], log_n[-1]))
    sse = float(((log_y[is_near] - X @ c) ** 2).sum())
    token_slope = float(z @ log_d[is_near] / (z @ z))  # z sums to zero
    log_tokens = float(log_d[is_near].mean())
    ends, covariance = (log_n[0], log_n[-1]), np.linalg.inv(X.T @ X)
    return _Parabola(log_n[is_near], ends, centre, c, covariance, sse, log_tokens, token_slope)


def _budget(fit: _Parabola, rows: pd.DataFrame, size: str, target: str, variance_t2: float) -> Budget:
    """Return the lowest point with Fieller's interval: every z at which a t test does not reject the slope 0.

    The slope is c1 + 2 c2 z. `variance_t2` is the variance of a point times the square of the quantile of t.
    """
    c0, c1, c2 = fit.c.tolist()
    V = fit.covariance * variance_t2
    z = -c1 / (2 * c2) if c2 > 0 else None
    is_inside = z is not None and fit.ends[0] < fit.centre + z < fit.ends[1]
    why_unused = "its curve has no lowest point" if z is None else "its lowest point lies outside its runs"
    low, high = None, None
    if c2**2 > V[2, 2]:  # otherwise the curvature is not significant, and the interval is open
        # At its ends, (c1 + 2 c2 z)^2 = V11 + 4 V12 z + 4 V22 z^2.
        roots = np.roots([4 * (c2**2 - V[2, 2]), 4 * (c1 * c2 - V[1, 2]), c1**2 - V[1, 1]])
        low, high = np.exp(fit.centre + np.sort(roots.real)).tolist()
    return Budget(
        flops=float(np.exp(np.log(rows["flops"].astype(float)).mean())),
        runs=len(rows),
        params=None if z is None else float(np.exp(fit.centre + z)),
        tokens=None if z is None else float(np.exp(fit.log_tokens + fit.token_slope * z)),
        low=low,
        high=high,
        reason=None if is_inside else why_unused,
        window=(float(np.exp(fit.log_sizes[0])), float(np.exp(fit.log_sizes[-1]))),
        centre=fit.centre,
        parabola=(c0, c1, c2),
        points={"params": rows[size].tolist(), "value": rows[target].tolist()},
    )
