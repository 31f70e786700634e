"""The published MobileLLM study beside its own models evaluated here: figures, and what it got right and wrong.

Notable: `slm.scaling.published` has the claims and what the study's own rows say; here the same questions are put
to the rows measured, if all four of its models were.
"""

from __future__ import annotations

from slm.evaluation.report.results import Results, measure_of, number
from slm.evaluation.report.study_findings import measured_findings, measured_table
from slm.evaluation.report.study_pairs import Pair, pairs
from slm.report.markdown import Section, table
from slm.runtime.words import NOTHING, escape_markdown, is_number, listed, megabytes, sig
from slm.scaling.published import NAME, published_claims
from slm.scaling.tables import read_table


def published_points(results: Results) -> list[tuple[float, float]]:
    """N and loss of the study's rows, where its models and its protocol are what the figure shows."""
    scored = [score for pair in pairs(results) if (score := pair.score)]
    if results.primary not in [measure_of(score) for score in scored]:
        return []
    frame = read_table(NAME).frame
    return list(zip(frame["params_total"].tolist(), frame["loss"].tolist(), strict=True))


def study_section(results: Results) -> Section | None:
    """Measured beside published, and the study's claims; None if none of its models was evaluated."""
    found = pairs(results)
    if not found:
        return None
    section = Section("The published study").add(
        "The study measured four models on WikiText-2 (sliding windows of 1024 tokens every 512, float16, one T4, no "
        "KV cache). A difference in perplexity is one of precision, of text preparation or of a leading BOS, and not "
        "of sampling: the text is the same.",
        _beside(found),
    )
    if not any(pair.score for pair in found):
        section.add(
            "Its models were not evaluated here on the whole text by that protocol, so no perplexity is compared."
        )
    measured = measured_table(found)
    says = measured_findings(measured, found) if measured is not None else {}
    header = [
        "the study's claim",
        "what the study's own rows say",
        *(["what the rows measured here say"] if says else []),
    ]
    rows = [
        [escape_markdown(one["claim"]), escape_markdown(one["finding"])]
        + ([escape_markdown(says.get(one["id"], NOTHING))] if says else [])
        for one in published_claims()
    ]
    return section.add("" if says else _not_repeated(found), table(header, rows))


def _not_repeated(found: list[Pair]) -> str:
    lost = [name for name in read_table(NAME).frame["name"] if name not in _scored(found)]
    why = "a model was evaluated more than once, or is untrained"
    if lost:
        why = f"not evaluated on the whole text by that protocol: {listed(lost)}"
    return f"The study's fit is not repeated on figures measured here; {why}."


def _scored(found: list[Pair]) -> list[str]:
    return [pair.row["name"] for pair in found if pair.score]


def _beside(found: list[Pair]) -> str:
    header = ("model", "perplexity here", "published", "difference", "decode tokens/s here", "published",
              "peak MB here", "published")  # fmt: skip
    return table(header, [_row(pair) for pair in found])


def _row(pair: Pair) -> list[str]:
    score, speed = pair.score or {}, pair.entry.get("speed") or {}
    perplexity, theirs, peak = score.get("perplexity"), pair.row["perplexity"], number(speed, "peak_memory_bytes")
    cached = {True: " (KV cache)", False: " (no cache)"}.get(speed.get("cache"), "")  # type: ignore[arg-type]
    decode = speed.get("decode_tokens_per_second")
    return [
        escape_markdown(pair.entry["name"]),
        sig(perplexity, 5),
        sig(theirs, 5),
        f"{100 * (perplexity / theirs - 1):+.2f}%" if is_number(perplexity) else NOTHING,
        sig(decode) + (cached if is_number(decode) else ""),
        sig(pair.row["tokens_per_second"]),
        megabytes(peak),
        sig(pair.row["peak_memory_mb"]),
    ]
