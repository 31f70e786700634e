"""A table of fits, and two sections: how well each law fits and extrapolates, and whether each fit converged."""

from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, folded, folded_if_long, table, table_by_column
from slm.report.style import INK, Axes, Figure, Margins, draw_interval, label_left, log_axis, panels
from slm.runtime.words import (
    LOSS_NAMES,
    NO_VALUE,
    escape_markdown,
    format_number,
    is_number,
    p_value,
    percent,
    size_words,
    target_name,
    yes_or_no,
)
from slm.scaling.describe import (
    Entry,
    exponents_text,
    family_name,
    fitted_laws,
    floor_text,
    has_complete_lists,
    laws_and_families,
    status,
)


def selection_section(analysis: Directory) -> Section:
    """AICc, BIC, extrapolation and lack of fit of each law."""
    rows = analysis.comparison["selection"]
    columns: Columns = {
        "law": itemgetter("law"),
        "family": family_name,
        "AICc": lambda row: format_number(row["aicc"], 5),
        "BIC": lambda row: format_number(row["bic"], 5),
        "rmse": lambda row: percent(row["rmse_log"]),
        "extrapolation error": lambda row: percent(row["extrapolation_error_log"], with_sign=True),
        "inside the interval": lambda row: yes_or_no(row["extrapolation_inside"]),
        "identified": lambda row: yes_or_no(row["identified"]),
    }
    by_family = table_by_column([row for row in rows if is_number(row["rmse_log"])], columns)
    return Section("Which law fits best").add(
        "Lower AICc and BIC are better. Compare them only between laws of the same target; a difference below about 2 "
        "is no evidence. The extrapolation error is the error of predicting the largest size from all smaller sizes, "
        f"which is the harder test. The last columns count the held-out rows inside the {analysis.level:.0%} "
        "prediction interval of a fit that is extrapolated by one, two or three sizes.",
        _law_table(analysis, rows),
        folded_if_long("AICc, BIC and errors of every law and family", by_family, len(rows)),
        analysis.figure(
            "extrapolation",
            "Prediction of each held-out size from all smaller sizes, by law and family. Marks: the prediction error, "
            f"positive if the prediction is too high. Lines: the {analysis.level:.0%} interval for the measured value, "
            "which is at 0; arrows: the interval is wider than the panel. Hollow marks: the measured value lies "
            "outside the interval. Marks of one size are shifted sideways.",
        ),
    )


def _law_table(analysis: Directory, rows: Sequence[Entry]) -> str:
    header = ("law", "families in which it is identified", "largest rmse", "largest extrapolation error",
              "smallest lack-of-fit p", "inside, 1 size ahead", "inside, 2 sizes", "inside, 3 sizes")  # fmt: skip
    by_law = {law: [row for row in rows if row["law"] == law] for law in fitted_laws(analysis.fits)}
    return table(header, [_law_row(analysis, law, law_rows) for law, law_rows in by_law.items() if law_rows])


def _law_row(analysis: Directory, law: str, rows: Sequence[Entry]) -> list[str]:
    entries = analysis.entries(law=law)
    rmses = [row["rmse_log"] for row in rows if is_number(row["rmse_log"])]
    errors = [row["extrapolation_error_log"] for row in rows if is_number(row["extrapolation_error_log"])]
    tests = [entry.get("lack_of_fit") or {} for entry in entries]
    p_values = [test["p"] for test in tests if is_number(test.get("p"))]
    steps = [step for entry in entries for step in _steps(entry)]
    steps_by_distance = [[step for step in steps if step["sizes_ahead"] == distance] for distance in (1, 2, 3)]
    return [
        f"**{law}** (law of the verdict)" if law == analysis.verdict_basis["law"] else law,
        f"{sum(row['identified'] for row in rows)} of {len(rows)}",
        percent(max(rmses, default=None)),
        percent(max(errors, key=abs, default=None), with_sign=True),
        p_value(min(p_values, default=None)),
        *map(_count_inside, steps_by_distance),
    ]


def _count_inside(steps: Sequence[Entry]) -> str:
    """How many held-out rows lie inside their prediction intervals: `3 of 4`."""
    num_inside = sum(step["n_inside"] for step in steps)
    num_rows = sum(step["n_rows"] for step in steps)
    return f"{num_inside} of {num_rows}" if steps else NO_VALUE


def _steps(entry: Entry) -> list[Entry]:
    """The predictions of held-out sizes, each by a fit to smaller sizes only."""
    return (entry.get("extrapolation") or {}).get("steps") or []


def _steps_to_next_size(entry: Entry) -> list[Entry]:
    """The predictions one size ahead whose errors and limits are all present."""
    steps = [step for step in _steps(entry) if step["sizes_ahead"] == 1]
    return [step for step in steps if has_complete_lists(step, "errors_log", "low_log", "high_log")]


def extrapolation_figure(analysis: Directory) -> Figure | None:
    """Errors of predicting each held-out size from all smaller sizes, with intervals: one panel per law."""
    entries = [entry for entry in analysis.entries() if _steps_to_next_size(entry)]
    if not entries:
        return None
    main_law = analysis.verdict_basis["law"]
    laws = sorted(fitted_laws(entries), key=lambda law: law != main_law)  # the law of the verdict comes first
    steps = [step for entry in entries for step in _steps_to_next_size(entry)]
    interval = f"{analysis.level:.0%} interval"
    title = f"Next size predicted from all smaller sizes: {_count_inside(steps)} results inside the {interval}"
    figure, axes = panels(
        len(laws), title, ncols=3, width=3.15, height=2.7, margins=Margins(left=0.62), families=analysis.families
    )
    for axis, law in zip(axes, laws, strict=True):
        fits = [entry for entry in entries if entry["law"] == law]
        _extrapolation_panel(axis, analysis, fits)
        inside = _count_inside([step for entry in fits for step in _steps_to_next_size(entry)])
        axis.set_title(f"{law}{' (law of the verdict)' if law == main_law else ''}: {inside} inside", fontsize=8.5)
    label_left(axes, "prediction error (%)")
    return figure


