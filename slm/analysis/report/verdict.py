"""Sections that open the report (verdict, table, audit, published claims), and the summary that the terminal shows."""

import textwrap
from collections.abc import Sequence
from operator import itemgetter

from slm.analysis.report.accuracy import accuracy_lines
from slm.analysis.report.directory import Directory
from slm.analysis.report.findings import findings_table, key_line, provenance_line
from slm.analysis.report.levels import level_lines
from slm.analysis.report.overlay import overlay_lines
from slm.analysis.report.predictions import given_lines, prediction_lines
from slm.analysis.report.selection import starts_text
from slm.analysis.report.ship import ship_lines
from slm.report.markdown import Columns, Section, bullets, folded, side_by_side, table_by_column
from slm.runtime.words import LOSS_NAMES, amount, escape_markdown, format_number, join_names, plural, size_words
from slm.scaling.describe import Entry, exponent_text, family_name, is_identified, status

MAX_LINE_CHARACTERS = 300  # longer lines are broken in the terminal


def verdict_section(analysis: Directory) -> Section:
    """The first screen: the answer, how sure it is, the two figures behind it, and where the runs come from."""
    verdict = analysis.comparison["verdict"]
    level = f"{analysis.level:.0%}"
    curves = (
        "Marks: runs. Lines: the law, dashed beyond the data. In print also, where there are any: lighter bands for a "
        "new run, the floor (dotted), and published laws (grey)."
    )
    exponents = (
        f"How fast the {analysis.target_name} falls with size (a larger exponent is faster), with {level} intervals. "
        "An arrow: the interval is open or wider than the panel. Grey: not "
        "identified, or published."
    )
    return Section("Verdict").add(
        f"**{escape_markdown(verdict['headline'])}**",
        findings_table(analysis),
        key_line(analysis),
        side_by_side(analysis.figure("curves", curves), analysis.figure("exponents", exponents)),
        provenance_line(analysis),
        folded("What stands behind the first sentence", bullets(map(escape_markdown, verdict["sentences"]))),
    )


def _audit_label(analysis: Directory) -> str:
    if not analysis.audit:
        return "NOT AUDITED"
    if len(analysis.families) < 2:
        return "ONE FAMILY, nothing to compare"
    return "CONTROLLED" if analysis.audit["controlled"] else "NOT CONTROLLED"


def analysed_section(analysis: Directory) -> Section:
    """The table that was analysed, and the law that the verdict uses."""
    basis, comparison = analysis.verdict_basis, analysis.comparison
    name = comparison["table"]
    is_in_logs = basis["loss"] != "linear" and basis.get("kind") != "accuracy"
    residuals = " of log residuals" if is_in_logs else ""
    why = f" It is the law of the verdict because {escape_markdown(basis['why'])}." if basis.get("why") else ""
    skipped = [f"`{row['law']}`: {escape_markdown(row['reason'])}" for row in comparison["skipped"]]
    columns: Columns = {
        "family": family_name,
        "runs": lambda entry: str(entry["n_runs"]),
        "cells": lambda entry: str(entry["n_cells"]),
        "range": _ranges_text,
    }
    return Section("What was analysed").add(
        (f"Table `{escape_markdown(name)}`: " if name else "")
        + f"{_counts(analysis)}. The runs of a cell have the same family, size and budget, and differ in seed.",
        f"The verdict is about **{analysis.equation(basis['law'])}** (`{basis['law']}`), where L is "
        f"{analysis.target_name} and N counts {size_words(basis['size'])}, fitted by "
        f"{LOSS_NAMES[basis['loss']]}{residuals}.{why}"
        if analysis.has_law
        else f"N counts {size_words(basis['size'])}. No law was fitted.",
        table_by_column(analysis.verdict_fits if analysis.has_law else [], columns),
        bullets(map(escape_markdown, comparison["notes"])),
        f"Not fitted: {'; '.join(skipped)}." if skipped and analysis.has_law else "",
    )


def _counts(analysis: Directory) -> str:
    rows, runs, cells = (plural(analysis.comparison[f"n_{noun}s"], noun) for noun in ("row", "run", "cell"))
    return f"{rows} of {runs} in {cells}, of {plural(len(analysis.families), 'family', 'families')}"


def _ranges_text(entry: Entry) -> str:
    ranges = entry["range"].items()
    return "; ".join(f"{name} from {amount(name, low)} to {amount(name, high)}" for name, (low, high) in ranges)


