"""IsoFLOP profiles (approach 2 of Hoffmann et al. 2022): a part of the section on compute, and a figure."""

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import folded_if_long, table, table_by_column
from slm.report.style import INK, Axes, Figure, log_axis, panels, short_name
from slm.runtime.words import NO_VALUE, count, format_number, is_number, join_names, with_interval
from slm.scaling.describe import Entry, family_name

PROFILES = (
    "**IsoFLOP profiles** (approach 2): a parabola is fitted around the lowest loss of each budget, and a power law to "
    "the minima. The t interval is computed from the deviations of the minima from the power law. With n budgets it "
    "has n - 2 degrees of freedom, so it is wide if n = 3. `error by scatter` is the standard error that the noise of "
    "runs alone would cause. A parabola is symmetric, and the true curve is not: `bias` is the error of approach 2 on "
    "data that follow the fitted `chinchilla` law at the same sizes, and is not part of the interval."
)
GIVEN = (
    "**Given optima**: each row is taken as the optimum of its budget (`analysis.optima=true`). Power laws are fitted "
    "to N and D. The error of a row is unknown, so intervals come from the deviations of rows from the power law."
)
CAPTION = "Runs of each budget, with parabolas over the fitted sizes. Stars: minima. Crosses: dropped minima."


def isoflop_blocks(analysis: Directory) -> list[str]:
    """Report blocks on how the best N and D grow with compute, and on the best N of each budget."""
    rows = analysis.comparison["isoflop"]
    are_given = any(row["given_optima"] for row in rows)
    ignored = list(dict.fromkeys(name for row in rows for name in row["ignored"]))
    columns = {
        "family": family_name,
        "budgets used": lambda row: f"{sum(map(_is_used, row['budgets']))} of {len(row['budgets'])}",
        "a in N ~ C^a": lambda row: with_interval(row["exponent"], [row["low"], row["high"]], 3),
        "b in D ~ C^b": lambda row: with_interval(row["tokens_exponent"], [row["tokens_low"], row["tokens_high"]], 3),
        "error by scatter": lambda row: format_number(row["se_scatter"], 2),
        "bias": lambda row: format_number(row["bias"], 2),
        "a by `chinchilla`": lambda row: format_number(row["parametric"], 3),
    }
    exponent_table = table_by_column([row for row in rows if is_number(row["exponent"])], columns)
    explanation = GIVEN if are_given else PROFILES
    blocks = [explanation, exponent_table] if exponent_table else []
    blocks += [
        _without_exponent([row for row in rows if row["reason"]], are_given),
        f"The column {join_names(ignored)} does not hold FLOPs, so it defines no budgets." if ignored else "",
    ]
    if are_given:
        return [*blocks, analysis.figure("isoflop", "The given optima, and the power laws fitted to them.")]
    budget_rows = [_budget_row(row, budget) for row in rows for budget in row["budgets"]]
    if budget_rows:
        header = ("family", "C (FLOPs)", "best N by approach 2", "best D by approach 2", "best N by `chinchilla`",
                  "`chinchilla` / approach 2", "remarks")  # fmt: skip
        heading = "Best N of each budget, by approach 2 and by `chinchilla`"
        blocks += [
            _disagreement(rows),
            folded_if_long(heading, table(header, budget_rows), len(budget_rows)),
            analysis.figure("isoflop", CAPTION),
        ]
    return blocks


def _is_used(budget: Entry) -> bool:
    return budget["reason"] is None  # otherwise `reason` says why the budget is dropped


def _without_exponent(rows: list[Entry], are_given: bool) -> str:
    families: dict[str, list[str]] = {}
    for row in rows:
        families.setdefault(row["reason"], []).append(family_name(row))
    exponents = "exponents through the given optima" if are_given else "isoFLOP exponents (approach 2)"
    return "\n\n".join(f"No {exponents} for {join_names(names)}: {reason}." for reason, names in families.items())


def _budget_row(row: Entry, budget: Entry) -> list[str]:
    head = [family_name(row), format_number(budget["flops"], 3)]
    parametric = count(budget.get("parametric_params"))
    if not _is_used(budget):
        return [*head, NO_VALUE, NO_VALUE, parametric, NO_VALUE, f"dropped: {budget['reason']}"]
    ends = [count(end) if is_number(end) else "open" for end in (budget["low"], budget["high"])]
    best = f"{count(budget['params'])} [{', '.join(ends)}]"
    return [*head, best, count(budget["tokens"]), parametric, format_number(budget.get("ratio"), 3), ""]


