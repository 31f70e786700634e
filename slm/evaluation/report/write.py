"""Write results.csv, report.md, report.html and figures/ of an evaluation directory from results.json alone."""

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from slm.evaluation.report.figures import FIGURES
from slm.evaluation.report.quality import compare, quality_section, rank_checkpoints, target_error, warnings
from slm.evaluation.report.quantised import quantisation_section
from slm.evaluation.report.results import (
    Entry,
    Measure,
    Results,
    average,
    common_tasks,
    family_of,
    has_same_extent,
    measure_of,
    name_of,
    tasks_of,
)
from slm.evaluation.report.rows import rows, to_csv
from slm.evaluation.report.scaling import fit_laws, gain_section, scaling_section
from slm.evaluation.report.ship import ship_entry, ship_section, ship_sentences
from slm.evaluation.report.speed import conditions, speed_section, usual_conditions
from slm.evaluation.report.study import study_section
from slm.evaluation.report.tasks import compare_tasks, tasks_section
from slm.report.formulas import letters_apart_from
from slm.report.html import html_page
from slm.report.markdown import Columns, Section, bullets, table_by_column
from slm.report.style import draw
from slm.runtime.files import write_atomically, write_json
from slm.runtime.words import (
    NO_VALUE,
    TARGET_NAMES,
    escape_markdown,
    format_number,
    is_number,
    join_names,
    plural,
    with_error,
)
from slm.scaling.describe import exponent_text, family_name, is_identified

PROTOCOL_NOTES = {
    "sliding": "every token is scored once, in the first window that contains it, with the preceding tokens of that "
    "window as context",
    "non_overlapping": "the text is cut into adjacent windows, and the first tokens of each window have little context",
}


def write_report(folder: Path, entries: Sequence[Entry], *, command: str, limits: Entry | None = None) -> list[Path]:
    """Write results.csv, figures/*.png and .svg, and last report.md and report.html; return the files written.

    `entries` is the list in results.json; an entry may lack some parts. `command` is what the user typed, and `limits`
    the settings `ship`. Writes decisions.json if there is a choice between checkpoints.
    """
    results = Results(entries, folder, laws=fit_laws(Results(entries)), limits=limits)
    csv_file, report, page = (folder / name for name in ("results.csv", "report.md", "report.html"))
    write_atomically(csv_file, to_csv(rows(results)))
    figures = draw(folder, {name: partial(make, results) for name, make in FIGURES.items()})
    files_section = Section("Files").add(
        "Every number of this report is in results.json or computed from it. results.csv has the same numbers as a "
        "table with one row per checkpoint. docs/evaluation_results.md explains each column and key."
    )
    sections = [make_section(results) for make_section in SECTIONS]
    sections += [methods_section(results, command), files_section]
    blocks = ["# Evaluation", *(section.markdown() for section in sections if section)]
    text = "\n\n".join(blocks) + "\n"
    write_atomically(report, text)
    formulas = {"L = A N^-alpha"} | letters_apart_from(map(family_of, results.entries))
    # Summary and quality are open: they are what most readers came for.
    write_atomically(page, html_page("Evaluation", text, folder, formulas=formulas, num_open=2))
    decisions = folder / "decisions.json"
    decisions.unlink(missing_ok=True)
    if made := ship_entry(results):
        write_json(decisions, made)
    return [csv_file, *figures, report, page, *([decisions] if made else [])]


def print_report(entries: Sequence[Entry], folder: Path, limits: Entry | None = None) -> None:
    """Print the summary, the tables and warnings on quality, speed and tasks, and the path of the full report."""
    results = Results(entries, limits=limits)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for block in summary_section(results).blocks[:2]:
        console.print(Markdown(block))
    shown = (quality_section, speed_section, tasks_section, quantisation_section)
    for section in filter(None, (make_section(results) for make_section in shown)):
        for block in section.blocks[1:]:
            # Print tables, lists and bold remarks; skip figures, explanations and tables of differences.
            if block.startswith(("|", "- ", "**")) and not block.startswith("**Differences"):
                console.print(Markdown(block))
    if sentences := ship_sentences(results):
        console.print(Markdown(f"Which to ship:\n\n{bullets(sentences)}"))
    console.print(f"report: {folder / 'report.html'}", markup=False, soft_wrap=True)