def audit_section(analysis: Directory) -> Section:
    """Whether the families differ in anything other than what is compared."""
    section, audit = Section("Matched-budget audit"), analysis.audit
    if not audit:
        return section.add("**NOT AUDITED**: the directory has no audit.json.")
    return section.add(
        f"**{_audit_label(analysis)}**",
        *_sentences("Differences:", audit["violations"]),
        *_sentences("Differences within the family:", audit["varies"]),
        *map(escape_markdown, _unknown_settings(audit)),
        *_sentences("Matched:", audit["checked"]),
    )


def _unknown_settings(audit: Entry) -> list[str]:
    names = [item["what"] for item in audit["unknown"]]
    return [f"Unknown, because the table does not state them for every run: {join_names(names)}."] if names else []


def _sentences(heading: str, items: Sequence[Entry]) -> list[str]:
    return [heading, bullets(escape_markdown(item["sentence"]) for item in items)] if items else []


def published_section(analysis: Directory) -> Section | None:
    """The claims of the published study beside what its own rows show."""
    claims = analysis.comparison["published"]
    if not claims:
        return None
    escaped = ({key: escape_markdown(text) for key, text in claim.items()} for claim in claims)
    columns = {"claim of the study": itemgetter("claim"), "result of this analysis": itemgetter("finding")}
    return Section("The published study, reviewed").add(
        "Each claim of the study beside the result of this analysis for the same rows.",
        table_by_column(escaped, columns),
    )


def print_summary(analysis: Directory) -> None:
    """Print the counts, the fits, the predictions and tests that the settings ask for, the audit and the verdict."""
    comparison, verdict = analysis.comparison, analysis.comparison["verdict"]
    has_one_family = len(analysis.families) == 1
    claims = "\n".join(f"- {claim['claim']}\n    {claim['finding']}" for claim in comparison["published"] or ())
    differences = [item["sentence"] for item in analysis.audit["violations"]] + _unknown_settings(analysis.audit)
    blocks = [
        f"\n{_counts(analysis)}\n{bullets(comparison['notes'])}",
        _fit_lines(analysis, has_one_family) if analysis.has_law else "\n".join(level_lines(analysis)),
        "\n".join(accuracy_lines(analysis)),
        "\n".join(prediction_lines(analysis)),
        "\n".join(given_lines(analysis)),
        f"Claims of the published study, each with the result of this analysis:\n{claims}" if claims else "",
        "" if has_one_family else f"Matched-budget audit: {_audit_label(analysis)}\n{bullets(differences)}",
        "\n".join(overlay_lines(analysis)),
        "\n".join(ship_lines(analysis)),
        f"Verdict: {verdict['headline']}\n{bullets(verdict['sentences'])}",
        f"report: {analysis.path / 'report.html'}",
    ]
    text = "\n\n".join(block.rstrip("\n") for block in blocks if block)
    for line in text.split("\n"):
        print(textwrap.fill(line, MAX_LINE_CHARACTERS, subsequent_indent="    ", break_long_words=False))


def _fit_lines(analysis: Directory, has_one_family: bool) -> str:
    """The fits under the law of the verdict; for one family, under all laws, and of perplexity under the power law."""
    fits = analysis.entries() if has_one_family else analysis.verdict_fits
    if has_one_family and analysis.verdict_basis["target"] != "perplexity":
        fits = fits + analysis.entries(law="power", target="perplexity")
    lines = [f"  {entry['family']}, {entry['target']}, {entry['law']}: {_fit_text(entry)}" for entry in fits]
    lines.append(f"  {plural(len(analysis.fits) - len(fits), 'more fit')} in the report")
    lines += [f"  {row['law']}: skipped, {row['reason']}" for row in analysis.comparison["skipped"]]
    return "\n".join(lines)


def _fit_text(entry: Entry) -> str:
    if not entry["fitted"]:
        return str(entry["notes"][0])
    errors = {name: f" se {format_number(se, 3)}" for name, se in entry["se"].items() if is_identified(entry, name)}
    values = "; ".join(f"{name} {exponent_text(entry, name)}{errors.get(name, '')}" for name in entry["params"])
    if not entry["identified"]:
        return f"{values}; {status(entry).replace('**', '')}"
    r2, objective = format_number(entry["r2"]), format_number(entry["objective"], 6)
    return f"{values} (R2 {r2}, objective {objective} from {starts_text(entry)} starts)"