def _disagreement(rows: list[Entry]) -> str:
    """A warning if the best N by `chinchilla` lies outside the interval of the best N by approach 2."""
    budgets = [budget | {"family": row["family"]} for row in rows for budget in row["budgets"]]
    compared_keys = ("parametric_params", "low", "high")
    used = [budget for budget in budgets if _is_used(budget)]
    compared = [budget for budget in used if all(is_number(budget.get(key)) for key in compared_keys)]
    outside = [budget for budget in compared if not budget["low"] <= budget["parametric_params"] <= budget["high"]]
    families = join_names(list(dict.fromkeys(map(family_name, outside))))
    if not outside:
        return ""
    return (
        f"**Approach 2 and the `chinchilla` fit disagree** at {len(outside)} of {len(compared)} budgets: the best N by "
        f"the law lies outside the interval of the best N by approach 2 ({families}). Either may be wrong: the "
        "parabola is biased, and the law may not hold."
    )


def isoflop_figure(analysis: Directory) -> Figure | None:
    """Runs of each compute budget with the parabola and its minimum, or the given optima: one panel per family."""
    rows = [row for row in analysis.comparison["isoflop"] if is_number(row["exponent"])]
    if not rows:
        return None
    exponents = [with_interval(row["exponent"], [row["low"], row["high"]], 3) for row in rows]
    names = [f"{short_name(row['family'])} " if len(rows) > 1 else "" for row in rows]
    by_family = "; ".join(map("".join, zip(names, exponents, strict=True)))
    are_given = rows[0]["given_optima"]
    kind = "Given optima" if are_given else "IsoFLOP profiles"
    draw_panel = _draw_optima if are_given else _draw_profiles
    title = f"{kind}: best N grows as C^a, a = {by_family}"
    figure, axes = panels(len(rows), title, ncols=2, width=4.7, height=3.2)
    for axis, row in zip(axes, rows, strict=True):
        draw_panel(axis, analysis, row)
    return figure


def _draw_profiles(axis: Axes, analysis: Directory, row: Entry) -> None:
    budgets, colour = row["budgets"], analysis.colour(row["family"])
    for budget, shade in zip(budgets, np.linspace(0.45, 1.0, len(budgets)), strict=True):
        points = budget["points"]
        axis.plot(points["params"], points["value"], ls="", marker="o", ms=3.2, color=colour, alpha=shade, mew=0)
        smallest, largest = budget["window"]
        sizes = np.geomspace(smallest, largest, 80)
        curve = _parabola(budget, sizes)
        axis.plot(sizes, curve, color=colour, lw=1, alpha=shade)
        if _is_used(budget):
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
    bias = format_number(row["bias"], 2) if is_number(row["bias"]) else "unknown"
    exponent = format_number(row["exponent"], 3)
    axis.set_title(f"{short_name(row['family'])}: a = {exponent}; bias of approach 2: {bias}", fontsize=8.5)


def _parabola(budget: Entry, params: np.ndarray) -> np.ndarray:
    """The target at these sizes by the parabola of a budget, which is fitted to log target in log N."""
    height, slope, curvature = budget["parabola"]
    centred_log_n = np.log(params) - budget["centre"]
    return np.exp(np.asarray(height + slope * centred_log_n + curvature * centred_log_n**2))


def _draw_optima(axis: Axes, analysis: Directory, row: Entry) -> None:
    names = ("flops", "params", "tokens")
    flops, params, tokens = (np.array([budget[name] for budget in row["budgets"]]) for name in names)
    centred_log_c = np.log(flops) - np.log(flops).mean()
    lines = (("N", params, row["exponent"], "o"), ("D", tokens, row["tokens_exponent"], "s"))
    for variable, optima, slope, marker in lines:
        axis.plot(flops, optima, ls="", marker=marker, ms=4, color=analysis.colour(row["family"]),
                  label=f"{variable} ~ C^{format_number(slope, 3)}")  # fmt: skip
        axis.plot(flops, np.exp(np.log(optima).mean() + slope * centred_log_c), color=INK, lw=1)
    both = np.concatenate([params, tokens])
    log_axis(axis.xaxis, flops.min() / 1.3, flops.max() * 1.3, as_counts=False)
    log_axis(axis.yaxis, both.min() / 1.3, both.max() * 1.3)
    axis.set_xlabel("C (training FLOPs)")
    axis.set_ylabel("optimal parameters and tokens")
    axis.legend(fontsize=8)
    axis.set_title(short_name(row["family"]), fontsize=8.5)
