"""The section on compute: isoFLOP profiles, allocation, cost of a loss, and Pareto fronts with their figure."""

from slm.analysis.report.directory import Directory
from slm.analysis.report.isoflop import isoflop_blocks
from slm.report.markdown import Columns, Section, folded, table_by_column
from slm.report.style import INK, Axes, Figure, label_left, log_axis, panels, short_name
from slm.runtime.words import (
    NO_VALUE,
    axis_name,
    count,
    duration,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    shape_text,
)
from slm.scaling.describe import Entry, family_name
from slm.scaling.tables.columns import cell_means

MAX_RATIO_OF_LAWS = 2.0
"""If the answers of two laws differ by a larger factor, the report says that the laws contradict each other."""
FRONT_LABELS = {"flops": "C (training FLOPs)", "tokens_per_second": "tokens per second (more is better)"}
"""Labels of the quantities other than N for which a Pareto front is shown."""
COST_COLUMNS: Columns = {
    "device time": lambda row: duration(3600 * row["device_hours"]) if is_number(row.get("device_hours")) else NO_VALUE,
    "price": lambda row: format_number(row.get("price"), 3),
}


def compute_section(analysis: Directory) -> Section | None:
    """How to divide compute between size and data; None if the analysis has no results on compute."""
    section = Section("Compute").add(
        *isoflop_blocks(analysis),
        *_allocation(analysis.comparison["allocation"]),
        *_least_compute(analysis.comparison["target"]),
    )
    fronts = analysis.comparison["pareto"]
    if fronts:
        caption = (
            "Marks: means over the seeds of a cell; large: on the front. Steps: the best result that was reached. "
            "Cells that differ by less than the scatter between seeds are equally good."
        )
        section.add(
            "**Pareto fronts.** A cell is on a front if no other cell is better in both quantities, by the means over "
            "its seeds.",
            analysis.figure("pareto", caption),
            folded("Cells on the fronts", "\n\n".join(_front_table(analysis, front) for front in fronts)),
        )
    return section if section.blocks else None


def _allocation(rows: list[Entry]) -> list[str]:
    contradictions = []
    for row in rows:
        if row["contradicts"]:
            why = escape_markdown("; ".join(row["contradicts"]))
            consequence = "" if row["budgets"] else " Its optima are not shown."
            contradictions.append(f"`{row['law']}` contradicts the runs of {family_name(row)}: {why}.{consequence}")
    optima = [row | budget for row in rows for budget in row["budgets"]]
    if not optima:
        return contradictions

    def with_factor(text: str, name: str, row: Entry) -> str:
        factor = row["beyond"].get(name)  # None within the runs
        return text if factor is None else f"{text} ({format_number(factor, 3)}x the largest)"

    columns: Columns = {
        "family": family_name,
        "law": lambda row: f"`{row['law']}`",
        "C (FLOPs)": lambda row: with_factor(format_number(row["flops"], 3), "flops", row),
        "best N": lambda row: with_factor(count(row["params"]), "params", row),
        "best D": lambda row: with_factor(count(row["tokens"]), "tokens", row),
        "loss": lambda row: format_number(row["loss"]),
    }
    if any("device_hours" in row for row in optima):
        columns = {**columns, **COST_COLUMNS}
    flops = {family_name(row): format_number(row["flops_per_parameter_and_token"], 3) for row in optima}
    flops_of_families = [f"{factor} N D for {family}" for family, factor in flops.items()]
    return [
        "**Compute-optimal allocation** by the identified laws in N and D, at the largest budget of each family and "
        f"at larger budgets. According to the FLOPs in the table, C = {join_names(flops_of_families)}. These are "
        "point estimates. A factor in parentheses means that the law is extrapolated beyond the largest run.",
        table_by_column(optima, columns),
        *contradictions,
    ]


