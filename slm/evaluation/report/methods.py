"""What a reader must know of each checkpoint, how figures were measured, and how to measure them again."""

from __future__ import annotations

from collections.abc import Iterable

from slm.evaluation.report.results import Entry, Measure, Results, measure_of, scores
from slm.report.markdown import Section, bullets, table
from slm.runtime.words import NOTHING, escape_markdown, listed

WINDOW_WORDS = {
    "sliding": "every token is scored once, in the first window that reaches it, with the tokens of that window before "
    "it as context",
    "non_overlapping": "the text is cut into windows side by side, and the first tokens of each have little context",
}


def notes_section(results: Results) -> Section:
    """What was loaded, and the notes of loading and measuring."""
    header = ("checkpoint", "given as", "kind", "revision", "stored", "evaluated in", "device", "fingerprint")
    section = Section("Checkpoints").add(table(header, [_identity(entry) for entry in results.entries]))
    noted: dict[str, list[str]] = {}
    for entry in results.entries:
        for note in dict.fromkeys(_notes(entry)):
            noted.setdefault(note, []).append(escape_markdown(entry["name"]))
    return section.add(bullets([f"{listed(names)}: {escape_markdown(note)}" for note, names in noted.items()]))


def _identity(entry: Entry) -> list[str]:
    cells = [entry.get(key) for key in ("name", "checkpoint", "kind", "revision", "stored_dtype")]
    shown = [NOTHING if cell is None else escape_markdown(cell) for cell in cells]
    return [
        *shown,
        escape_markdown(precision(entry)),
        escape_markdown(entry.get("device") or NOTHING),
        f"`{entry.get('fingerprint')}`",
    ]


def precision(entry: Entry) -> str:
    """Of weights and arithmetic."""
    autocast = entry.get("autocast")
    return f"{entry.get('dtype', NOTHING)}" + (f" under {autocast} autocast" if autocast else "")


def _notes(entry: Entry) -> list[str]:
    """Of the checkpoint, and of its scores, with the measure where a note is not of all of them."""
    noted: dict[str, list[str]] = {}
    for score in scores(entry):
        for note in score.get("notes") or []:
            noted.setdefault(note, []).append(measure_of(score).title)
    every = len(scores(entry))
    of_scores = [note if len(of) == every else f"{listed(of)}: {note}" for note, of in noted.items()]
    return [*(entry.get("notes") or []), *of_scores]


def methods_section(results: Results, command: str) -> Section:
    """Protocols, errors, precision, versions, the command."""
    lines = [_protocol(measure, results) for measure in results.measures]
    lines.append(
        "Loss is in nats per token, perplexity its exponential, bits per byte the summed loss over ln 2 and the bytes "
        "of the text scored. ± is one standard error; that of perplexity is perplexity times that of the loss."
    )
    lines.append(f"Arithmetic: {_listed(precision(entry) for entry in results.entries)}.")
    versions = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in (entry.get("versions") or {}).items() if number)
        for entry in results.entries
    )
    stated = [text for text in versions if text]
    if stated:
        lines.append(
            f"Versions: {escape_markdown('; or '.join(stated))}." + (" **They differ.**" if len(stated) > 1 else "")
        )
    times = sorted(str(entry["evaluated_at"]) for entry in results.entries if entry.get("evaluated_at"))
    if times:
        lines.append(f"Evaluated {times[0]}" + (f" to {times[-1]}." if times[-1] != times[0] else "."))
    indented = "\n".join(f"    {line}" for line in command.splitlines())
    return Section("How it was measured").add(bullets(lines), "The last command:", indented)


def _protocol(measure: Measure, results: Results) -> str:
    methods = _listed(score.get("se_method") or "" for _, score in results.scored(measure))
    how = WINDOW_WORDS.get(measure.protocol, "")
    error = f" Standard errors: {methods}." if methods else ""
    return (
        f"{escape_markdown(measure.title)}"
        + (f": {how}" if how else "")
        + "."
        + error
        + f" Fingerprint of the text: {escape_markdown(measure.fingerprint)}."
    )


def _listed(values: Iterable[str]) -> str:
    return listed([escape_markdown(value) for value in dict.fromkeys(values) if value])


def files_section() -> Section:
    """Where the figures of the report are."""
    return Section("Files").add(
        "Every number of this report is in, or follows from, results.json beside it; results.csv has them as a table "
        "with a row a checkpoint. docs/evaluation_results.md says what each column and key is."
    )
