"""The section on perplexity: a table a measure, and which checkpoints its standard errors cannot tell apart."""

from __future__ import annotations

from itertools import combinations

from slm.evaluation.report.average import apart
from slm.evaluation.report.fits import target_error
from slm.evaluation.report.numbers import measured
from slm.evaluation.report.results import Entry, Measure, Results, alike, has_loss, number, score_by, scores
from slm.scaling.report.text import Section, bullets, table
from slm.scaling.report.wording import NOTHING, count, is_number, listed, plainly, plural, sig

MOST_PAIRS = 10
"""More pairs than these are counted instead of listed."""
CAREFUL = (
    "Errors are of the text: another text of its kind would give other figures. All checkpoints read the same text and "
    "tend to err on the same documents, so that two errors added, as here, make a difference look less certain than it "
    "is: a difference that stands out does so all the more, and one that does not may yet be real."
)


def quality_section(results: Results) -> Section | None:
    """Loss, perplexity and bits per byte by every measure."""
    if not results.measures:
        return None
    section = Section("Quality").add(
        "**Bits per byte is the only column to compare across tokenizers**: loss and perplexity are per token, and a "
        "tokenizer that cuts a text into fewer tokens has a higher loss for the same skill. Lower is better "
        "everywhere.",
        *(f"**Mind:** {line}" for line in warnings(results)),
    )
    for measure in results.measures:
        section.add(f"**{plainly(measure.title)}**", _table(results, measure), _missing(results, measure))
    section.add(bullets(pair_lines(results)), CAREFUL if len(results.scored(results.primary)) > 1 else "")
    return section


def warnings(results: Results) -> list[str]:
    """What keeps the checkpoints' figures from being compared, in sentences."""
    said = []
    for measure in results.measures:
        if not results.same_tokens(measure):
            said.append(
                f"on {plainly(measure.title)} the tokenizers differ, so losses and perplexities do not compare between "
                "checkpoints; bits per byte do, if the bytes scored are equal."
            )
        sizes = {size for _, score in results.scored(measure) if (size := number(score, "bytes"))}
        if sizes and not alike(sizes):
            shown = listed([f"{size:,}" for size in sorted(sizes)])
            said.append(f"on {plainly(measure.title)} unlike parts of the text were scored ({shown} bytes).")
    texts: dict[str, set[str]] = {}
    for measure in results.measures:
        texts.setdefault(measure.data, set()).add(measure.fingerprint)
    said += [
        f"{plural(len(prints), 'different text')} are called {plainly(data)} (fingerprints "
        f"{listed(sorted(prints))}): their figures stand in tables of their own and do not compare."
        for data, prints in texts.items()
        if len(prints) > 1
    ]
    return said


def _table(results: Results, measure: Measure) -> str:
    header = (
        "checkpoint",
        "N",
        "**bits per byte**",
        "perplexity",
        "loss (nats per token)",
        "per word",
        "tokens",
        "bytes",
    )
    return table(header, [_row(entry, score) for entry, score in results.scored(measure)])


def _row(entry: Entry, score: Entry) -> list[str]:
    perplexity, error = number(score, "perplexity"), number(score, "se_loss")
    return [
        plainly(entry["name"]),
        count(entry["params_total"]),
        measured(score.get("bits_per_byte"), score.get("se_bits_per_byte")),
        # d exp(loss) = exp(loss) d loss
        measured(perplexity, None if perplexity is None or error is None else perplexity * error),
        measured(score["loss"], error),
        sig(score.get("word_perplexity")),
        f"{score['tokens']:,}" if is_number(score.get("tokens")) else NOTHING,
        f"{score['bytes']:,}" if is_number(score.get("bytes")) else NOTHING,
    ]


def _missing(results: Results, measure: Measure) -> str:
    names = [
        plainly(entry["name"])
        for entry in results.entries
        if scores(entry) and not has_loss(score_by(entry, measure) or {})
    ]
    return f"No figure by this measure: {listed(names)}." if names else ""


def ranked(results: Results) -> list[tuple[Entry, float, float | None]]:
    """Checkpoints by the primary measure with target and its error, best first; empty where they do not compare."""
    target = results.target
    if target == "loss" and not results.same_tokens(results.primary):
        return []
    rows = [
        (entry, float(score[target]), target_error(score, target))
        for entry, score in results.scored(results.primary)
        if is_number(score.get(target))
    ]
    return sorted(rows, key=lambda row: row[1])


def pair_lines(results: Results) -> list[str]:
    """Which pairs are within two standard errors of each other."""
    rows = ranked(results)
    every = list(combinations(rows, 2))
    alike = [(a, b) for a, b in every if apart(a[1:], b[1:]) is False]
    unknown = sum(apart(a[1:], b[1:]) is None for a, b in every)
    if not every:
        return []
    what = results.target.replace("_", " ")
    lines = [
        f"{plainly(a[0]['name'])} and {plainly(b[0]['name'])} are not distinguishable: {what} differs by "
        f"{sig(b[1] - a[1], 2)}, less than 2 standard errors of independent figures."
        for a, b in alike[:MOST_PAIRS]
    ]
    if len(alike) > MOST_PAIRS:
        lines.append(f"{plural(len(alike) - MOST_PAIRS, 'more pair')} are not distinguishable either.")
    if not alike and not unknown:
        which = f"All {plural(len(every), 'pair')}" if len(every) > 1 else "The two"
        lines.append(f"{which} differ in {what} by more than 2 standard errors.")
    if unknown:
        lines.append(f"Of {plural(unknown, 'pair')} that cannot be said: a standard error is missing.")
    return lines
