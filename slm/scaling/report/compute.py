"""Section on compute: isoFLOP profiles, allocation, cost, Pareto fronts."""

from __future__ import annotations

from slm.scaling.report.directory import Directory, Entry
from slm.scaling.report.text import Section, figure, folded, table
from slm.scaling.report.wording import TARGET_NAMES, axis_name, count, is_number, listed, plainly, sig, with_interval


def compute_section(of: Directory) -> Section | None:
    """What to spend compute on; None where the table says nothing of it."""
    section = Section("Compute")
    found = of.comparison
    section.add(*_isoflop(of, found.get("isoflop") or []), *_allocation(found.get("allocation") or []))
    section.add(*_target(found.get("target") or []))
    if found.get("pareto"):
        tables = [_front(of, front) for front in found["pareto"]]
        section.add(
            "**Pareto fronts.** A run is on a front if no other run beats it in both.",
            figure(
                of, "pareto", "Large marks: the front. Neighbours within the scatter between seeds are not different."
            ),
            folded("Runs on the fronts", "\n\n".join(tables)),
        )
    return section if section.blocks else None


def _isoflop(of: Directory, rows: list[Entry]) -> list[str]:
    if not rows:
        return []
    shown = [
        [
            plainly(row["family"]),
            with_interval(row["exponent"], [row["low"], row["high"]]),
            sig(row.get("bias"), 2),
            sig(row.get("parametric")),
            ", ".join(
                f"{sig(b['flops'], 3)}: N = {count(b['params'])}" + ("" if b["inside"] else " (outside its runs)")
                for b in row["budgets"]
            ),
        ]
        for row in rows
    ]
    header = (
        "family",
        "a in N ~ C^a",
        "bias of approach 2 here",
        "a by the `chinchilla` fit",
        "lowest point by budget (FLOPs)",
    )
    return [
        "**IsoFLOP profiles** (approach 2): a parabola through the runs of each budget, and a power law through the "
        "lowest points. A parabola is symmetric and the true curve is not, so approach 2 is biased; the bias is "
        "computed by running it on the fitted `chinchilla` law at these very sizes. The interval does not contain it.",
        table(header, shown),
        figure(
            of, "isoflop", "Runs by budget, their parabolas and lowest points (stars; hollow where outside the runs)."
        ),
    ]


def _allocation(rows: list[Entry]) -> list[str]:
    shown, priced = [], any("device_hours" in b for row in rows for b in row["budgets"])
    for row in rows:
        for place, budget in enumerate(row["budgets"]):
            cost = [sig(budget.get("device_hours"), 3), sig(budget.get("price"), 3)] if priced else []
            beyond = "" if place == 0 else " (beyond the data)"
            shown.append(
                [
                    plainly(row["family"]),
                    sig(budget["flops"], 3) + beyond,
                    count(budget["params"]),
                    count(budget["tokens"]),
                    sig(budget["loss"]),
                    *cost,
                ]
            )
    if not shown:
        return []
    header = ["family", "C (FLOPs)", "best N", "best D", "loss", *(["device hours", "price"] if priced else [])]
    return [
        "**Compute-optimal allocation** of the `chinchilla` fit, at the largest budget of the table and beyond, with "
        f"C = {listed([sig(row['flops_per_parameter_and_token'], 3) for row in rows])} N D as the table counts FLOPs "
        f"({listed([plainly(row['family']) for row in rows])}). These are point estimates.",
        table(header, shown),
    ]


def _target(rows: list[Entry]) -> list[str]:
    """Least FLOPs to a wanted loss, a row a family and law."""
    if not rows:
        return []
    shown = [
        [
            plainly(row["family"]),
            f"`{row['law']}`",
            sig(row["flops"], 3) if is_number(row.get("flops")) else "never: it lies under the floor",
            sig(row.get("device_hours"), 3),
            sig(row.get("price"), 3),
        ]
        for row in rows
    ]
    heading = (
        f"**Least compute for a loss of {sig(rows[0]['loss'])}**, as point estimates of the laws that are identified."
    )
    return [heading, table(("family", "law", "C (FLOPs)", "device hours", "price"), shown)]


def _front(of: Directory, front: Entry) -> str:
    target, column = of.primary["target"], front["against"]
    name = {"flops": "C (FLOPs)", "tokens_per_second": "tokens per second"}.get(column) or axis_name("N", column)
    rows = []
    for row in front["front"]:
        who = str(row["family"]) + (f", {row['name']}" if row.get("name") else "")
        at = sig(row[column], 3) if column in ("flops", "tokens_per_second") else count(row[column])
        rows.append([plainly(who), at, sig(row[target])])
    return table(("run", name, TARGET_NAMES[target]), rows)
