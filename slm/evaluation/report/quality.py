"""The section on perplexity: for each measure a table, and the differences between checkpoints."""

from __future__ import annotations

from slm.evaluation.report.differences import difference_notes, difference_table
from slm.evaluation.report.results import (
    Entry,
    Results,
    name_of,
    nearly_equal,
    number,
    scores,
    text_caveats,
)
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
    header = ("checkpoint", "N", "**bits per byte**", "perplexity", "loss (nats per token)", "per word",
              "tokens", "bytes")  # fmt: skip
    for measure in results.measures:
        rows = [_row(entry, score) for entry, score in results.scored(measure)]
        section.add(f"**{escape_markdown(measure.title)}**", table(header, rows))
        scored = [entry["name"] for entry, _ in results.scored(measure)]
        missing = [name_of(entry) for entry in results.entries if scores(entry) and entry["name"] not in scored]
        section.add(f"No figure by this measure: {listed(missing)}." if missing else "")
        section.add(*difference_table(results, measure))
    return section.add(difference_notes(results))


def warnings(results: Results) -> list[str]:
    """Sentences on what keeps the checkpoints' figures from being compared."""
    sentences = []
    texts: dict[str, set[str]] = {}
    for measure in results.measures:
        title = escape_markdown(measure.title)
        texts.setdefault(measure.data, set()).add(measure.fingerprint)
        if not results.same_tokens(measure):
            sentences.append(
                f"on {title} the tokenizers differ, so losses and perplexities do not compare between checkpoints; "
                "bits per byte do, if the bytes scored are equal."
            )
        sizes = {size for _, score in results.scored(measure) if (size := number(score, "bytes"))}
        if sizes and not nearly_equal(sizes):
            shown = listed([f"{size:,}" for size in sorted(sizes)])
            sentences.append(f"on {title} different parts of the text were scored ({shown} bytes).")
    return sentences + [
        f"{plural(len(prints), 'different text')} are called {escape_markdown(data)} (fingerprints "
        f"{listed(sorted(prints))}): their figures are in separate tables and do not compare."
        for data, prints in texts.items()
        if len(prints) > 1
    ]


def _row(entry: Entry, score: Entry) -> list[str]:
    perplexity, error = number(score, "perplexity"), number(score, "se_loss")
    return [
        name_of(entry),
        count(entry["params_total"]),
        measured(score.get("bits_per_byte"), score.get("se_bits_per_byte")),
        # d exp(loss) = exp(loss) d loss
        measured(perplexity, None if perplexity is None or error is None else perplexity * error),
        measured(score["loss"], error),
        sig(score.get("word_perplexity")),
        *(f"{score[key]:,}" if is_number(score.get(key)) else NOTHING for key in ("tokens", "bytes")),
    ]