def _least_compute(rows: list[Entry]) -> list[str]:
    """Sentences and a table on the fewest FLOPs that reach a loss, with one row per family and law."""
    if not rows:
        return []
    loss = format_number(rows[0]["loss"])
    sentences = [f"**Least compute for a loss of {loss}**: point estimates of the identified laws."]
    one_row_per_family = {family_name(row): row for row in rows}  # only values that all rows of a family share are used
    for family, row in one_row_per_family.items():
        if row["reached_with"] is None:
            lowest = format_number(row["lowest_loss"])
            sentences.append(f"No run of {family} reached this loss (the lowest is {lowest}), so the laws extrapolate.")
        ratio = row["laws_apart"]
        if is_number(ratio) and ratio > MAX_RATIO_OF_LAWS:
            factor = format_number(ratio, 3)
            sentences.append(f"The laws contradict each other for {family}: answers differ by a factor of {factor}.")
    columns: Columns = {
        "family": family_name,
        "law": lambda row: f"`{row['law']}`",
        "C (FLOPs)": lambda row: format_number(row["flops"], 3) if is_number(row["flops"]) else "none: below the floor",
        **COST_COLUMNS,
        "remarks": _remark,
    }
    return [" ".join(sentences), table_by_column(rows, columns)]


def _remark(row: Entry) -> str:
    if is_number(row["reached_with"]):
        contradicted = "" if is_number(row["flops"]) else "contradicted: "
        return f"{contradicted}a run reached this loss with {format_number(row['reached_with'], 3)} FLOPs"
    is_beyond = is_number(row["beyond"]) and row["beyond"] > 1
    return f"{format_number(row['beyond'], 3)}x the largest run" if is_beyond else ""


def _front_table(analysis: Directory, front: Entry) -> str:
    target, column = analysis.verdict_basis["target"], front["against"]
    columns: Columns = {
        "family": family_name,
        "shape": lambda row: shape_text(row.get("width"), row.get("depth")),
        "runs": lambda row: str(row.get("runs", NO_VALUE)),
        _label(column): lambda row: format_number(row[column], 3) if column in FRONT_LABELS else count(row[column]),
        analysis.target_name: lambda row: format_number(row[target]),
    }
    return table_by_column(front["front"], columns)


def _label(column: str) -> str:
    return FRONT_LABELS.get(column) or axis_name("N", column)


def pareto_figure(analysis: Directory) -> Figure | None:
    """The target against N, FLOPs and speed, means over seeds, with large marks and steps for each front."""
    fronts = [front for front in analysis.comparison["pareto"] if front["against"] in analysis.results]
    fronts = [front for front in fronts if all(is_number(row[front["against"]]) for row in front["front"])]
    if not fronts:
        return None
    names = list(dict.fromkeys(short_name(row["family"]) for front in fronts for row in front["front"]))
    families = "every family" if len(names) == len(analysis.families) > 1 else join_names(names)
    title = f"Pareto fronts: cells of {families} that no other cell beats in both quantities"
    if not {"cell", analysis.verdict_basis["target"]} <= set(analysis.results):
        return None
    figure, axes = panels(len(fronts), title, ncols=3, width=3.15, height=2.9, families=analysis.families)
    for axis, front in zip(axes, fronts, strict=True):
        _draw_front(axis, analysis, front, analysis.verdict_basis["target"])
    label_left(axes, analysis.target_label)
    return figure


def _draw_front(axis: Axes, analysis: Directory, front: Entry, target: str) -> None:
    column = front["against"]
    cells = cell_means(analysis.results, column, target)
    for family, rows in cells.groupby("family", sort=False):
        axis.plot(rows[column], rows[target], ls="", marker=analysis.marker(family), ms=3.5, alpha=0.45,
                  color=analysis.colour(family), mew=0)  # fmt: skip
    rising = sorted(front["front"], key=lambda row: row[column])
    # More speed is better, so the best result at a speed or more is that of the next faster cell on the front.
    steps = "steps-pre" if column == "tokens_per_second" else "steps-post"
    axis.plot([row[column] for row in rising], [row[target] for row in rising], color=INK, lw=1, drawstyle=steps,
              zorder=1.5)  # fmt: skip
    for row in rising:
        axis.plot(row[column], row[target], marker=analysis.marker(row["family"]), ms=5.5,
                  color=analysis.colour(row["family"]), mec=INK)  # fmt: skip
    x, y = cells[column], cells[target]
    log_axis(axis.xaxis, x.min() / 1.2, x.max() * 1.2, as_counts=column != "flops")
    log_axis(axis.yaxis, y.min() / 1.03, y.max() * 1.03)
    axis.set_xlabel(_label(column))
