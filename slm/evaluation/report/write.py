"""results.csv, report.md and figures/ of an evaluation directory, from the entries of results.json and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from slm.evaluation.report.figures import draw_figures
from slm.evaluation.report.quality import quality_section
from slm.evaluation.report.results import Entry, Measure, Results, measure_of, name_of, scores
from slm.evaluation.report.rows import rows, to_csv
from slm.evaluation.report.scaling import fits, gain_section, scaling_section
from slm.evaluation.report.speed import speed_section
from slm.evaluation.report.study import published_points, study_section
from slm.evaluation.report.summary import summary_section
from slm.evaluation.report.tasks import tasks_section
from slm.report.markdown import Section, bullets, figure, table
from slm.runtime.files import write_whole
from slm.runtime.words import NOTHING, escape_markdown, listed

PROTOCOL_NOTES = {
    "sliding": "every token is scored once, in the first window that reaches it, with the tokens of that window before "
    "it as context",
    "non_overlapping": "the text is cut into windows side by side, and the first tokens of each have little context",
}


def write_report(folder: Path, results: list[Entry], *, command: str) -> list[Path]:
    """Write results.csv, figures/*.png and .svg, and last report.md into `folder`; returns the files written.

    `results` are entries of results.json (docs/evaluation_results.md), whose parts may be missing. `command` is what
    was typed. Every file is written whole or not at all.
    """
    all_results = Results(results)
    csv_file, report = folder / "results.csv", folder / "report.md"
    write_whole(csv_file, to_csv(rows(all_results)))
    laws = fits(all_results)
    figures = draw_figures(folder, all_results, laws)
    sections = [
        summary_section(all_results, laws),
        quality_section(all_results),
        speed_section(all_results),
        tasks_section(all_results),
        scaling_section(all_results, laws, folder),
        gain_section(all_results, folder),
        study_section(all_results),
        checkpoints_section(all_results),
        methods_section(all_results, command),
        Section("Files").add(
            "Every number of this report is in, or follows from, results.json beside it; results.csv has them as a "
            "table with a row a checkpoint. docs/evaluation_results.md says what each column and key is."
        ),
    ]
    captions = _captions(all_results, laws)
    for section in sections:
        if section and section.title in captions:
            section.add(figure(folder, *captions[section.title]))
    write_whole(report, "\n\n".join(["# Evaluation", *(section.markdown() for section in sections if section)]) + "\n")
    return [csv_file, *figures, report]


def print_report(results: list[Entry], folder: Path) -> None:
    """Print the summary, and the warnings, tables and remarks of each section but pairs; and where the rest is."""
    all_results = Results(results)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(Markdown(summary_section(all_results, []).blocks[0]))
    for make_section in (quality_section, speed_section, tasks_section):
        section = make_section(all_results)
        for block in section.blocks[1:] if section else ():
            if block.startswith(("|", "- ", "**")) and not block.startswith(("| A |", "**Differences")):
                console.print(Markdown(block))
    console.print(f"report: {folder / 'report.md'}", markup=False, soft_wrap=True)


def _captions(results: Results, laws: Sequence[Entry]) -> dict[str, tuple[str, str]]:
    """By the title of a section, its figure and the caption."""
    bars = "Bars: 2 standard errors."
    law = " Grey: the power law of each family with three sizes or more, and its 95% band." if laws else ""
    has_published = results.fit_target == "loss" and published_points(results)
    diamonds = " Grey diamonds: the published figures, by the same protocol." if has_published else ""
    pareto = (
        "Bars: 2 standard errors, and the spread of the speed. Only speeds measured under the same conditions. A "
        "checkpoint is pale if another is at least as good in both, and better in one."
    )
    return {
        "Quality": ("size", bars + law + diamonds),
        "Speed and memory": ("pareto", pareto),
        "Tasks": ("tasks", bars),
    }


def checkpoints_section(results: Results) -> Section:
    """What was loaded, and the notes of loading and measuring."""
    header = ("checkpoint", "given as", "kind", "revision", "stored", "evaluated in", "device", "fingerprint")
    keys = ("name", "checkpoint", "kind", "revision", "stored_dtype")
    rows = []
    names_by_note: dict[str, list[str]] = {}
    for entry in results.entries:
        cells = [*(entry.get(key) for key in keys), _precision(entry), entry.get("device")]
        shown = [NOTHING if cell is None else escape_markdown(cell) for cell in cells]
        rows.append([*shown, f"`{entry.get('fingerprint')}`"])
        for note in dict.fromkeys(_notes(entry)):
            names_by_note.setdefault(note, []).append(name_of(entry))
    notes = bullets([f"{listed(names)}: {escape_markdown(note)}" for note, names in names_by_note.items()])
    return Section("Checkpoints").add(table(header, rows), notes)


def _precision(entry: Entry) -> str:
    autocast = entry.get("autocast")
    return f"{entry.get('dtype', NOTHING)}" + (f" under {autocast} autocast" if autocast else "")


def _notes(entry: Entry) -> list[str]:
    """Notes of the checkpoint, and of its scores; the measure is named where a note is not of all of them."""
    titles: dict[str, list[str]] = {}
    for score in scores(entry):
        for note in score.get("notes") or []:
            titles.setdefault(note, []).append(measure_of(score).title)
    num_scores = len(scores(entry))
    score_notes = [note if len(of) == num_scores else f"{listed(of)}: {note}" for note, of in titles.items()]
    return [*(entry.get("notes") or []), *score_notes]


def methods_section(results: Results, command: str) -> Section:
    """Protocols, errors, precision, versions, the command."""
    lines = [_protocol(measure, results) for measure in results.measures]
    lines.append(
        "Loss is in nats per token, perplexity its exponential, bits per byte the summed loss over ln 2 and the bytes "
        "of the text scored. ± is one standard error; that of perplexity is perplexity times that of the loss."
    )
    lines.append(f"Arithmetic: {_distinct(map(_precision, results.entries))}.")
    versions = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in (entry.get("versions") or {}).items() if number)
        for entry in results.entries
    )
    named = [text for text in versions if text]
    if named:
        differ = " **They differ.**" if len(named) > 1 else ""
        lines.append(f"Versions: {escape_markdown('; or '.join(named))}.{differ}")
    times = sorted(str(entry["evaluated_at"]) for entry in results.entries if entry.get("evaluated_at"))
    if times:
        lines.append(f"Evaluated {times[0]}" + (f" to {times[-1]}." if times[-1] != times[0] else "."))
    indented = "\n".join(f"    {line}" for line in command.splitlines())
    return Section("How it was measured").add(bullets(lines), "The last command:", indented)


def _protocol(measure: Measure, results: Results) -> str:
    note = PROTOCOL_NOTES.get(measure.protocol)
    methods = _distinct(score.get("se_method") or "" for _, score in results.scored(measure))
    return (
        escape_markdown(measure.title)
        + (f": {note}." if note else ".")
        + (f" Standard errors: {methods}." if methods else "")
        + f" Fingerprint of the text: {escape_markdown(measure.fingerprint)}."
    )


def _distinct(values: Iterable[str]) -> str:
    return listed([escape_markdown(value) for value in dict.fromkeys(values) if value])
