"""Report section on the published MobileLLM study: its numbers beside the ones measured here, and its claims.

Notable: `slm.scaling.published` holds the claims and what the study's own rows show. If all four of the study's models
were evaluated here, each claim is checked with the measured rows too.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from slm.evaluation.report.results import PUBLISHED, Entry, Results, has_loss, is_wikitext2, measure_of, name_of, number
from slm.report.markdown import Section, table, table_by_column
from slm.runtime.words import NO_VALUE, escape_markdown, format_number, interval, is_number, join_names, megabytes
from slm.scaling.fitting import SAME_RESULT, Fit, fit
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.prediction import band
from slm.scaling.published import published_claims, published_rows
from slm.scaling.tables import Table, table_from_frame

TEXT_BYTES = 1_290_590  # size of WikiText-2's raw test file
TEXT_TOLERANCE = 0.03  # relative difference in size that may come from joining the lines of the file in other ways
KAPLAN_EXPONENT = 0.076  # exponent of the loss in N by Kaplan et al. (2020)
CITED_EXPONENTS = (KAPLAN_EXPONENT, 0.089)  # exponents with which the study compared its own
MAX_SPREAD = 0.1  # "tokens/s times layers" is called constant up to this relative variation; the study's is 4%


class Pair(NamedTuple):
    """A published row and an evaluated checkpoint of the same model."""

    row: Entry
    entry: Entry
    score: Entry | None  # of the checkpoint on all of WikiText-2 under the study's protocol; None if not measured

    @property
    def decode_speed(self) -> float | None:
        """Tokens decoded per second; None if not measured."""
        return number(self.entry["speed"], "decode_tokens_per_second")


def study_pairs(results: Results) -> list[Pair]:
    """Return every pair of a published row and a checkpoint of the same model, smallest model first."""
    return [
        Pair(row, entry, next(filter(_is_comparable, entry["perplexity_results"]), None))
        for row in published_rows()
        for entry in results.entries
        if _is_same_model(row, entry)
    ]


def _is_comparable(score: Entry) -> bool:
    measure = measure_of(score)
    has_protocol = (measure.protocol, measure.max_length, measure.stride) == PUBLISHED
    covers_text = abs((number(score, "bytes") or 0) / TEXT_BYTES - 1) <= TEXT_TOLERANCE
    return has_protocol and is_wikitext2(measure.data) and has_loss(score) and covers_text


def _is_same_model(row: Entry, entry: Entry) -> bool:
    """Whether the checkpoint has the row's name (such as MobileLLM-125M) and number of non-embedding parameters.

    Names that end in -layer-share or -LS do not count: these variants share blocks and have equally many parameters.
    Embeddings are not counted, because only the tensors of a file show whether the output head shares them.
    """
    if entry.get("params_non_embedding") != row["params_non_embedding"]:
        return False
    pattern = re.compile(re.escape(row["name"]) + r"(?![\w.]|-layer-share|-LS)", re.IGNORECASE)
    return any(pattern.search(str(entry.get(key, ""))) for key in ("name", "checkpoint"))


def published_points(results: Results) -> list[tuple[float, float]]:
    """Return N and loss of the study's rows; empty unless the report fits the loss under the study's measure."""
    study_measures = [measure_of(pair.score) for pair in study_pairs(results) if pair.score]
    if results.fit_metric != "loss" or results.primary not in study_measures:
        return []
    return [(row["params_total"], math.log(row["perplexity"])) for row in published_rows()]


def study_section(results: Results) -> Section | None:
    """Return measured and published numbers and the study's claims; None if none of its models was evaluated."""
    pairs = study_pairs(results)
    if not pairs:
        return None
    header = ("model", "measured perplexity", "published perplexity", "difference", "measured decode tokens/s",
              "published tokens/s", "measured peak MB", "published peak MB")  # fmt: skip
    measured = measured_table(pairs)
    findings = {} if measured is None else measured_findings(measured, pairs)
    columns: dict[str, Callable[[Entry], str]] = {
        "the study's claim": lambda claim: escape_markdown(claim["claim"]),
        "what the study's own rows show": lambda claim: escape_markdown(claim["finding"]),
    }
    if findings:
        columns["what the rows measured here show"] = lambda claim: escape_markdown(findings.get(claim["id"], NO_VALUE))
    not_compared = "No model was evaluated on the whole text under the study's protocol, so no perplexity is compared."
    return Section("The published study").add(
        "The study measured four models on WikiText-2 (sliding windows of 1024 tokens every 512, float16, one T4, no "
        "KV cache). A difference in perplexity is due to precision, text preparation or a leading BOS, and not to "
        "sampling: the text is the same.",
        table(header, [_row(pair) for pair in pairs]),
        "" if any(pair.score for pair in pairs) else not_compared,
        "" if findings else _why_not_repeated(pairs),
        table_by_column(published_claims(), columns),
    )


def _row(pair: Pair) -> list[str]:
    row, speed = pair.row, pair.entry["speed"]
    perplexity = pair.score.get("perplexity") if pair.score else None
    published_perplexity = row["perplexity"]
    cache_note = {True: " (KV cache)", False: " (no cache)"}.get(speed.get("cache"), "")
    return [
        name_of(pair.entry),
        format_number(perplexity, 5),
        format_number(published_perplexity, 5),
        f"{100 * (perplexity / published_perplexity - 1):+.2f}%" if is_number(perplexity) else NO_VALUE,
        NO_VALUE if pair.decode_speed is None else format_number(pair.decode_speed) + cache_note,
        format_number(row["tokens_per_second"]),
        megabytes(speed.get("peak_memory_bytes")),
        format_number(row["peak_memory_mb"]),
    ]


