"""Write the report of an analysis directory: report.md and report.html, which embeds the figures."""

from collections.abc import Callable
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

from slm.analysis.report import (
    accuracy,
    compare,
    compute,
    curves,
    diagnostics,
    exponents,
    isoflop,
    levels,
    overlay,
    paired,
    predictions,
    rates,
    selection,
    ship,
    verdict,
)
from slm.analysis.report.directory import Directory
from slm.analysis.report.interactive import FIGURE, interactive_figures
from slm.report.formulas import letters_apart_from
from slm.report.html import html_page
from slm.report.markdown import Section, bullets
from slm.report.style import Figure, draw_one
from slm.runtime.files import write_atomically
from slm.runtime.pool import map_in_processes
from slm.runtime.words import escape_markdown
from slm.scaling.describe import fitted_laws

METHODS = {
    "First sentence": "with several families, it compares the family with the lowest loss at the middle size with the "
    "first family of the table; if the first family has the lowest loss, with the family closest to it. This rule does "
    "not depend on what is significant, and p-values are adjusted over all pairs. Intervals are of this pair alone.",
    "Fits": "least squares or Huber's loss of log residuals, from a grid of starts, with exact gradients. Relative "
    "errors have the same weight at all sizes, which assumes the same relative scatter at all sizes. Residuals of an "
    "accuracy are those of arcsin √error, on which a share of n questions scatters alike whatever it is (Anscombe "
    "1948); their percents are hundredths of that, near those of the accuracy between 0.2 and 0.8.",
    "Intervals of laws that are straight in logs": "Student's t. Exact if the law holds and the scatter about it is "
    "normal, independent and equal at all sizes.",
    "Intervals of other laws": "profile likelihood (Bates & Watts 1988): the values that a t test does not reject "
    "when all other parameters are refitted. Nearly exact if the curvature of the law is small. `open` means that the "
    "data do not bound this end.",
    "Cluster bootstrap": "resamples whole runs, so that checkpoints of one run stay together. Used for Huber's loss "
    "and if several rows belong to one run, otherwise as a cross-check. Too narrow with few runs.",
    "Wild bootstrap": "a cross-check, with residuals times random weights (Webb's six points) at the same sizes.",
    "Bands, predictions, gain of doubling": "t for laws that are straight in logs, profile likelihood for the others. "
    "An interval for a new run adds the scatter of one run, like an independent error with its own t (Zou & Donner "
    "2008). Each interval assumes that its law is true; only the "
    "range over all laws that the data do not reject makes no such assumption.",
    "Not identified": "an exponent whose interval is open or too wide (the ratio of its ends exceeds a set factor), "
    "whose estimate is at a bound, or whose fit has too few sizes. Such an exponent is never shown as a number.",
    "Lack of fit": "an F test that compares the deviations from the law with the scatter between seeds. If it is "
    "significant, the means over seeds are fitted.",
    "Calibrated p of nested models": "compares the likelihood ratio with the ratios of data simulated under the "
    "restricted model (parametric bootstrap), because the chi-square limit is inaccurate with few runs. The smallest "
    "possible p is 1 / (number of simulations + 1).",
    "Pairs": "Welch's method, in which each family keeps its own scatter, adjusted over all pairs by Holm (1979).",
    "Mixed-effects summary": "REML, with the interval of Hartung & Knapp. The families are treated as a random sample.",
    "Choice of law": "AICc and BIC of least-squares fits to single runs (Burnham & Anderson 2002), and the error of "
    "predicting the largest size, which AICc does not measure.",
    "IsoFLOP profiles": "approach 2 of Hoffmann et al. 2022. Budgets are given, or found as groups of runs with equal "
    "FLOPs. Each parabola is fitted to the sizes within a factor of 5 of the best (a wider range biases the minimum: "
    "Czech et al. 2026). A budget whose minimum lies outside its sizes is dropped. Exponents have t intervals.",
    "Allocation": "equation 4 of Hoffmann et al. 2022 for `chinchilla`, a numeric minimum for other laws in N and D.",
}


