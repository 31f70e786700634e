"""Tables of fits, and sections that judge laws and fits: choice of law, extrapolation with its figure, certificates."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from slm.analysis.report.directory import Directory
from slm.report.markdown import Columns, Section, folded, folded_if_long, table, table_by_column
from slm.report.style import INK, Axes, Figure, Margins, log_axis, panels, tick_label
from slm.runtime.words import (
    LOSS_NAMES,
    NO_VALUE,
    TARGET_NAMES,
    escape_markdown,
    format_number,
    is_number,
    p_value,
    percent,
    size_words,
    yes_or_no,
)
from slm.scaling.describe import Entry, exponents_text, family_name, fitted_laws, floor_text, has_complete_lists, status


def selection_section(analysis: Directory) -> Section:
    """AICc, BIC, extrapolation and lack of fit of each law."""
    rows = analysis.comparison["selection"]
    columns: Columns = {
        "law": itemgetter("law"),
        "family": family_name,
        "AICc": lambda row: format_number(row["aicc"], 5),
        "BIC": lambda row: format_number(row["bic"], 5),
        "rmse": lambda row: percent(row["rmse_log"]),
        "extrapolation error": lambda row: percent(row["extrapolation_error_log"], sign=True),
        "inside its interval": lambda row: yes_or_no(row["extrapolation_inside"]),
        "identified": lambda row: yes_or_no(row["identified"]),
    }
    by_family = table_by_column([row for row in rows if is_number(row["rmse_log"])], columns)
    return Section("Which law").add(
        "Lower AICc and BIC are better, between laws of the same target; a difference under about 2 is no evidence. "
        "The extrapolation column predicts the largest size from the smaller ones, which is the harder test. The last "
        f"columns count rows of held-out sizes in the {analysis.level:.0%} interval that the smaller sizes gave for "
        "them: the next size, the one after it, and the third.",
        _laws(analysis, rows),
        folded_if_long("AICc, BIC and errors of every law and family", by_family, len(rows)),
        analysis.figure(
            "extrapolation",
            "Each of the largest sizes predicted from all smaller ones, by law and family: the error, and the "
            "prediction interval less the measured value. Hollow: the interval does not contain that value.",
        ),
    )


def _laws(analysis: Directory, rows: Sequence[Entry]) -> str:
    """One row a law, over all families."""
    header = ("law", "identified in", "rmse, worst family", "extrapolation error, worst family",
              "lack of fit, least p", "inside, next size", "second next", "third next")  # fmt: skip
    by_law = {law: [row for row in rows if row["law"] == law] for law in fitted_laws(analysis.fits)}
    return table(header, [_law_row(analysis, law, law_rows) for law, law_rows in by_law.items() if law_rows])


def _law_row(analysis: Directory, law: str, rows: Sequence[Entry]) -> list[str]:
    entries = analysis.entries(law=law)
    rmses = [row["rmse_log"] for row in rows if is_number(row["rmse_log"])]
    errors = [row["extrapolation_error_log"] for row in rows if is_number(row["extrapolation_error_log"])]
    tests = [entry.get("lack_of_fit") or {} for entry in entries]
    steps = [[s for e in entries for s in _steps(e) if s["sizes_ahead"] == ahead] for ahead in (1, 2, 3)]
    return [
        f"**{law}** (the verdict's)" if law == analysis.primary["law"] else law,
        f"{sum(row['identified'] for row in rows)} of {len(rows)}",
        percent(max(rmses, default=None)),
        percent(max(errors, key=abs, default=None), sign=True),
        p_value(min((test["p"] for test in tests if is_number(test.get("p"))), default=None)),
        *(_inside(ahead) if ahead else NO_VALUE for ahead in steps),
    ]


def _inside(steps: Sequence[Entry]) -> str:
    """How many of the held-out rows lie in their intervals."""
    return "{} of {}".format(*(sum(step[key] for step in steps) for key in ("n_inside", "n_rows")))


def _steps(entry: Entry) -> list[Entry]:
    """Predictions of held-out sizes from all sizes below them."""
    return (entry.get("extrapolation") or {}).get("steps") or []


def _next_sizes(entry: Entry) -> list[Entry]:
    """Those one size ahead that have all their numbers."""
    steps = [step for step in _steps(entry) if step["sizes_ahead"] == 1]
    return [step for step in steps if has_complete_lists(step, "errors_log", "low_log", "high_log")]


def extrapolation_figure(analysis: Directory) -> Figure | None:
    """For each law: held-out sizes predicted from all smaller ones, errors with their prediction intervals."""
    entries = [entry for entry in analysis.entries() if _next_sizes(entry)]
    if not entries:
        return None
    laws = fitted_laws(entries)
    steps = [step for entry in entries for step in _next_sizes(entry)]
    interval = f"{analysis.level:.0%} interval"
    title = f"Next size predicted from all smaller ones: {_inside(steps)} results in the {interval}"
    figure, axes = panels(
        len(laws), title, columns=3, width=2.6, height=2.4, margins=Margins(left=0.62), families=analysis.families
    )
    for axis, law in zip(axes, laws, strict=True):
        _extrapolation_panel(axis, analysis, [entry for entry in entries if entry["law"] == law])
        axis.set_title(law)
    for axis in axes[::3]:
        axis.set_ylabel("predicted above measured (%)")
    return figure


def _extrapolation_panel(axis: Axes, analysis: Directory, entries: list[Entry]) -> None:
    """Families and rows of one size stand beside each other."""
    variable, places, errors, halves = entries[0]["extrapolation"]["variable"], [], [], []
    for entry in entries:
        colour, marker = analysis.colour(entry["family"]), analysis.marker(entry["family"])
        shift = analysis.families.index(entry["family"]) - (len(analysis.families) - 1) / 2
        for step in _next_sizes(entry):
            log_errors = zip(step["errors_log"], step["low_log"], step["high_log"], strict=True)
            for place, values in enumerate(log_errors):
                error, low, high = (100 * value for value in values)
                x = step["held_out"] * 1.05 ** (shift + 0.5 * (place / step["n_rows"]))
                axis.plot([x, x], [low, high], color=colour, lw=1.2, alpha=0.7)
                axis.plot(x, error, ls="", marker=marker, ms=4.5, mec=colour, mew=1.1,
                          mfc=colour if low <= 0 <= high else "white")  # fmt: skip
                places.append(x)
                errors.append(abs(error))
                halves.append((high - low) / 2)
    axis.axhline(0, color=INK, lw=0.8)
    # The median, because an interval of one degree of freedom would squeeze all others into a strip.
    reach = 1.25 * max(max(errors), float(np.median(halves)))
    axis.set_ylim(-reach, reach)
    log_axis(axis.xaxis, min(places) / 1.2, max(places) * 1.2, counts=variable != "C")
    ticks = axis.get_xticks()[:: 1 + (len(axis.get_xticks()) > 3)]
    axis.set_xticks(ticks, labels=[tick_label(at, counts=variable != "C") for at in ticks])
    axis.set_xlabel(f"held-out {analysis.axis_name(variable)}", fontsize=8)


def fit_table(entries: Sequence[Entry]) -> str:
    """Fits, one a row, and what could not be fitted below."""
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
    parts = [table_by_column([entry for entry in entries if entry["fitted"]], columns), not_fitted(entries)]
    return "\n\n".join(filter(None, parts))


def not_fitted(entries: Sequence[Entry]) -> str:
    """Fits that were refused, by reason."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        if not entry["fitted"]:
            reason = "; ".join(entry["notes"]).removeprefix("not fitted: ")
            reasons.setdefault(reason, []).append(f"{entry['law']} ({entry['family']})")
    return "\n\n".join(
        f"Not fitted: {escape_markdown(', '.join(fits))}: {escape_markdown(reason)}."
        for reason, fits in reasons.items()
    )


