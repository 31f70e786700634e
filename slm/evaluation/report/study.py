"""Report section on the published MobileLLM study: its figures beside those measured here, and its claims.

Notable: `slm.scaling.published` holds the claims and what the study's own rows show. If all four of its models were
evaluated here, the same questions are put to the measured rows, and every figure is computed from them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from slm.evaluation.report.results import (
    PUBLISHED,
    Entry,
    Results,
    has_loss,
    is_wikitext2,
    measure_of,
    name_of,
    number,
    scores,
)
from slm.report.markdown import Section, table
from slm.runtime.words import NOTHING, escape_markdown, interval, is_number, listed, megabytes, sig
from slm.scaling.fitting import fit
from slm.scaling.intervals import Uncertainty, uncertainty
from slm.scaling.prediction import band
from slm.scaling.published import NAME, published_claims
from slm.scaling.tables import Table, read_table, table_from_frame

TEXT_BYTES, TEXT_TOLERANCE = 1_290_590, 0.03
"""Bytes of WikiText-2's raw test file, and the share by which joining its lines in other ways may change them."""
KAPLAN, CLAIMED = 0.076, (0.076, 0.089)
"""The exponent of loss of Kaplan et al. (2020), and the exponents with which the study compared its own."""
CONSTANT = 0.1
"""Products are called constant if their maximum exceeds their minimum by at most this share (published ones: 4%)."""


@dataclass(frozen=True)
class Pair:
    """A published row and an evaluated checkpoint of the same model."""

    row: Entry
    entry: Entry

    @property
    def score(self) -> Entry | None:
        """The checkpoint's score on all of WikiText-2 by the study's protocol; None if that was not measured."""
        for score in scores(self.entry):
            measure = measure_of(score)
            covers_text = abs((number(score, "bytes") or 0) / TEXT_BYTES - 1) <= TEXT_TOLERANCE
            if measure[2:] == PUBLISHED and is_wikitext2(measure.data) and has_loss(score) and covers_text:
                return score
        return None

    @property
    def decode_speed(self) -> float | None:
        """Tokens decoded per second; None if that was not measured."""
        return number(self.entry.get("speed") or {}, "decode_tokens_per_second")


def study_pairs(results: Results) -> list[Pair]:
    """Every pair of a published row and a checkpoint of the same model, smallest model first."""
    rows = read_table(NAME).frame.to_dict("records")
    return [Pair(dict(row), entry) for row in rows for entry in results.entries if _is_same_model(row, entry)]


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
    """N and loss of the study's rows; empty if the primary measure is not the study's protocol on its text."""
    scored = [score for pair in study_pairs(results) if (score := pair.score)]
    if results.primary not in [measure_of(score) for score in scored]:
        return []
    frame = read_table(NAME).frame
    return list(zip(frame["params_total"].tolist(), frame["loss"].tolist(), strict=True))


def study_section(results: Results) -> Section | None:
    """Measured figures beside published ones, and the study's claims; None if none of its models was evaluated."""
    pairs = study_pairs(results)
    if not pairs:
        return None
    header = ("model", "perplexity here", "published", "difference", "decode tokens/s here", "published",
              "peak MB here", "published")  # fmt: skip
    section = Section("The published study").add(
        "The study measured four models on WikiText-2 (sliding windows of 1024 tokens every 512, float16, one T4, no "
        "KV cache). A difference in perplexity is due to precision, text preparation or a leading BOS, and not to "
        "sampling: the text is the same.",
        table(header, [_row(pair) for pair in pairs]),
    )
    if not any(pair.score for pair in pairs):
        section.add(
            "Its models were not evaluated here on the whole text by that protocol, so no perplexity is compared."
        )
    measured = measured_table(pairs)
    findings = None if measured is None else measured_findings(measured, pairs)
    columns, rows = ["the study's claim", "what the study's own rows say"], []
    for claim in published_claims():
        rows.append([escape_markdown(claim["claim"]), escape_markdown(claim["finding"])])
        if findings is not None:
            rows[-1].append(escape_markdown(findings.get(claim["id"], NOTHING)))
    if findings is None:
        section.add(_why_not_repeated(pairs))
    else:
        columns.append("what the rows measured here say")
    return section.add(table(columns, rows))


def _row(pair: Pair) -> list[str]:
    speed = pair.entry.get("speed") or {}
    perplexity, published = (pair.score or {}).get("perplexity"), pair.row["perplexity"]
    cache_note = {True: " (KV cache)", False: " (no cache)"}.get(speed.get("cache"), "")  # type: ignore[arg-type]
    return [
        name_of(pair.entry),
        sig(perplexity, 5),
        sig(published, 5),
        f"{100 * (perplexity / published - 1):+.2f}%" if is_number(perplexity) else NOTHING,
        NOTHING if pair.decode_speed is None else sig(pair.decode_speed) + cache_note,
        sig(pair.row["tokens_per_second"]),
        megabytes(number(speed, "peak_memory_bytes")),
        sig(pair.row["peak_memory_mb"]),
    ]


def _why_not_repeated(pairs: list[Pair]) -> str:
    scored = [pair.row["name"] for pair in pairs if pair.score]
    missing = [name for name in read_table(NAME).frame["name"] if name not in scored]
    reason = "a model was evaluated more than once, or is untrained"
    if missing:
        reason = f"not evaluated on the whole text by that protocol: {listed(missing)}"
    return f"The study's fit is not repeated on figures measured here; {reason}."