def _extrapolation_panel(axis: Axes, analysis: Directory, entries: list[Entry]) -> None:
    """Draw one law. Marks of one size are shifted sideways, by family and by row, so that they do not overlap."""
    variable = entries[0]["extrapolation"]["variable"]
    marks = []  # family, x, error, low and high end of the interval
    for entry in entries:
        family_shift = analysis.families.index(entry["family"]) - (len(analysis.families) - 1) / 2  # 0 on average
        for step in _steps_to_next_size(entry):
            log_errors = zip(step["errors_log"], step["low_log"], step["high_log"], strict=True)
            for row_index, log_error_and_limits in enumerate(log_errors):
                x = step["held_out"] * 1.05 ** (family_shift + 0.5 * row_index / step["n_rows"])
                marks.append((entry["family"], x, *(100 * number for number in log_error_and_limits)))  # percent
    _, positions, errors, lows, highs = zip(*marks, strict=True)
    # The median half width, because one very wide interval would squeeze all others into a strip.
    reach = 1.25 * max(max(map(abs, errors)), float(np.median(np.subtract(highs, lows))) / 2)
    axis.axhline(0, color=INK, lw=0.8)
    for family, x, error, low, high in marks:
        colour = analysis.colour(family)
        draw_interval(axis, (low, high), x, (-reach, reach), vertical=True, color=colour, lw=1.2, alpha=0.7)
        axis.plot(x, error, ls="", marker=analysis.marker(family), ms=4.5, mec=colour, mew=1.1,
                  mfc=colour if low <= 0 <= high else "white")  # fmt: skip
    axis.set_ylim(-reach, reach)
    log_axis(axis.xaxis, min(positions) / 1.2, max(positions) * 1.2, as_counts=variable != "C")
    axis.set_xlabel(f"held-out {analysis.axis_name(variable)}", fontsize=8)


def fit_table(entries: Sequence[Entry]) -> str:
    """A table with one row per fit, followed by paragraphs on the fits that were refused."""
    columns: Columns = {
        "family": family_name,
        "law": itemgetter("law"),
        "exponent": exponents_text,
        "floor": floor_text,
        "R2": lambda entry: format_number(entry["r2"]),
        "rmse": lambda entry: percent(entry["rmse_log"]),
        "AICc": lambda entry: format_number(entry["aicc"]),
        "status": status,
    }
    fitted = table_by_column([entry for entry in entries if entry["fitted"]], columns)
    return "\n\n".join(filter(None, [fitted, refused_fits(entries)]))


def refused_fits(entries: Sequence[Entry]) -> str:
    """The fits that were refused, with one paragraph per reason."""
    reasons: dict[str, list[Entry]] = {}
    for entry in entries:
        if not entry["fitted"]:
            reasons.setdefault("; ".join(entry["notes"]).removeprefix("not fitted: "), []).append(entry)
    return "\n\n".join(
        f"Not fitted: {laws_and_families(fits)}: {escape_markdown(reason)}." for reason, fits in reasons.items()
    )


def convergence_section(analysis: Directory) -> Section:
    """Whether the optimizer found the optimum of every fit."""
    section = Section("Appendix: convergence of all fits").add(
        "Each fit is started from many points. `starts` is the share of starts that reached the best objective. The "
        "gradient norm is relative and is near 0 at an optimum. A large condition number means that parameters trade "
        "off against each other. `unit` says what one observation is: a run, or the mean over the seeds of a cell.",
        refused_fits(analysis.entries()),
    )
    columns: Columns = {
        "family": family_name,
        "law": itemgetter("law"),
        "objective": lambda entry: format_number(entry["objective"], 6),
        "starts": starts_text,
        "gradient norm": lambda entry: format_number(entry["gradient_norm"], 2),
        "condition number": lambda entry: format_number(entry["condition_number"], 3),
        "at bound": lambda entry: ", ".join(entry["at_bound"]) or "none",
        "converged": lambda entry: "yes" if entry["converged"] else "**NO**",
        "identified": lambda entry: "yes" if entry["identified"] else f"no: {', '.join(entry['not_identified'])}",
        "interval method": lambda entry: entry["covariance_method"].replace("_", " "),
        "unit": itemgetter("unit"),
        "runs": lambda entry: str(entry["n_runs"]),
    }
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in analysis.fits:
        group = groups.setdefault((entry["target"], entry["size"] or "", entry["loss"]), [])
        if entry["fitted"]:
            group.append(entry)
    for (target, size, loss), entries in groups.items():
        heading = f"{target_name(target)}, {size_words(size) if size else 'laws without N'}, {LOSS_NAMES[loss]}"
        section.add(folded(f"{heading} ({len(entries)} fits)", table_by_column(entries, columns)))
    return section


def starts_text(entry: Entry) -> str:
    """The share of a fit's starts that reached the best objective."""
    share_agreeing = entry["starts_agreeing"]
    return f"{share_agreeing:.0%} of {entry['starts']}" if is_number(share_agreeing) else NO_VALUE
