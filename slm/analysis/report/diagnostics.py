"""The section on how the fits of the verdict may fail, with its figures: residuals and profile likelihoods."""

from operator import itemgetter

import numpy as np
from scipy import stats

from slm.analysis.report.curves import verdict_equation
from slm.analysis.report.directory import Directory
from slm.report.markdown import Section
from slm.report.style import GREY, INK, Axes, Figure, Margins, label_left, log_axis, panels, short_name
from slm.runtime.words import interval, is_number, percent, plural
from slm.scaling.describe import Entry, has_complete_lists, is_identified


def diagnostics_section(analysis: Directory) -> Section:
    """The figures of the fits that are not on the first screen."""
    residuals = (
        "Residuals above 0 lie above the law. A pattern in all families is an effect that the law lacks. Grey: two "
        "standard deviations of the family's own residuals."
    )
    profiles = (
        "|t| of each value, with all other parameters refitted. Where |t| is below the dotted line, the value lies in "
        f"the {analysis.level:.0%} interval (shaded)."
    )
    return Section("Residuals and profiles").add(
        analysis.figure("residuals", residuals), analysis.figure("profiles", profiles)
    )


def residuals_figure(analysis: Directory) -> Figure | None:
    """Log residuals of each family against each variable of the law that is not constant, with the family's scatter."""
    entries = [entry for entry in analysis.verdict_fits if has_complete_lists(entry.get("points"), "value", "residual")]
    if not entries:
        return None
    ranges: dict[str, tuple[float, float]] = {}  # of each variable, unless it is constant
    for variable in entries[0]["variables"]:
        values = [value for entry in entries for value in entry["points"].get(variable, [])]
        if values and max(values) > min(values) * 1.001:
            ranges[variable] = min(values), max(values)
    drawn = [(variable, entry) for variable in ranges for entry in entries]
    title = f"Residuals of {verdict_equation(analysis)}: root mean square {_rmse_text(entries)}"
    width = 6.2 if len(drawn) == 1 else 3.15
    figure, axes = panels(len(drawn), title, ncols=3, width=width, height=2.5, families=analysis.families)
    reach = 1.1 * max(100 * abs(residual) for entry in entries for residual in entry["points"]["residual"])
    reach = max([reach, *(220 * entry["sigma_log"] for entry in entries if is_number(entry["sigma_log"]))])
    for axis, (variable, entry) in zip(axes, drawn, strict=True):
        family, points = entry["family"], entry["points"]
        if is_number(entry["sigma_log"]):
            two_sigma = 200 * entry["sigma_log"]  # percent
            axis.axhspan(-two_sigma, two_sigma, color="#EEEEEE", lw=0, zorder=0)
        axis.axhline(0, color=INK, lw=0.8)
        axis.plot(points[variable], 100 * np.array(points["residual"], float), ls="", ms=4.5,
                  marker=analysis.marker(family), color=analysis.colour(family))  # fmt: skip
        low, high = ranges[variable]
        log_axis(axis.xaxis, low / 1.15, high * 1.15, as_counts=variable != "C")
        axis.set_ylim(-reach, reach)
        axis.set_xlabel(analysis.axis_name(variable))
        axis.set_title(f"{short_name(family)}: {percent(entry['rmse_log'])}", fontsize=8.5)
    is_accuracy = entries[0].get("kind") == "accuracy"
    label_left(axes, "residual of arcsin √error (%)" if is_accuracy else "residual (%)")
    return figure


def _rmse_text(entries: list[Entry]) -> str:
    """The root mean squares of the residuals: one, or the smallest and the largest with their families."""
    known = sorted((entry for entry in entries if is_number(entry["rmse_log"])), key=itemgetter("rmse_log"))
    if len(known) < 2:
        return percent(known[0]["rmse_log"]) if known else "unknown"
    return " to ".join(f"{percent(row['rmse_log'])} ({short_name(row['family'])})" for row in (known[0], known[-1]))


def profiles_figure(analysis: Directory) -> Figure | None:
    """|t| against each exponent of the law of the verdict and, for a power law, of the same law with a floor."""
    main_law = analysis.verdict_basis["law"]
    law_with_floor = main_law.replace("power", "power_floor")  # no fit has this name if the main law has a floor
    profiles = [
        (entry, name)
        for law in dict.fromkeys([main_law, law_with_floor])
        for entry in analysis.entries(law=law)
        for name, profile in (entry.get("profiles") or {}).items()
        if has_complete_lists(profile, "values") and sum(map(is_number, profile["t"])) > 2
    ]
    if not profiles:
        return None
    families = plural(len({entry["family"] for entry, _ in profiles}), "family", "families")
    num_unidentified = sum(not is_identified(entry, name) for entry, name in profiles)
    unidentified = f"{num_unidentified} of {len(profiles)} are not identified"
    outcome = unidentified if num_unidentified else "every interval is bounded"
    title = f"Profile likelihoods of exponents, {families}: {outcome}"
    margins = Margins(left=0.5, right=0.15, top=0.45)
    figure, axes = panels(len(profiles), title, ncols=4, width=2.35, height=2.4, margins=margins)
    for axis, (entry, name) in zip(axes, profiles, strict=True):
        _draw_profile(axis, analysis, entry, name)
    label_left(axes, "|t|")
    return figure


def _draw_profile(axis: Axes, analysis: Directory, entry: Entry, name: str) -> None:
    profile, identified = entry["profiles"][name], is_identified(entry, name)
    colour = analysis.colour(entry["family"])
    values, t = np.array(profile["values"], float), np.abs(np.array(profile["t"], float))
    values, t = values[np.isfinite(t)], t[np.isfinite(t)]
    critical = float(stats.t.ppf(0.5 + analysis.level / 2, max(1, entry["degrees_of_freedom"] or 1)))
    shown = values[t <= 2 * critical]
    low, high = entry["ci95"][name]
    left = low if is_number(low) else shown.min()  # an open end is drawn up to where |t| is twice the critical value
    right = high if is_number(high) else shown.max()
    axis.axvspan(left, right, color=colour if identified else GREY, alpha=0.15, lw=0)
    axis.plot(values, t, color=colour, lw=1.6, ls="-" if identified else "--")
    axis.axhline(critical, color=INK, lw=0.8, ls=":")
    # In the middle of the interval, where the curve is below the line.
    axis.annotate(f"{analysis.level:.0%}: {critical:.2f}", ((left + right) / 2, critical), (0, 2), fontsize=7,
                  textcoords="offset points", ha="center")  # fmt: skip
    axis.set_ylim(0, 2.2 * critical)
    centre = float(values[np.argmin(t)])
    reach = 1.6 * max(right - centre, centre - left, 1e-9)
    axis.set_xlim(max(values.min(), centre - reach), min(values.max(), centre + reach))
    axis.locator_params(axis="x", nbins=5)
    outcome = f" {interval(entry['ci95'][name], 3)}" if identified else ": NOT IDENTIFIED"
    axis.set_title(f"{short_name(entry['family'])}, {entry['law']}\n{name}{outcome}", fontsize=7.5)
    axis.set_xlabel(f"{name} (exponent in {entry['variable_of'][name]})")
