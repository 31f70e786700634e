"""The section on perplexity: a table a measure, and the differences between checkpoints."""

from __future__ import annotations

from slm.evaluation.overlap import text_caveats
from slm.evaluation.report.difference_table import differences, reading
from slm.evaluation.report.results import Entry, Measure, Results, alike, has_loss, number, score_by, scores
from slm.report.markdown import Section, table
from slm.runtime.words import NOTHING, count, escape_markdown, is_number, listed, measured, plural, sig


def quality_section(results: Results) -> Section | None:
    """Loss, perplexity and bits per byte by every measure."""
    if not results.measures:
        return None
    section = Section("Quality").add(
        "**Bits per byte is the only column to compare across tokenizers**: loss and perplexity are per token, and a "
        "tokenizer that cuts a text into fewer tokens has a higher loss for the same skill. Lower is better "
        "everywhere.",
        *(f"**Mind:** {line}" for line in warnings(results)),
        *(f"**Mind:** {escape_markdown(line)}" for entry in results.entries for line in text_caveats(entry)),
    )
    for measure in results.measures:
        section.add(f"**{escape_markdown(measure.title)}**", _table(results, measure), _missing(results, measure))
        section.add(*differences(results, measure))
    return section.add(reading(results))


def warnings(results: Results) -> list[str]:
    """What keeps the checkpoints' figures from being compared, in sentences."""
    said = []
    for measure in results.measures:
        if not results.same_tokens(measure):
            said.append(
                f"on {escape_markdown(measure.title)} the tokenizers differ, so losses and perplexities do not "
                f"compare between "
                "checkpoints; bits per byte do, if the bytes scored are equal."
            )
        sizes = {size for _, score in results.scored(measure) if (size := number(score, "bytes"))}
        if sizes and not alike(sizes):
            shown = listed([f"{size:,}" for size in sorted(sizes)])
            said.append(f"on {escape_markdown(measure.title)} unlike parts of the text were scored ({shown} bytes).")
    texts: dict[str, set[str]] = {}
    for measure in results.measures:
        texts.setdefault(measure.data, set()).add(measure.fingerprint)
    said += [
        f"{plural(len(prints), 'different text')} are called {escape_markdown(data)} (fingerprints "
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
        escape_markdown(entry["name"]),
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
        escape_markdown(entry["name"])
        for entry in results.entries
        if scores(entry) and not has_loss(score_by(entry, measure) or {})
    ]
    return f"No figure by this measure: {listed(names)}." if names else ""