def methods_section(analysis: Directory) -> Section:
    """The methods with their sources and limits, and the laws with their sources."""
    sources = {entry["law"]: escape_markdown(entry["source"]) for entry in analysis.fits}
    laws = [f"`{law}`: {analysis.equation(law)}. {sources[law]}" for law in fitted_laws(analysis.fits)]
    methods = [f"**{name}**: {words}" for name, words in METHODS.items()]
    return Section("Methods and their limits").add(bullets(methods), "Laws:", bullets(laws))


def reproduce_section(analysis: Directory) -> Section:
    """The command of the analysis, and the files that hold all numbers."""
    command = "\n".join(f"    {line}" for line in analysis.settings.get("command", "").splitlines())
    return Section("How to reproduce").add(
        command,
        "Every number in this report is in fits.json, comparison.json or audit.json in the same directory; the rows "
        "are in results.csv." + (" All settings are in settings.json." if analysis.settings else ""),
    )


SECTIONS = (
    verdict.verdict_section, ship.ship_section, verdict.analysed_section, verdict.published_section,
    paired.paired_section,
    paired.power_section, levels.levels_section, accuracy.accuracy_section, exponents.exponents_section,
    diagnostics.diagnostics_section, compare.comparison_section, exponents.references_section, overlay.overlay_section,
    verdict.audit_section, selection.selection_section, predictions.predictions_section, predictions.given_section,
    predictions.doubling_section, compute.compute_section, rates.rates_section, methods_section, reproduce_section,
    selection.convergence_section,
)  # fmt: skip
"""In the order in which a reviewer asks. The first is the first screen; the page folds the others."""
SECTIONS_WITHOUT_LAW = (
    verdict.verdict_section, ship.ship_section, levels.levels_section, verdict.analysed_section, verdict.audit_section,
    overlay.overlay_section, rates.rates_section, reproduce_section,
)  # fmt: skip
"""The sections of a table to which no law was fitted."""


def make_report(directory: Path) -> None:
    """Draw every figure and write the report, using only the files in `directory`."""
    analysis = Directory.read(directory)
    # The interactive figure is made beside the others, and first because it takes as long as three of them.
    makers: list[Callable[[], Any]] = [partial(interactive_figures, analysis)]
    makers += [partial(draw_one, directory, name, partial(make, analysis)) for name, make in FIGURES.items()]
    interactive, *_ = map_in_processes(call, makers, at_once=True)
    write_report(analysis, interactive)


def write_report(analysis: Directory, interactive: tuple[str, dict[str, str]]) -> None:
    """Write report.md and report.html with the figures that are there; `interactive` is from `interactive_figures`."""
    directory = analysis.path
    name = analysis.comparison["table"]
    title = "Scaling analysis" + (f" of {name}" if name else "")
    makers = SECTIONS if analysis.has_law else SECTIONS_WITHOUT_LAW
    sections = [section for make in makers if (section := make(analysis)) and section.blocks]
    text = "\n\n".join([f"# {escape_markdown(title)}", *map(Section.markdown, sections)]) + "\n"
    write_atomically(directory / "report.md", text)
    has_static = (directory / "figures" / f"{FIGURE}.png").exists()
    head, fragments = interactive if has_static else ("", {})
    formulas = {entry["equation"] for entry in analysis.fits}
    formulas |= letters_apart_from(analysis.families)
    num_open = 1 if analysis.has_law else 2  # without a law, the losses are the answer
    page = html_page(title, text, directory, fragments, head=head, formulas=formulas, num_open=num_open)
    write_atomically(directory / "report.html", page)


FIGURES: dict[str, Callable[[Directory], Figure | None]] = {
    "curves": curves.curves_figure, "accuracy": accuracy.accuracy_figure, "overlay": overlay.overlay_figure,
    "residuals": diagnostics.residuals_figure,
    "exponents": exponents.exponents_figure, "other_exponents": exponents.other_exponents_figure,
    "profiles": diagnostics.profiles_figure,
    "extrapolation": selection.extrapolation_figure, "doubling": predictions.doubling_figure,
    "ratios": paired.ratios_figure, "differences": compare.differences_figure, "pareto": compute.pareto_figure,
    "isoflop": isoflop.isoflop_figure, "ship": ship.ship_figure, "rates": rates.rates_figure,
}  # fmt: skip