def measured_table(pairs: list[Pair]) -> Table | None:
    """The study's four models with measured figures; None unless each was measured exactly once by its protocol."""
    names = [pair.row["name"] for pair in pairs if pair.score]
    if len(names) != len(set(names)) or set(names) != set(read_table(NAME).frame["name"]):
        return None
    rows = [
        {name: pair.row[name] for name in ("family", "depth", "name")}
        | {name: pair.entry[name] for name in ("params_total", "params_non_embedding")}
        | {"loss": pair.score["loss"]}
        for pair in pairs
        if pair.score
    ]
    try:
        return table_from_frame(pd.DataFrame(rows), name="measured")
    except ValueError:  # the table refuses the losses of untrained weights under a released name
        return None


def measured_findings(measured: Table, pairs: list[Pair]) -> dict[str, str]:
    """For each claim's id, what the rows measured here show."""
    power = fit(measured, "power", target="perplexity")
    prediction = band(power, np.log([[2e9]]), None).of_run(power.sigma)  # the claim is about 2B parameters
    value, low, high = (float(np.exp(log[0])) for log in (prediction.centre, prediction.low, prediction.high))
    frame = measured.frame.sort_values("params_total")
    without_smallest = Table(frame.iloc[1:].reset_index(drop=True), (), "measured")
    slope = -fit(without_smallest, "power", target="perplexity").params["alpha"]
    return {
        "fit": f"{sig(power.params['A'])} N^-{sig(power.params['alpha'])}, R2 {sig(power.r2)}.",
        "slope": _slope_finding(measured),
        "loss": _loss_finding(measured),
        "floor": _floor_finding(measured),
        "smallest": f"Without the 125M model the slope is {slope:.3f}.",
        "prediction": f"The fit gives {value:.2f}, 95% prediction interval [{low:.2f}, {high:.2f}].",
        "speed": _speed_finding(pairs),
        "product": _product_finding(pairs),
    }


def _uncertainty(measured: Table, law: str, target: str = "loss") -> Uncertainty:
    return uncertainty(fit(measured, law, target=target), replicates=0, rng=np.random.default_rng(0))


def _slope_finding(measured: Table) -> str:
    low, high = _uncertainty(measured, "power", "perplexity").ci["alpha"]
    if low is None or high is None:
        return "The slope has no interval: all rows lie on one line."
    outside = [f"-{value}" for value in CLAIMED if not low <= value <= high]
    inside = [f"-{value}" for value in CLAIMED if low <= value <= high]
    parts = [f"excludes {listed(outside)}"] * bool(outside) + [f"does not exclude {listed(inside)}"] * bool(inside)
    return f"The slope's 95% t(2) interval [{-high:.3f}, {-low:.3f}] {' and '.join(parts)}."


def _loss_finding(measured: Table) -> str:
    alpha = fit(measured, "power").params["alpha"]
    alpha_non_embedding = fit(measured, "power", size="params_non_embedding").params["alpha"]
    confidence: Any = _uncertainty(measured, "power").ci["alpha"]
    return (
        f"Of loss: {alpha:.4f} {interval(confidence, 3)}, {alpha / KAPLAN:.2f} times Kaplan's; "
        f"{alpha_non_embedding / KAPLAN:.2f} times with non-embedding N."
    )


def _floor_finding(measured: Table) -> str:
    floored = _uncertainty(measured, "power_floor")
    state = "not identified" if "alpha" in floored.not_identified else "identified"
    return f"With a floor E free, alpha's interval is {interval(floored.ci['alpha'], 2)}: {state}."


def _speeds(pairs: list[Pair]) -> list[tuple[Pair, float]]:
    """Pairs that have a score, with their decode speeds; empty if one has no speed."""
    scored = [pair for pair in pairs if pair.score]
    speeds = [(pair, speed) for pair in scored if (speed := pair.decode_speed) is not None]
    return speeds if len(speeds) == len(scored) else []


def _speed_finding(pairs: list[Pair]) -> str:
    speeds = _speeds(pairs)
    if not speeds:
        return "Speed was not measured for all four."
    products = [speed * pair.row["depth"] for pair, speed in speeds]
    spread = max(products) / min(products) - 1
    caches = {bool(pair.entry["speed"].get("cache")) for pair, _ in speeds}
    cache_note = "" if len(caches) > 1 else f", measured here {'with' if caches == {True} else 'without'} a KV cache"
    if_constant, if_varying = "constant, so depth sets the speed", "not constant, so more than depth sets the speed"
    numbers = ", ".join(f"{product:.0f}" for product in products)
    verdict = if_constant if spread <= CONSTANT else if_varying
    return f"Tokens/s times layers{cache_note}: {numbers} (they vary by {spread:.0%}): {verdict}."


def _product_finding(pairs: list[Pair]) -> str:
    speeds = _speeds(pairs)
    if not speeds:
        return "Speed was not measured for all four."
    perplexities = [math.exp(pair.score["loss"]) for pair, _ in speeds]  # type: ignore[index]
    products = [perplexity * speed for perplexity, (_, speed) in zip(perplexities, speeds, strict=True)]
    largest = int(np.argmax(products))
    remark = ", the model of the worst perplexity" if largest == int(np.argmax(perplexities)) else ""
    return f"Its largest value is {speeds[largest][0].row['name']}'s{remark}."
