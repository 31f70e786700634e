"""Report section on quantisation: what each rounding of a checkpoint costs and saves, beside the checkpoint itself."""

from slm.evaluation.report.quality import compare
from slm.evaluation.report.results import Entry, Results, common_tasks, has_same_extent, name_of, number, score_for
from slm.evaluation.report.speed import conditions
from slm.evaluation.report.tasks import compare_tasks
from slm.report.markdown import Section, table
from slm.runtime import words

NOTE = (
    "Rounded minus unrounded, under the first measure above, with paired errors; bytes and speed are shares of the "
    "unrounded checkpoint's. Bits per weight are all bytes of the model, scales included, over all its parameters. "
    "docs/on_device.md has what is rounded. Speeds are those of slm here, not those of a phone: measure an export."
)


def quantisation_section(results: Results) -> Section | None:
    """Return a table with a row for each quantised checkpoint whose unquantised one was measured too; None if none."""
    pairs = [(entry, base) for entry in results.entries if (base := _base(entry, results))]
    if not pairs:
        return None
    columns = (
        "checkpoint",
        "bits per byte",
        "loss (nats per token)",
        "tasks",
        "bits per weight",
        "bytes",
        "decode speed",
    )
    return Section("Quantisation").add(NOTE, table(columns, [_row(entry, base, results) for entry, base in pairs]))


def _base(entry: Entry, results: Results) -> Entry | None:
    """Return the unquantised entry of the same weights in the same precision."""
    if not entry.get("quantize"):
        return None
    keys = ("fingerprint", "revision", "dtype", "autocast", "device")
    candidates = (base for base in results.entries if not base.get("quantize"))
    return next((base for base in candidates if all(base.get(key) == entry.get(key) for key in keys)), None)


def _row(entry: Entry, base: Entry, results: Results) -> list[str]:
    scores = [score_for(measured, results.primary) for measured in (entry, base)]
    cells = [name_of(entry)]
    for target in ("bits_per_byte", "loss"):
        is_known = has_same_extent(scores) and all(words.is_number(score.get(target)) for score in scores)
        cells.append(compare(scores[0], scores[1], target).text if is_known else words.NO_VALUE)
    common = common_tasks([entry, base])
    cells.append(compare_tasks(entry, base, common).text if common else words.NO_VALUE)
    size = number(entry, "model_bytes")
    cells += [_ratio(size and 8 * size, number(entry, "params_total")), _ratio(size, number(base, "model_bytes"))]
    rates = [number(measured["speed"], "decode_tokens_per_second") for measured in (entry, base)]
    return [*cells, _ratio(*rates) if conditions(entry) == conditions(base) else words.NO_VALUE]


def _ratio(value: float | None, base: float | None) -> str:
    return words.format_number(value / base, 3) if value and base else words.NO_VALUE
