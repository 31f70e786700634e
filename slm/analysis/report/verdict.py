"""Sections that open the report: the verdict, the table, the audit, and the claims of the published study."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from slm.analysis.report.directory import Directory
from slm.report.markdown import Section, bullets, table_by_column
from slm.runtime.words import LOSS_NAMES, TARGET_NAMES, amount, escape_markdown, listed, plural, size_words
from slm.scaling.describe import Entry, family_name


def verdict_section(analysis: Directory) -> Section:
    """The answer and its conditions."""
    verdict = analysis.comparison["verdict"]
    return Section("Verdict").add(
        f"**{escape_markdown(verdict['headline'])}**",
        bullets(map(escape_markdown, verdict["sentences"])),
        f"Matched-budget audit: **{_audit_label(analysis)}**.",
    )


def _audit_label(analysis: Directory) -> str:
    if not analysis.audit:
        return "NOT AUDITED"
    if len(analysis.families) < 2:
        return "ONE FAMILY, nothing to compare"
    return "CONTROLLED" if analysis.audit["controlled"] else "NOT CONTROLLED"


def analysed_section(analysis: Directory) -> Section:
    """The table, and how the law of the verdict was chosen."""
    main, comparison = analysis.primary, analysis.comparison
    name = comparison["table"]
    rows, runs, cells = (plural(comparison[f"n_{thing}s"], thing) for thing in ("row", "run", "cell"))
    families = plural(len(analysis.families), "family", "families")
    residuals = "" if main["loss"] == "linear" else " of log residuals"
    why = f" It is the law of the verdict because {escape_markdown(main['why'])}." if main.get("why") else ""
    skipped = [f"`{row['law']}`: {escape_markdown(row['reason'])}" for row in comparison["skipped"]]
    return Section("What was analysed").add(
        (f"Table `{escape_markdown(name)}`: " if name else "")
        + f"{rows} of {runs} in {cells} (a cell is a size and budget; its runs differ in seed), of {families}.",
        f"The verdict is about **{analysis.equation(main['law'])}** (`{main['law']}`), where L is "
        f"{TARGET_NAMES[main['target']]} and N counts {size_words(main['size'])}, fitted by "
        f"{LOSS_NAMES[main['loss']]}{residuals}.{why}",
        table_by_column(
            analysis.own,
            {
                "family": family_name,
                "runs": lambda entry: str(entry["n_runs"]),
                "cells": lambda entry: str(entry["n_cells"]),
                "range": _range,
            },
        ),
        bullets(map(escape_markdown, comparison["notes"])),
        f"Not fitted: {'; '.join(skipped)}." if skipped else "",
    )


def _range(entry: Entry) -> str:
    return "; ".join(f"{v} from {amount(v, low)} to {amount(v, high)}" for v, (low, high) in entry["range"].items())


def audit_section(analysis: Directory) -> Section:
    """Whether the families differ in nothing else."""
    section, audit = Section("Matched-budget audit"), analysis.audit
    if not audit:
        return section.add("**NOT AUDITED**: the directory holds no audit.")
    unknown = [escape_markdown(item["what"]) for item in audit["unknown"]]
    return section.add(
        f"**{_audit_label(analysis)}**",
        *_sentences("Differs:", audit["violations"]),
        *_sentences("Varies within the family:", audit["varies"]),
        f"Unknown, because the table does not say for every run: {listed(unknown)}." if unknown else "",
        *_sentences("Matched:", audit["checked"]),
    )


def _sentences(heading: str, items: Sequence[Entry]) -> list[str]:
    return [heading, bullets(escape_markdown(item["sentence"]) for item in items)] if items else []


def published_section(analysis: Directory) -> Section | None:
    """The claims of the published study beside what its rows say."""
    claims = analysis.comparison["published"]
    if not claims:
        return None
    shown = ({key: escape_markdown(text) for key, text in claim.items()} for claim in claims)
    columns = {"the study's claim": itemgetter("claim"), "what the rows say": itemgetter("finding")}
    return Section("The published study, reviewed").add(
        "What the study says, and what the same rows say when analysed. Each figure was computed from these rows.",
        table_by_column(shown, columns),
    )
