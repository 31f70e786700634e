"""Section on compute: isoFLOP profiles, allocation, cost, Pareto fronts."""

from __future__ import annotations

from slm.analysis.report.directory import Directory
from slm.report.markdown import VISIBLE_ROWS, Section, figure, folded, table
from slm.runtime.words import (
    NOTHING,
    TARGET_NAMES,
    axis_name,
    count,
    escape_markdown,
    is_number,
    listed,
    sig,
    with_interval,
)
from slm.scaling.describe import Entry


def compute_section(analysis: Directory) -> Section | None:
    """What to spend compute on; None where the table says nothing of it."""
    section = Section("Compute")
    found = analysis.comparison
    section.add(*_isoflop(analysis, found.get("isoflop") or []), *_allocation(found.get("allocation") or []))
    section.add(*_target(found.get("target") or []))
    if found.get("pareto"):
        tables = [_front(analysis, front) for front in found["pareto"]]
        section.add(
            "**Pareto fronts.** A run is on a front if no other run beats it in both.",
            figure(
                analysis.path,
                "pareto",
                "Large marks: the front. Neighbours within the scatter between seeds are not different.",
            ),
            folded("Runs on the fronts", "\n\n".join(tables)),
        )
    return section if section.blocks else None


def _isoflop(analysis: Directory, rows: list[Entry]) -> list[str]:
    found = [row for row in rows if is_number(row["exponent"])]
    given = any(row["given_optima"] for row in rows)
    ignored = list(dict.fromkeys(name for row in rows for name in row["ignored"]))
    blocks = [
        _without_exponent([row for row in rows if row["reason"]], given),
        f"The values of the column {listed(ignored)} are not FLOPs, so they make no budgets." if ignored else "",
    ]
    if found:
        header = ("family", "budgets", "a in N ~ C^a", "b in D ~ C^b", "error by scatter", "bias", "a by `chinchilla`")
        blocks = [_GIVEN if given else _PROFILES, table(header, [_exponents_row(row) for row in found]), *blocks]
    if given:
        return [*blocks, figure(analysis.path, "isoflop", "The given optima and the power laws through them.")]
    shown = [_budget_row(row, budget) for row in rows for budget in row["budgets"]]
    if shown:
        header = ("family", "C (FLOPs)", "best N by approach 2", "best D", "best N by `chinchilla`", "ratio", "remarks")
        blocks.append(_disagreement(rows))
        blocks.append(_fold_if_long(header, shown, "Best N of each budget, by approach 2 and by `chinchilla`"))
        blocks.append(
            figure(
                analysis.path,
                "isoflop",
                "Runs by budget, the parabolas over the sizes that they were fitted to, and lowest points (stars; "
                "crosses where a budget was dropped).",
            )
        )
    return blocks


_PROFILES = (
    "**IsoFLOP profiles** (approach 2): a parabola about the lowest loss of each budget, and a power law through the "
    "lowest points. The interval is by how far the budgets lie from the power law (t, budgets less 2 degrees of "
    "freedom), so with three budgets it is wide; the standard error by scatter is what noise of runs alone would give. "
    "A parabola is symmetric and the true curve is not; the bias is that of approach 2 run on the fitted `chinchilla` "
    "law at these very sizes, and the interval does not contain it."
)
_GIVEN = (
    "**Given optima**: each row is taken for the optimum of its budget (`analysis.optima=true`), and power laws go "
    "through N and D as they are. Errors within a row are not known, so the interval is by how far the rows lie from "
    "the line."
)


def _without_exponent(rows: list[Entry], given: bool) -> str:
    """One sentence a reason."""
    families: dict[str, list[str]] = {}
    for row in rows:
        families.setdefault(row["reason"], []).append(escape_markdown(row["family"]))
    what = "exponents through the given optima" if given else "isoFLOP exponents (approach 2)"
    return "\n\n".join(f"No {what} for {listed(who)}: {reason}." for reason, who in families.items())


def _exponents_row(row: Entry) -> list[str]:
    used = sum(budget["reason"] is None for budget in row["budgets"])
    return [
        escape_markdown(row["family"]),
        f"{used} of {len(row['budgets'])}",
        with_interval(row["exponent"], [row["low"], row["high"]], 3),
        with_interval(row["tokens_exponent"], [row["tokens_low"], row["tokens_high"]], 3),
        sig(row["se_scatter"], 2),
        sig(row["bias"], 2),
        sig(row["parametric"], 3),
    ]


def _budget_row(row: Entry, budget: Entry) -> list[str]:
    ends = [count(end) if is_number(end) else "open" for end in (budget["low"], budget["high"])]
    used = budget["reason"] is None
    return [
        escape_markdown(row["family"]),
        sig(budget["flops"], 3),
        f"{count(budget['params'])} [{', '.join(ends)}]" if used else NOTHING,
        count(budget["tokens"]) if used else NOTHING,
        count(budget.get("parametric_params")),
        sig(budget.get("ratio"), 3) if used else NOTHING,
        "" if used else f"dropped: {budget['reason']}",
    ]


