"""IsoFLOP profiles (approach 2 of Hoffmann et al. 2022): their part of the section on compute, and their figure."""

from __future__ import annotations

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import folded_if_long, table, table_by_column
from slm.report.style import INK, Axes, Figure, log_axis, panels, short_name
from slm.runtime.words import NO_VALUE, count, format_number, is_number, join_names, with_interval
from slm.scaling.describe import Entry, family_name

PROFILES = (
    "**IsoFLOP profiles** (approach 2): a parabola about the lowest loss of each budget, and a power law through the "
    "lowest points. The interval is from how far the budgets lie from the power law (t, budgets less 2 degrees of "
    "freedom), so with three budgets it is wide; the standard error by scatter is what noise of runs alone would give. "
    "A parabola is symmetric and the true curve is not; the bias is that of approach 2 run on the fitted `chinchilla` "
    "law at these very sizes, and the interval does not contain it."
)
GIVEN = (
    "**Given optima**: each row is taken as the optimum of its budget (`analysis.optima=true`), and power laws go "
    "through N and D as they are. Errors within a row are unknown, so the interval is from how far the rows lie from "
    "the line."
)
CAPTION = (
    "Runs by budget, the parabolas over the sizes that they were fitted to, and lowest points (stars; crosses where a "
    "budget was dropped)."
)


def isoflop_blocks(analysis: Directory) -> list[str]:
    """Exponents of the best N and D in compute, and the best N of each budget."""
    rows = analysis.comparison["isoflop"]
    exponents = [row for row in rows if is_number(row["exponent"])]
    are_given = any(row["given_optima"] for row in rows)
    ignored = list(dict.fromkeys(name for row in rows for name in row["ignored"]))
    columns = {
        "family": family_name,
        "budgets": lambda row: f"{sum(b['reason'] is None for b in row['budgets'])} of {len(row['budgets'])}",
        "a in N ~ C^a": lambda row: with_interval(row["exponent"], [row["low"], row["high"]], 3),
        "b in D ~ C^b": lambda row: with_interval(row["tokens_exponent"], [row["tokens_low"], row["tokens_high"]], 3),
        "error by scatter": lambda row: format_number(row["se_scatter"], 2),
        "bias": lambda row: format_number(row["bias"], 2),
        "a by `chinchilla`": lambda row: format_number(row["parametric"], 3),
    }
    blocks = [GIVEN if are_given else PROFILES, table_by_column(exponents, columns)] if exponents else []
    blocks += [
        _without_exponent([row for row in rows if row["reason"]], are_given),
        f"The values of the column {join_names(ignored)} are not FLOPs, so they make no budgets." if ignored else "",
    ]
    if are_given:
        return [*blocks, analysis.figure("isoflop", "The given optima and the power laws through them.")]
    budgets = [_budget_row(row, budget) for row in rows for budget in row["budgets"]]
    if budgets:
        header = ("family", "C (FLOPs)", "best N by approach 2", "best D", "best N by `chinchilla`", "ratio", "remarks")
        heading = "Best N of each budget, by approach 2 and by `chinchilla`"
        blocks += [
            _disagreement(rows),
            folded_if_long(heading, table(header, budgets), len(budgets)),
            analysis.figure("isoflop", CAPTION),
        ]
    return blocks


def _without_exponent(rows: list[Entry], are_given: bool) -> str:
    """One sentence for each reason why families have no exponent."""
    families: dict[str, list[str]] = {}
    for row in rows:
        families.setdefault(row["reason"], []).append(family_name(row))
    what = "exponents through the given optima" if are_given else "isoFLOP exponents (approach 2)"
    return "\n\n".join(f"No {what} for {join_names(names)}: {reason}." for reason, names in families.items())


def _budget_row(row: Entry, budget: Entry) -> list[str]:
    head = [family_name(row), format_number(budget["flops"], 3)]
    parametric = count(budget.get("parametric_params"))
    if budget["reason"] is not None:
        return [*head, NO_VALUE, NO_VALUE, parametric, NO_VALUE, f"dropped: {budget['reason']}"]
    ends = [count(end) if is_number(end) else "open" for end in (budget["low"], budget["high"])]
    best = f"{count(budget['params'])} [{', '.join(ends)}]"
    return [*head, best, count(budget["tokens"]), parametric, format_number(budget.get("ratio"), 3), ""]