def summary_section(results: Results) -> Section:
    """Return the main result, a list of the others with one sentence each, and a line on where and when."""
    unfinished = [entry for entry in results.entries if entry["status"] != "completed"]
    lines = [f"{plural(len(results.entries) - len(unfinished), 'checkpoint')} evaluated."]
    if unfinished:
        names = join_names([f"{name_of(entry)} ({escape_markdown(entry['status'])})" for entry in unfinished])
        lines.append(f"**Not finished**: {names}.")
    best = _best(results)
    lines += filter(None, (_fastest(results), _highest_average(results), _missing_tasks(results)))
    metric_name = TARGET_NAMES[results.fit_metric]
    for law in results.laws:
        if is_identified(law, "alpha"):
            alpha = f"alpha = {exponent_text(law, 'alpha')} (n = {law['n_runs']})"
            lines.append(f"{family_name(law)}: {metric_name} falls as N to the power -alpha, {alpha}.")
    if warnings(results):
        lines.append("**Caution**: see the warnings under Quality before comparing numbers.")
    answer, others = (best, lines) if best else (lines[0], lines[1:])
    return Section("Summary").add(f"**{answer}**", bullets(others), _provenance(results))


def _provenance(results: Results) -> str:
    """When, where and with which versions the checkpoints were evaluated."""
    days = sorted({str(entry["evaluated_at"])[:10] for entry in results.entries if entry.get("evaluated_at")})
    devices = _distinct(entry["speed"].get("device_name") or entry.get("device") or "" for entry in results.entries)
    when = " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "not recorded"
    versions = escape_markdown("; or ".join(_stated_versions(results)))
    return f"<small>Evaluated {when} on {devices or 'not recorded'}; versions {versions or 'not recorded'}.</small>"


def _best(results: Results) -> str:
    ranking = rank_checkpoints(results, results.primary)
    if not ranking or results.primary is None:
        return ""
    (best_entry, best_score), *others = ranking
    metric = results.metric_for(results.primary)
    name, metric_name = name_of(best_entry), TARGET_NAMES[metric]
    measure = escape_markdown(results.primary.title)
    value = with_error(best_score[metric], target_error(best_score, metric))
    if not others:
        return f"{name} has {value} {metric_name} on {measure}."
    similar = [name_of(e) for e, score in others if compare(best_score, score, metric).is_significant is False]
    tail = _not_distinguishable(similar, "the standard errors of the differences")
    if not has_same_extent([score for _, score in ranking]):
        tail = "; different parts of the text were scored, so it is not known whether it is better"
    return f"Lowest {metric_name} on {measure}: {name}, {value}{tail}."


def _not_distinguishable(names: list[str], criterion: str) -> str:
    return f"; not distinguishable from {join_names(names)} by {criterion}" if names else ""


def _fastest(results: Results) -> str:
    usual = usual_conditions(results)
    if usual is None:
        return ""
    entries = [entry for entry in results.entries if conditions(entry) == usual]
    fastest = max(entries, key=lambda entry: entry["speed"]["decode_tokens_per_second"])
    rate = format_number(fastest["speed"]["decode_tokens_per_second"])
    similar = []  # checkpoints whose spread of repetitions overlaps with that of the fastest
    for entry in entries:
        best_spread, spread = fastest["speed"].get("decode_spread"), entry["speed"].get("decode_spread")
        if entry is not fastest and best_spread and spread and max(spread) >= min(best_spread):
            similar.append(name_of(entry))
    tail = _not_distinguishable(similar, "the spread of repetitions")
    lead = "Fastest decoding" if len(entries) > 1 else "Decoding"
    return f"{lead}: {name_of(fastest)}, {rate} tokens/s ({escape_markdown(usual)}){tail}."


def _highest_average(results: Results) -> str:
    entries = [entry for entry in results.entries if tasks_of(entry)]
    common = common_tasks(entries)
    if len(common) < 2:
        return ""
    best = max(entries, key=lambda entry: average(entry, common)[0])
    name, highest = name_of(best), average(best, common)
    others = [entry for entry in entries if entry is not best]
    similar = [name_of(entry) for entry in others if compare_tasks(best, entry, common).is_significant is False]
    tail = _not_distinguishable(similar, "the standard errors of the differences")
    lead = "Highest average" if len(entries) > 1 else "Average"
    return f"{lead} of {len(common)} common tasks: {name}, {with_error(*highest)}{tail}."


def _missing_tasks(results: Results) -> str:
    task_results = [result for entry in results.entries for result in entry["tasks"].values()]
    num_missing = sum(not is_number(result.get("value")) for result in task_results)
    if not num_missing:
        return ""
    verb = "is" if num_missing == 1 else "are"
    return f"{num_missing} of {plural(len(task_results), 'task result')} {verb} missing; the reasons are under Tasks."