def _why_not_repeated(pairs: list[Pair]) -> str:
    scored_names = [pair.row["name"] for pair in pairs if pair.score]
    missing = [row["name"] for row in published_rows() if row["name"] not in scored_names]
    reason = "a model was evaluated more than once, or is untrained"
    if missing:
        reason = f"these models were not evaluated on the whole text under the study's protocol: {join_names(missing)}"
    return f"The study's fit is not repeated with the values measured here; {reason}."


def measured_table(pairs: list[Pair]) -> Table | None:
    """Return measured rows of the study's four models; None unless each has one score under the study's protocol."""
    rows = [
        {name: pair.row[name] for name in ("family", "depth", "name")}
        | {name: pair.entry[name] for name in ("params_total", "params_non_embedding")}
        | {"loss": pair.score["loss"]}
        for pair in pairs
        if pair.score
    ]
    if [row["name"] for row in rows] != [row["name"] for row in published_rows()]:
        return None
    if np.ptp(np.log([row["loss"] for row in rows[1:]])) < SAME_RESULT:  # one claim is about the rows but the first
        return None
    try:
        return table_from_frame(pd.DataFrame(rows), name="measured")
    except ValueError:  # the table refuses the losses of untrained weights under a released name
        return None


def measured_findings(measured: Table, pairs: list[Pair]) -> dict[str, str]:
    """Return, for the id of each claim, what the rows measured here show."""
    perplexity_fit = fit(measured, "power", target="perplexity")
    A, alpha = format_number(perplexity_fit.params["A"]), format_number(perplexity_fit.params["alpha"])
    # Rows are in published order, the smallest model first.
    without_smallest = Table(measured.frame.iloc[1:].reset_index(drop=True), (), "measured")
    slope = -fit(without_smallest, "power", target="perplexity").params["alpha"]
    # The claim is about 2B parameters.
    log_prediction = band(perplexity_fit, np.log([[2e9]]), None).for_run(perplexity_fit.sigma)
    prediction, low, high = np.exp([log_prediction.centre[0], log_prediction.low[0], log_prediction.high[0]])
    floor_uncertainty = _uncertainty(fit(measured, "power_floor"))
    status = "not identified" if "alpha" in floor_uncertainty.reasons_not_identified else "identified"
    loss_fit = fit(measured, "power")
    loss_alpha = loss_fit.params["alpha"]
    non_embedding_ratio = fit(measured, "power", size="params_non_embedding").params["alpha"] / KAPLAN_EXPONENT
    return {
        "fit": f"{A} N^-{alpha}, R2 {format_number(perplexity_fit.r2)}.",
        "slope": _slope_finding(perplexity_fit),
        "loss": f"The exponent of the loss is {loss_alpha:.4f} {interval(_uncertainty(loss_fit).ci['alpha'], 3)}, "
        f"{loss_alpha / KAPLAN_EXPONENT:.2f} times Kaplan's; {non_embedding_ratio:.2f} times with non-embedding N.",
        "floor": f"With a free floor E, alpha's interval is {interval(floor_uncertainty.ci['alpha'], 2)}: {status}.",
        "smallest": f"Without the 125M model the slope is {slope:.3f}.",
        "prediction": f"The fit gives {prediction:.2f}, 95% prediction interval [{low:.2f}, {high:.2f}].",
        **_speed_findings(pairs),
    }


def _uncertainty(law_fit: Fit) -> Uncertainty:
    return uncertainty(law_fit, replicates=0, rng=np.random.default_rng(0))


def _slope_finding(perplexity_fit: Fit) -> str:
    low, high = _uncertainty(perplexity_fit).ci["alpha"]
    if low is None or high is None:
        return "The slope has no interval: all rows lie on one line."
    parts = []
    for verb, is_inside in (("excludes", False), ("does not exclude", True)):
        if slopes := [f"-{exponent}" for exponent in CITED_EXPONENTS if (low <= exponent <= high) == is_inside]:
            parts.append(f"{verb} {join_names(slopes)}")
    return f"The slope's 95% t(2) interval [{-high:.3f}, {-low:.3f}] {' and '.join(parts)}."


def _speed_findings(pairs: list[Pair]) -> dict[str, str]:
    """Check the claims on decode speed, and on perplexity times speed, with the scored pairs."""
    scored_pairs = [pair for pair in pairs if pair.score]
    speeds = np.array([pair.decode_speed or 0 for pair in scored_pairs])  # 0 if not measured
    if not speeds.all():
        return dict.fromkeys(("speed", "product"), "Speed was not measured for all four models.")
    products = speeds * [pair.row["depth"] for pair in scored_pairs]
    spread = products.max() / products.min() - 1
    num_cached = sum(bool(pair.entry["speed"].get("cache")) for pair in scored_pairs)
    cache_note = ""
    if num_cached in (0, len(scored_pairs)):  # all or none
        cache_note = f", measured here {'with' if num_cached else 'without'} a KV cache"
    numbers = ", ".join(f"{product:.0f}" for product in products)
    conclusion = "not constant, so more than the depth determines the speed"
    if spread <= MAX_SPREAD:
        conclusion = "constant, so the depth determines the speed"
    losses = np.array([pair.score["loss"] for pair in scored_pairs if pair.score])
    largest = int(np.argmax(np.exp(losses) * speeds))  # index of the model with the largest product
    remark = ", the model with the worst perplexity" if largest == int(np.argmax(losses)) else ""
    return {
        "speed": f"Tokens/s times layers{cache_note}: {numbers} (they vary by {spread:.0%}): {conclusion}.",
        "product": f"Perplexity times speed is largest for {scored_pairs[largest].row['name']}{remark}.",
    }
