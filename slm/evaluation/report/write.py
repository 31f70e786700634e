"""results.csv, report.md and figures/ of an evaluation directory, from the entries of results.json and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from slm.evaluation.report.figures import FIGURES
from slm.evaluation.report.quality import quality_section
from slm.evaluation.report.results import Entry, Measure, Results, measure_of, name_of
from slm.evaluation.report.rows import rows, to_csv
from slm.evaluation.report.scaling import fits, gain_section, scaling_section
from slm.evaluation.report.speed import speed_section
from slm.evaluation.report.study import study_section
from slm.evaluation.report.summary import summary_section
from slm.evaluation.report.tasks import tasks_section
from slm.report.markdown import Columns, Section, bullets, table_by_column
from slm.report.style import draw
from slm.runtime.files import write_whole
from slm.runtime.words import NOTHING, escape_markdown, listed

PROTOCOL_NOTES = {
    "sliding": "every token is scored once, in the first window that reaches it, with the tokens of that window before "
    "it as context",
    "non_overlapping": "the text is cut into windows side by side, and the first tokens of each have little context",
}


def write_report(folder: Path, entries: Sequence[Entry], *, command: str) -> list[Path]:
    """Write results.csv, figures/*.png and .svg, and last report.md into `folder`; returns the files written.

    `entries` are those of results.json (docs/evaluation_results.md), whose parts may be missing. `command` is what was
    typed. Every file is written whole or not at all.
    """
    results = Results(entries, folder, laws=fits(Results(entries)))
    csv_file, report = folder / "results.csv", folder / "report.md"
    write_whole(csv_file, to_csv(rows(results)))
    figures = draw(folder, {name: partial(make, results) for name, make in FIGURES.items()})
    sections = [
        summary_section(results),
        quality_section(results),
        speed_section(results),
        tasks_section(results),
        scaling_section(results),
        gain_section(results),
        study_section(results),
        checkpoints_section(results),
        methods_section(results, command),
        Section("Files").add(
            "Every number of this report is in, or follows from, results.json beside it; results.csv has them as a "
            "table with a row a checkpoint. docs/evaluation_results.md says what each column and key is."
        ),
    ]
    write_whole(report, "\n\n".join(["# Evaluation", *(section.markdown() for section in sections if section)]) + "\n")
    return [csv_file, *figures, report]


def print_report(entries: Sequence[Entry], folder: Path) -> None:
    """Print the summary, and the warnings, tables and remarks of each section but pairs; and where the rest is."""
    results = Results(entries)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(Markdown(summary_section(results).blocks[0]))
    for make_section in (quality_section, speed_section, tasks_section):
        section = make_section(results)
        for block in section.blocks[1:] if section else ():
            if block.startswith(("|", "- ", "**")) and not block.startswith("**Differences"):
                console.print(Markdown(block))
    console.print(f"report: {folder / 'report.md'}", markup=False, soft_wrap=True)


def checkpoints_section(results: Results) -> Section:
    """What was loaded, and the notes of loading and measuring."""
    names_by_note: dict[str, list[str]] = {}
    for entry in results.entries:
        for note in dict.fromkeys(_notes(entry)):
            names_by_note.setdefault(note, []).append(name_of(entry))
    notes = bullets([f"{listed(names)}: {escape_markdown(note)}" for note, names in names_by_note.items()])
    return Section("Checkpoints").add(table_by_column(results.entries, CHECKPOINT_COLUMNS), notes)


def _text(key: str, entry: Entry) -> str:
    return NOTHING if entry.get(key) is None else escape_markdown(entry[key])


def _precision(entry: Entry) -> str:
    autocast = entry.get("autocast")
    return f"{entry.get('dtype', NOTHING)}" + (f" under {autocast} autocast" if autocast else "")


CHECKPOINT_COLUMNS: Columns = {
    "checkpoint": name_of,
    "given as": partial(_text, "checkpoint"),
    "kind": partial(_text, "kind"),
    "revision": partial(_text, "revision"),
    "stored": partial(_text, "stored_dtype"),
    "evaluated in": _precision,
    "device": partial(_text, "device"),
    "fingerprint": lambda entry: f"`{entry.get('fingerprint')}`",
}


def _notes(entry: Entry) -> list[str]:
    """Notes of the checkpoint, and of its scores; a note on only some scores names their measures."""
    scores, titles = entry["perplexity_results"], dict[str, list[str]]()
    for score in scores:
        for note in score.get("notes") or []:
            titles.setdefault(note, []).append(measure_of(score).title)
    return entry["notes"] + [
        note if len(measures) == len(scores) else f"{listed(measures)}: {note}" for note, measures in titles.items()
    ]


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
    if stated := [text for text in versions if text]:
        differ = " **They differ.**" if len(stated) > 1 else ""
        lines.append(f"Versions: {escape_markdown('; or '.join(stated))}.{differ}")
    times = sorted(str(entry["evaluated_at"]) for entry in results.entries if entry.get("evaluated_at"))
    if times:
        lines.append(f"Evaluated {times[0]}" + (f" to {times[-1]}." if times[-1] != times[0] else "."))
    indented = "\n".join(f"    {line}" for line in command.splitlines())
    return Section("How it was measured").add(bullets(lines), "The last command:", indented)


def _protocol(measure: Measure, results: Results) -> str:
    methods = _distinct(score.get("se_method") or "" for _, score in results.scored(measure))
    errors = f" Standard errors: {methods}." if methods else ""
    return (
        f"{escape_markdown(measure.title)}: {PROTOCOL_NOTES[measure.protocol]}.{errors} Fingerprint of the text: "
        f"{escape_markdown(measure.fingerprint)}."
    )


def _distinct(values: Iterable[str]) -> str:
    return listed([escape_markdown(value) for value in dict.fromkeys(values) if value])
