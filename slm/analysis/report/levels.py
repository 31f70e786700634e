"""The section on losses by family and size, which needs no law, and its lines for the terminal."""

from collections.abc import Sequence
from typing import Any

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, folded, table_by_column
from slm.runtime.words import (
    NO_VALUE,
    count,
    escape_markdown,
    format_number,
    p_value,
    plural,
    with_error,
    with_interval,
)
from slm.scaling.describe import Entry, family_name, pair_name

ERRORS = {
    "seeds": "scatter between seeds",
    "paired seeds": "seeds in pairs",
    "sizes": "scatter between sizes",
    None: "no error: one run or one size shows no scatter",
}
"""What an error was computed from, in words."""
MAX_TABLE_ROWS = 200  # of a table in the report
MAX_LINES = 40  # of losses, and of differences, in the terminal


def levels_section(analysis: Directory) -> Section | None:
    """The losses of every family at each size and the differences of pairs; folded if the table has a law."""
    levels = analysis.comparison.get("levels")  # older analyses have none
    if levels is None:
        return None
    columns: Columns = {
        "family": family_name,
        "N": lambda cell: count(cell["N"]),
        "tokens": lambda cell: count(cell["tokens"]),
        "runs": lambda cell: str(len(cell["losses"])),
        analysis.target_name: lambda cell: with_error(cell["mean"], cell["se"]),
        "by seed": lambda cell: escape_markdown(_by_seed(cell)),
    }
    losses = _table(levels["cells"], columns, MAX_TABLE_ROWS)
    rows = [row for pair in levels["pairs"] for row in _rows(pair)]
    differences = _table(rows, _difference_columns(), MAX_TABLE_ROWS)
    explained = (
        "± is the standard error of the mean over seeds; a mean without ± is of one run, whose scatter is unknown. A "
        f"difference is that of the first family minus the second at the same size, with its {analysis.level:.0%} "
        "interval (Student's t). Runs with the same seed are paired. p-values are adjusted over the pairs (Holm)."
    )
    section = Section("Losses by family and size")
    if analysis.has_law:
        return section.add(explained, folded("Losses", losses), folded("Differences at the same size", differences))
    return section.add(explained, losses, differences or _nothing_in_common(analysis))


def _table(rows: Sequence[Entry], columns: Columns, max_rows: int) -> str:
    more = f"\n\n{_more(rows, max_rows)}" if len(rows) > max_rows else ""
    return table_by_column(rows[:max_rows], columns) + more


def _more(rows: Sequence[Any], max_rows: int) -> str:
    return f"{len(rows) - max_rows:,} more rows are in comparison.json (levels)."


def level_lines(analysis: Directory) -> list[str]:
    """Lines for the terminal: the losses of every family at each size, and the differences of pairs."""
    levels = analysis.comparison["levels"]
    losses = [
        f"  {cell['family']}, N {count(cell['N'])}{_tokens(cell)}: {analysis.target_name} "
        f"{with_error(cell['mean'], cell['se'])} ({plural(len(cell['losses']), 'run')}: {_by_seed(cell)})"
        for cell in levels["cells"]
    ]
    differences = [
        f"  {row['a']} - {row['b']}, {row['where']}: {_difference(row)} ({ERRORS[row['error']]})"
        for pair in levels["pairs"]
        for row in _rows(pair)
    ]
    lines = []
    for group in (losses, differences or [f"  {_nothing_in_common(analysis)}"]):
        lines += group[:MAX_LINES]
        lines += [f"  {_more(group, MAX_LINES)}"] if len(group) > MAX_LINES else []
    return lines


def _nothing_in_common(analysis: Directory) -> str:
    if len(analysis.families) < 2:
        return "There is one family, so there is nothing to compare."
    return "No two families have a size in common, at the same tokens, so there are no differences."


def _by_seed(cell: Entry) -> str:
    """`3.271, 3.295`, with the seeds if they are known: `seed 1: 3.271, seed 2: 3.295`."""
    names = [f"seed {seed}: " for seed in cell["seeds"]] if cell["seeds"] else [""] * len(cell["losses"])
    return ", ".join(f"{name}{format_number(loss)}" for name, loss in zip(names, cell["losses"], strict=True))


def _rows(pair: Entry) -> list[Entry]:
    """The differences of a pair at each common size, then their mean if there are several; `where` says which."""
    rows = []
    for row in pair["sizes"]:
        sizes = list(dict.fromkeys(count(row[key]) for key in ("N_a", "N_b")))
        rows.append(row | {"where": f"N {' and '.join(sizes)}" + _tokens(row)})
    if len(rows) > 1:
        rows.append(pair["mean"] | {"where": f"mean over {len(rows)}"})
    elif rows:  # the p of the only size, adjusted over the pairs
        rows[0] = rows[0] | {"p_adjusted": pair["mean"]["p_adjusted"]}
    return [{"a": pair["a"], "b": pair["b"]} | row for row in rows]


def _tokens(row: Entry) -> str:
    return "" if row["tokens"] is None else f", {count(row['tokens'])} tokens"


def _difference(row: Entry) -> str:
    """`0.0510 [0.0201, 0.0819]`; without an error, only the difference."""
    if row["se"] is None:
        return format_number(row["difference"], 3)
    return with_interval(row["difference"], [row["low"], row["high"]], 3)


def _difference_columns() -> Columns:
    return {
        "pair": pair_name,
        "at": lambda row: row["where"],
        "difference": _difference,
        "p": lambda row: p_value(row["p"]),
        "Holm-adjusted p": lambda row: p_value(row["p_adjusted"]) if "p_adjusted" in row else NO_VALUE,
        "error from": lambda row: ERRORS[row["error"]],
    }
