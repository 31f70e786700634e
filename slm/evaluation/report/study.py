"""Report section on the published MobileLLM study: its figures beside those measured here, and its claims.

Notable: `slm.scaling.published` holds the claims and what the study's own rows show. If all four of its models were
evaluated here, the same questions are put to the measured rows, and every figure is computed from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from slm.evaluation.report.results import PUBLISHED, Entry, Results, has_loss, is_wikitext2, measure_of, name_of, number
from slm.report.markdown import Section, table, table_by_column
from slm.runtime.words import NO_VALUE, escape_markdown, format_number, interval, is_number, join_names, megabytes
from slm.scaling.fitting import Fit, fit
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.prediction import band
from slm.scaling.published import published_claims, published_rows
from slm.scaling.tables import Table, table_from_frame

TEXT_BYTES, TEXT_TOLERANCE = 1_290_590, 0.03
"""Bytes of WikiText-2's raw test file, and the share by which joining its lines in other ways may change them."""
KAPLAN, CLAIMED = 0.076, (0.076, 0.089)
"""The exponent of loss of Kaplan et al. (2020), and the exponents with which the study compared its own."""
CONSTANT = 0.1
"""Products are called constant if their maximum exceeds their minimum by at most this share (published ones: 4%)."""


class Pair(NamedTuple):
    """A published row and an evaluated checkpoint of the same model."""

    row: Entry
    entry: Entry
    score: Entry | None
    """The checkpoint's score on all of WikiText-2 by the study's protocol; None if that was not measured."""

    @property
    def decode_speed(self) -> float | None:
        """Tokens decoded per second; None if that was not measured."""
        return number(self.entry["speed"], "decode_tokens_per_second")


def study_pairs(results: Results) -> list[Pair]:
    """Every pair of a published row and a checkpoint of the same model, smallest model first."""
    return [
        Pair(row, entry, next(filter(_is_comparable, entry["perplexity_results"]), None))
        for row in published_rows()
        for entry in results.entries
        if _is_same_model(row, entry)
    ]


def _is_comparable(score: Entry) -> bool:
    """Whether it is a loss on all of WikiText-2 by the study's protocol."""
    measure = measure_of(score)
    covers_text = abs((number(score, "bytes") or 0) / TEXT_BYTES - 1) <= TEXT_TOLERANCE
    return measure[2:] == PUBLISHED and is_wikitext2(measure.data) and has_loss(score) and covers_text


def _is_same_model(row: Entry, entry: Entry) -> bool:
    """Whether the checkpoint is named like the row (such as MobileLLM-125M) and has as many parameters in its blocks.

    Variants with shared blocks have as many, but their names end in -layer-share or -LS. Embeddings are not counted:
    whether the output head shares them shows only in the tensors of a file.
    """
    pattern = re.compile(re.escape(row["name"]) + r"(?![\w.]|-layer-share|-LS)", re.IGNORECASE)
    return entry.get("params_non_embedding") == row["params_non_embedding"] and any(
        pattern.search(str(entry.get(key, ""))) for key in ("name", "checkpoint")
    )


def published_points(results: Results) -> list[tuple[float, float]]:
    """N and loss of the study's rows; empty unless loss by the study's protocol on its text is what is fitted."""
    scored = [pair.score for pair in study_pairs(results) if pair.score]
    if results.fit_target != "loss" or results.primary not in [measure_of(score) for score in scored]:
        return []
    return [(row["params_total"], math.log(row["perplexity"])) for row in published_rows()]


def study_section(results: Results) -> Section | None:
    """Measured figures beside published ones, and the study's claims; None if none of its models was evaluated."""
    pairs = study_pairs(results)
    if not pairs:
        return None
    header = ("model", "perplexity here", "published", "difference", "decode tokens/s here", "published",
              "peak MB here", "published")  # fmt: skip
    measured = measured_table(pairs)
    findings = {} if measured is None else measured_findings(measured, pairs)
    columns: dict[str, Callable[[Entry], str]] = {
        "the study's claim": lambda claim: escape_markdown(claim["claim"]),
        "what the study's own rows say": lambda claim: escape_markdown(claim["finding"]),
    }
    if findings:
        columns["what the rows measured here say"] = lambda claim: escape_markdown(findings.get(claim["id"], NO_VALUE))
    return Section("The published study").add(
        "The study measured four models on WikiText-2 (sliding windows of 1024 tokens every 512, float16, one T4, no "
        "KV cache). A difference in perplexity is due to precision, text preparation or a leading BOS, and not to "
        "sampling: the text is the same.",
        table(header, [_row(pair) for pair in pairs]),
        ""
        if any(pair.score for pair in pairs)
        else "Its models were not evaluated here on the whole text by that protocol, so no perplexity is compared.",
        "" if findings else _why_not_repeated(pairs),
        table_by_column(published_claims(), columns),
    )


def _row(pair: Pair) -> list[str]:
    row, speed = pair.row, pair.entry["speed"]
    perplexity, published = (pair.score or {}).get("perplexity"), row["perplexity"]
    cache_note = {True: " (KV cache)", False: " (no cache)"}.get(speed.get("cache"), "")
    return [
        name_of(pair.entry),
        format_number(perplexity, 5),
        format_number(published, 5),
        f"{100 * (perplexity / published - 1):+.2f}%" if is_number(perplexity) else NO_VALUE,
        NO_VALUE if pair.decode_speed is None else format_number(pair.decode_speed) + cache_note,
        format_number(row["tokens_per_second"]),
        megabytes(speed.get("peak_memory_bytes")),
        format_number(row["peak_memory_mb"]),
    ]