def certificates_section(analysis: Directory) -> Section:
    """How far each optimum can be trusted, for every fit."""
    section = Section("Appendix: certificates of all fits").add(
        "Each fit is started from many places. `starts` is the share that reached the best objective; the gradient "
        "norm is relative and near 0 at an optimum; a large condition number means that parameters trade off against "
        "each other. `unit` is what counts as independent: a run, or the mean over the seeds of a cell.",
        not_fitted(analysis.entries()),
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
        "intervals by": lambda entry: entry["covariance_method"].replace("_", " "),
        "unit": itemgetter("unit"),
        "runs": lambda entry: str(entry["n_runs"]),
    }
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in analysis.fits:
        group = groups.setdefault((entry["target"], entry["size"] or "", entry["loss"]), [])
        group += [entry] if entry["fitted"] else []
    for (target, size, loss), entries in groups.items():
        what = f"{TARGET_NAMES[target]}, {size_words(size) if size else 'laws without N'}, {LOSS_NAMES[loss]}"
        section.add(folded(f"{what} ({len(entries)} fits)", table_by_column(entries, columns)))
    return section


def starts_text(entry: Entry) -> str:
    """The share of a fit's starts that reached the best objective."""
    share = entry["starts_agreeing"]
    return f"{share:.0%} of {entry['starts']}" if is_number(share) else NO_VALUE