def _disagreement(rows: list[Entry]) -> str:
    """Where the optimum of the parametric law lies outside the interval of the lowest point."""
    outside, compared = [], 0
    for row in rows:
        for budget in row["budgets"]:
            best, low, high = (budget.get(name) for name in ("parametric_params", "low", "high"))
            if budget["reason"] is None and all(map(is_number, (best, low, high))):
                compared += 1
                if not low <= best <= high:
                    outside.append(row["family"])
    if not outside:
        return ""
    return (
        f"**Approach 2 and the `chinchilla` fit disagree** at {len(outside)} of {compared} budgets: the law's best N "
        f"lies "
        f"outside the interval of the lowest point "
        f"({listed([escape_markdown(name) for name in dict.fromkeys(outside)])}). "
        "Neither is right by construction: the parabola is biased, and the law may not hold."
    )


def _fold_if_long(header: tuple[str, ...], rows: list[list[str]], summary: str) -> str:
    content = table(header, rows)
    return content if len(rows) <= VISIBLE_ROWS else folded(summary, content)


def _allocation(rows: list[Entry]) -> list[str]:
    priced = any("device_hours" in b for row in rows for b in row["budgets"])
    shown = [_optimum_row(row, budget, priced) for row in rows for budget in row["budgets"]]
    denied = [
        f"`{row['law']}` contradicts the runs of {escape_markdown(row['family'])}: "
        f"{escape_markdown('; '.join(row['contradicts']))}." + ("" if row["budgets"] else " Its optima are not shown.")
        for row in rows
        if row["contradicts"]
    ]
    if not shown:
        return denied
    units = {row["family"]: sig(row["flops_per_parameter_and_token"], 3) for row in rows if row["budgets"]}
    header = ["family", "law", "C (FLOPs)", "best N", "best D", "loss", *(["device hours", "price"] if priced else [])]
    return [
        "**Compute-optimal allocation** by the identified laws in N and D, at the largest budget of each family and "
        f"beyond, with C = {listed(list(units.values()))} N D as the table counts FLOPs "
        f"({listed([escape_markdown(family) for family in units])}). These are point estimates. A factor says how "
        f"many times "
        "the family's largest run that is: there the law is extrapolated.",
        table(header, shown),
        *denied,
    ]


def _optimum_row(row: Entry, budget: Entry, priced: bool) -> list[str]:
    beyond = budget["beyond"]
    marks = {name: f" ({sig(beyond[name], 3)}x the largest)" if name in beyond else "" for name in _AMOUNTS}
    return [
        escape_markdown(row["family"]),
        f"`{row['law']}`",
        sig(budget["flops"], 3) + marks["flops"],
        count(budget["params"]) + marks["params"],
        count(budget["tokens"]) + marks["tokens"],
        sig(budget["loss"]),
        *([sig(budget.get("device_hours"), 3), sig(budget.get("price"), 3)] if priced else []),
    ]


_AMOUNTS = ("flops", "params", "tokens")
LAWS_APART = 2.0
"""Laws whose answers differ by more than this factor are said to disagree."""


def _target(rows: list[Entry]) -> list[str]:
    """Least FLOPs to a wanted loss, a row a family and law."""
    if not rows:
        return []
    shown = [
        [
            escape_markdown(row["family"]),
            f"`{row['law']}`",
            sig(row["flops"], 3) if is_number(row["flops"]) else "never: it lies under the floor",
            sig(row.get("device_hours"), 3),
            sig(row.get("price"), 3),
            _target_remark(row),
        ]
        for row in rows
    ]
    wanted = rows[0]["loss"]
    unreached = {row["family"]: row["lowest_loss"] for row in rows if row["reached_with"] is None}
    apart = {row["family"]: row["laws_apart"] for row in rows if is_number(row["laws_apart"])}
    said = [
        f"**Least compute for a loss of {sig(wanted)}**, as point estimates of the laws that are identified.",
        *(
            f"No run of {escape_markdown(family)} has reached it; the lowest is {sig(lowest)}. The figures below "
            f"extrapolate."
            for family, lowest in unreached.items()
        ),
        *(
            f"The laws contradict each other for {escape_markdown(family)}: their answers are {sig(ratio, 3)}x apart."
            for family, ratio in apart.items()
            if ratio > LAWS_APART
        ),
    ]
    header = ("family", "law", "C (FLOPs)", "device hours", "price", "remarks")
    return [" ".join(said), table(header, shown)]


def _target_remark(row: Entry) -> str:
    if is_number(row["reached_with"]):
        verb = "contradicted: " if not is_number(row["flops"]) else ""
        return f"{verb}a run reached it with {sig(row['reached_with'], 3)}"
    return f"{sig(row['beyond'], 3)}x the largest run" if is_number(row["beyond"]) and row["beyond"] > 1 else ""


def _front(analysis: Directory, front: Entry) -> str:
    target, column = analysis.primary["target"], front["against"]
    name = {"flops": "C (FLOPs)", "tokens_per_second": "tokens per second"}.get(column) or axis_name("N", column)
    rows = []
    for row in front["front"]:
        who = str(row["family"]) + (f", {row['name']}" if row.get("name") else "")
        at = sig(row[column], 3) if column in ("flops", "tokens_per_second") else count(row[column])
        rows.append([escape_markdown(who), at, sig(row[target])])
    return table(("run", name, TARGET_NAMES[target]), rows)