def _why_not_repeated(pairs: list[Pair]) -> str:
    scored = [pair.row["name"] for pair in pairs if pair.score]
    missing = [row["name"] for row in published_rows() if row["name"] not in scored]
    reason = "a model was evaluated more than once, or is untrained"
    if missing:
        reason = f"not evaluated on the whole text by that protocol: {join_names(missing)}"
    return f"The study's fit is not repeated on figures measured here; {reason}."


def measured_table(pairs: list[Pair]) -> Table | None:
    """The study's four models with measured figures; None unless each was measured exactly once by its protocol."""
    rows = [
        {name: pair.row[name] for name in ("family", "depth", "name")}
        | {name: pair.entry[name] for name in ("params_total", "params_non_embedding")}
        | {"loss": pair.score["loss"]}
        for pair in pairs
        if pair.score
    ]
    if [row["name"] for row in rows] != [row["name"] for row in published_rows()]:
        return None
    try:
        return table_from_frame(pd.DataFrame(rows), name="measured")
    except ValueError:  # the table refuses the losses of untrained weights under a released name
        return None


def measured_findings(measured: Table, pairs: list[Pair]) -> dict[str, str]:
    """For each claim's id, what the rows measured here show."""
    power, of_loss = fit(measured, "power", target="perplexity"), fit(measured, "power")
    alpha_N = fit(measured, "power", size="params_non_embedding").params["alpha"]
    without_smallest = Table(measured.frame.iloc[1:].reset_index(drop=True), (), "measured")
    slope = -fit(without_smallest, "power", target="perplexity").params["alpha"]
    prediction = band(power, np.log([[2e9]]), None).for_run(power.sigma)  # the claim is about 2B parameters
    value, low, high = (float(np.exp(log[0])) for log in (prediction.centre, prediction.low, prediction.high))
    floored = _uncertainty(fit(measured, "power_floor"))
    state = "not identified" if "alpha" in floored.not_identified else "identified"
    alpha = of_loss.params["alpha"]
    return {
        "fit": "{} N^-{}, R2 {}.".format(*map(format_number, (power.params["A"], power.params["alpha"], power.r2))),
        "slope": _slope_finding(power),
        "loss": f"Of loss: {alpha:.4f} {interval(_uncertainty(of_loss).ci['alpha'], 3)}, {alpha / KAPLAN:.2f} times "
        f"Kaplan's; {alpha_N / KAPLAN:.2f} times with non-embedding N.",
        "floor": f"With a floor E free, alpha's interval is {interval(floored.ci['alpha'], 2)}: {state}.",
        "smallest": f"Without the 125M model the slope is {slope:.3f}.",
        "prediction": f"The fit gives {value:.2f}, 95% prediction interval [{low:.2f}, {high:.2f}].",
        **_speed_findings(pairs),
    }


def _uncertainty(law: Fit) -> Uncertainty:
    return uncertainty(law, replicates=0, rng=np.random.default_rng(0))


def _slope_finding(power: Fit) -> str:
    low, high = _uncertainty(power).ci["alpha"]
    if low is None or high is None:
        return "The slope has no interval: all rows lie on one line."
    inside = {f"-{value}": low <= value <= high for value in CLAIMED}
    parts = [
        f"{words} {join_names([value for value in inside if inside[value] == state])}"
        for state, words in ((False, "excludes"), (True, "does not exclude"))
        if state in inside.values()
    ]
    return f"The slope's 95% t(2) interval [{-high:.3f}, {-low:.3f}] {' and '.join(parts)}."


def _speed_findings(pairs: list[Pair]) -> dict[str, str]:
    """What the decode speeds of the scored pairs show on speed, and on perplexity times speed."""
    scored = [pair for pair in pairs if pair.score]
    speeds = np.array([pair.decode_speed or 0 for pair in scored])
    if not speeds.all():
        return dict.fromkeys(("speed", "product"), "Speed was not measured for all four.")
    products = speeds * [pair.row["depth"] for pair in scored]
    spread = products.max() / products.min() - 1
    caches = {bool(pair.entry["speed"].get("cache")) for pair in scored}
    cache_note = "" if len(caches) > 1 else f", measured here {'with' if caches == {True} else 'without'} a KV cache"
    if_constant, if_varying = "constant, so depth sets the speed", "not constant, so more than depth sets the speed"
    numbers = ", ".join(f"{product:.0f}" for product in products)
    verdict = if_constant if spread <= CONSTANT else if_varying
    losses = np.array([pair.score["loss"] for pair in scored if pair.score])
    largest = int(np.argmax(np.exp(losses) * speeds))
    remark = ", the model of the worst perplexity" if largest == int(np.argmax(losses)) else ""
    return {
        "speed": f"Tokens/s times layers{cache_note}: {numbers} (they vary by {spread:.0%}): {verdict}.",
        "product": f"Its largest value is {scored[largest].row['name']}'s{remark}.",
    }