def checkpoints_section(results: Results) -> Section:
    """Return a table of what was loaded, and the notes made while loading and measuring."""
    names_by_note: dict[str, list[str]] = {}
    for entry in results.entries:
        for note in dict.fromkeys(_notes(entry)):
            names_by_note.setdefault(note, []).append(name_of(entry))
    notes = bullets([f"{join_names(names)}: {escape_markdown(note)}" for note, names in names_by_note.items()])
    return Section("Checkpoints").add(table_by_column(results.entries, CHECKPOINT_COLUMNS), notes)


def _text(key: str, entry: Entry) -> str:
    return NO_VALUE if entry.get(key) is None else escape_markdown(entry[key])


def _precision(entry: Entry) -> str:
    dtype, autocast = str(entry.get("dtype", NO_VALUE)), entry.get("autocast")
    dtype = f"{entry['quantize']}, {dtype}" if entry.get("quantize") else dtype
    return f"{dtype} under {autocast} autocast" if autocast else dtype


CHECKPOINT_COLUMNS: Columns = {
    "checkpoint": name_of,
    "path or hub id": partial(_text, "checkpoint"),
    "kind": partial(_text, "kind"),
    "revision": partial(_text, "revision"),
    "stored dtype": partial(_text, "stored_dtype"),
    "evaluated in": _precision,
    "device": partial(_text, "device"),
    "fingerprint": lambda entry: f"`{entry.get('fingerprint')}`",
}


def _notes(entry: Entry) -> list[str]:
    """Return notes on the checkpoint and its scores; a note on only some scores is preceded by their measures."""
    scores = entry["perplexity_results"]
    titles_by_note: dict[str, list[str]] = {}
    for score in scores:
        for note in score.get("notes") or []:
            titles_by_note.setdefault(note, []).append(measure_of(score).title)
    return entry["notes"] + [
        note if len(titles) == len(scores) else f"{join_names(titles)}: {note}"
        for note, titles in titles_by_note.items()
    ]


def methods_section(results: Results, command: str) -> Section:
    """Return a list of protocols, errors, precision and versions, and the command."""
    lines = [_protocol(measure, results) for measure in results.measures]
    lines.append(
        "Loss is in nats per token, and perplexity is its exponential. Bits per byte is the summed loss / (ln 2 times "
        "the bytes of the scored text). ± is one standard error; for perplexity, it is perplexity times the standard "
        "error of the loss."
    )
    lines.append(f"Arithmetic: {_distinct(map(_precision, results.entries))}.")
    if stated_versions := _stated_versions(results):
        warning = " **They differ.**" if len(stated_versions) > 1 else ""
        lines.append(f"Versions: {escape_markdown('; or '.join(stated_versions))}.{warning}")
    times = sorted({str(entry["evaluated_at"]) for entry in results.entries if entry.get("evaluated_at")})
    if times:
        lines.append(f"Evaluated {times[0]} to {times[-1]}." if len(times) > 1 else f"Evaluated {times[0]}.")
    indented_command = "\n".join(f"    {line}" for line in command.splitlines())
    return Section("How it was measured").add(bullets(lines), "The last command:", indented_command)


def _stated_versions(results: Results) -> list[str]:
    """The versions of each entry as `torch 2.9.0, slm 0.1.0`, without repetitions."""
    versions = (
        ", ".join(f"{package} {number}" for package, number in (entry.get("versions") or {}).items() if number)
        for entry in results.entries
    )
    return [text for text in dict.fromkeys(versions) if text]


def _protocol(measure: Measure, results: Results) -> str:
    methods = _distinct(score.get("se_method") or "" for _, score in results.scores_under(measure))
    errors = f" Standard errors: {methods}." if methods else ""
    return (
        f"{escape_markdown(measure.title)}: {PROTOCOL_NOTES[measure.protocol]}.{errors} Fingerprint of the text: "
        f"{escape_markdown(measure.fingerprint)}."
    )


def _distinct(texts: Iterable[str]) -> str:
    return join_names([escape_markdown(text) for text in dict.fromkeys(texts) if text])


SECTIONS = (summary_section, ship_section, quality_section, speed_section, tasks_section, quantisation_section,
            scaling_section, gain_section, study_section, checkpoints_section)  # fmt: skip
