"""What each method is, where it comes from and where it stops; and how to make the report again."""

from __future__ import annotations

from slm.analysis.report.directory import Directory
from slm.report.markdown import Section, bullets
from slm.runtime.words import escape_markdown
from slm.scaling.describe import laws_of

METHODS = {
    "Fits": "least squares, or Huber's loss, of log residuals from a grid of starts, with exact gradients. A "
    "logarithmic residual weighs relative errors alike at all sizes; it assumes that the scatter is of one relative "
    "size.",
    "Intervals of laws that are straight in logs": "Student's t, exact if the law and the equal, independent scatter "
    "are.",
    "Intervals of other laws": "profile likelihood (Bates & Watts 1988): the values that a t test does not reject "
    "when all else is refitted. Close to exact for small curvature; an end the data do not set is open.",
    "Cluster bootstrap": "whole runs are drawn, so checkpoints of one run stay together; used for Huber's loss and "
    "where rows share a run, else as a cross-check. Too narrow with few runs.",
    "Wild bootstrap": "residuals with random signs and weights (Webb's six points), as a cross-check on the design as "
    "it is.",
    "Bands, predictions, gain of doubling": "t for laws that are straight in logs, profile likelihood for the others; "
    "a new run adds the scatter of one run. Each takes its law for true; the range of all laws that the data do not "
    "reject does not.",
    "Not identified": "an exponent whose interval is open, or spans more than a set factor, or that ends at its "
    "bound, or whose fit leaves too few sizes to spare. It is then shown nowhere as a number.",
    "Lack of fit": "the F test of deviations from the law against the scatter between seeds. Where it is significant, "
    "fits use the means over seeds.",
    "Calibrated p of nested models": "the likelihood ratio is compared with that of data simulated under the "
    "restricted model (parametric bootstrap), since the chi-square limit is far off with few runs. Its least value is "
    "one over the number of simulations plus one.",
    "Pairs": "differences with one variance for both families, adjusted over all pairs by Holm (1979).",
    "Mixed-effects summary": "REML with the interval of Hartung & Knapp; it takes the families for a sample of "
    "families.",
    "Choice of law": "AICc and BIC of least-squares fits by run (Burnham & Anderson 2002), beside the error of "
    "predicting the largest size, which AICc does not know of.",
    "IsoFLOP profiles": "approach 2 of Hoffmann et al. 2022. A budget is declared, or it is a group of runs whose "
    "FLOPs agree and that clear gaps part from all others; the parabola goes through the sizes within a factor of 5 of "
    "the lowest (wide grids bias it: Czech et al. 2026), and budgets whose lowest point lies outside their runs are "
    "dropped. Exponents have t intervals over budgets.",
    "Allocation": "equation 4 of Hoffmann et al. 2022 for `chinchilla`, a numeric minimum for other laws in N and D.",
}


def methods_section(analysis: Directory) -> Section:
    """Methods with sources and limits, and the sources of the laws."""
    sources = {entry["law"]: escape_markdown(entry["source"]) for entry in analysis.fits}
    laws = [f"`{law}`: {analysis.equation(law)}. {sources[law]}" for law in laws_of(analysis.fits)]
    return Section("Methods and their limits").add(
        bullets([f"**{name}**: {words}" for name, words in METHODS.items()]), "Laws:", bullets(laws)
    )


def reproduce_section(analysis: Directory) -> Section:
    """The command, as the directory holds it."""
    section = Section("How to reproduce")
    command = analysis.settings.get("command")
    if command:
        section.add("\n".join(f"    {line}" for line in str(command).splitlines()))
    return section.add(
        "Every number in this report is in fits.json, comparison.json or audit.json beside it; the rows are in "
        "results.csv." + (" All settings are in settings.json." if analysis.settings else "")
    )