def _disagreement(rows: list[Entry]) -> str:
    """Where the optimum of the parametric law lies outside the interval of the lowest point."""
    budgets = [(family_name(row), b) for row in rows for b in row["budgets"] if b["reason"] is None]
    budgets = [(f, b) for f, b in budgets if all(is_number(b.get(k)) for k in ("parametric_params", "low", "high"))]
    outside = [family for family, b in budgets if not b["low"] <= b["parametric_params"] <= b["high"]]
    if not outside:
        return ""
    return (
        f"**Approach 2 and the `chinchilla` fit disagree** at {len(outside)} of {len(budgets)} budgets: the law's "
        f"best N lies outside the interval of the lowest point ({join_names(list(dict.fromkeys(outside)))}). Either "
        "may be wrong: the parabola is biased, and the law may not hold."
    )


def isoflop_figure(analysis: Directory) -> Figure | None:
    """Runs of each compute budget with the parabola and its lowest point, as comparison.json groups and fits them."""
    rows = [row for row in analysis.comparison["isoflop"] if is_number(row["exponent"])]
    if not rows:
        return None
    exponents = [with_interval(row["exponent"], [row["low"], row["high"]], 3) for row in rows]
    named = "; ".join(f"{short_name(row['family'])} {a}" for row, a in zip(rows, exponents, strict=True))
    are_given = rows[0]["given_optima"]
    title = f"{'Given optima' if are_given else 'IsoFLOP profiles'}: best N grows as C^a, a = {named}"
    figure, axes = panels(len(rows), title, columns=2, width=4.7, height=3.2)
    for axis, row in zip(axes, rows, strict=True):
        (_optima if are_given else _profiles)(axis, analysis, row)
    return figure


def _profiles(axis: Axes, analysis: Directory, row: Entry) -> None:
    budgets, colour = row["budgets"], analysis.colour(row["family"])
    for budget, shade in zip(budgets, np.linspace(0.45, 1.0, len(budgets)), strict=True):
        points = budget["points"]
        axis.plot(points["params"], points["value"], ls="", marker="o", ms=3.2, color=colour, alpha=shade, mew=0)
        smallest, largest = budget["window"]
        sizes = np.geomspace(smallest, largest, 80)
        curve = _parabola(budget, sizes)
        axis.plot(sizes, curve, color=colour, lw=1, alpha=shade)
        if budget["reason"] is None:
            lowest = _parabola(budget, np.array([budget["params"]]))
            axis.plot(budget["params"], lowest, marker="*", ms=10, color=colour, mec=INK, mew=0.7)
        else:
            axis.plot(sizes[curve.argmin()], curve.min(), marker="x", ms=6, color=INK, mew=1.2)
        axis.annotate(f"{format_number(budget['flops'], 2)} FLOPs", (sizes[-1], curve[-1]), (-2, 6),
                      textcoords="offset points", ha="right", fontsize=7.5, color=INK)  # fmt: skip
    x, y = (np.concatenate([budget["points"][name] for budget in budgets]) for name in ("params", "value"))
    log_axis(axis.xaxis, x.min() / 1.1, x.max() * 1.15)
    log_axis(axis.yaxis, y.min() / 1.02, y.max() * 1.02)
    axis.set_xlabel(analysis.axis_name("N"))
    axis.set_ylabel(analysis.target_label)
    bias = f"; bias of approach 2 here {row['bias']:+.3f}" if is_number(row["bias"]) else "; its bias is unknown"
    axis.set_title(f"{short_name(row['family'])}: a = {format_number(row['exponent'], 3)}{bias}", fontsize=8.5)


def _parabola(budget: Entry, params: np.ndarray) -> np.ndarray:
    """The target on the budget's parabola, which is one in log target and log N."""
    value, slope, curvature = budget["parabola"]
    z = np.log(params) - budget["centre"]
    return np.exp(np.asarray(value + slope * z + curvature * z**2))


def _optima(axis: Axes, analysis: Directory, row: Entry) -> None:
    """N and D of each row against its FLOPs."""
    flops, params, tokens = (np.array([b[name] for b in row["budgets"]]) for name in ("flops", "params", "tokens"))
    log_c = np.log(flops) - np.log(flops).mean()
    for name, values, slope, mark in (("N", params, row["exponent"], "o"), ("D", tokens, row["tokens_exponent"], "s")):
        axis.plot(flops, values, ls="", marker=mark, ms=4, color=analysis.colour(row["family"]),
                  label=f"{name} ~ C^{format_number(slope, 3)}")  # fmt: skip
        axis.plot(flops, np.exp(np.log(values).mean() + slope * log_c), color=INK, lw=1)
    both = np.concatenate([params, tokens])
    log_axis(axis.xaxis, flops.min() / 1.3, flops.max() * 1.3, counts=False)
    log_axis(axis.yaxis, both.min() / 1.3, both.max() * 1.3)
    axis.set_xlabel("C (training FLOPs)")
    axis.set_ylabel("optimal parameters and tokens")
    axis.legend(fontsize=8)
    axis.set_title(short_name(row["family"]), fontsize=8.5)
