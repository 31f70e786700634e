"""The published study's questions put to the rows measured here; every figure is computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from slm.evaluation.report.results import number
from slm.evaluation.report.study_pairs import Pair
from slm.runtime.words import interval, listed, sig
from slm.scaling.fitting import fit
from slm.scaling.intervals import uncertainty
from slm.scaling.prediction import band
from slm.scaling.published import NAME
from slm.scaling.tables import Table, read_table, table_from_frame

KAPLAN, CLAIMED = 0.076, (0.076, 0.089)
"""Kaplan et al. 2020's exponent of loss, and the two slopes that the study compared its own with."""
CONSTANT = 0.1
"""Products that vary by no more than this share are called constant: the published ones vary by 4%."""


def measured_table(found: list[Pair]) -> Table | None:
    """The study's four models with the figures measured here; None unless each was, once, by its protocol."""
    names = [pair.row["name"] for pair in found if pair.score]
    if len(names) != len(set(names)) or set(names) != set(read_table(NAME).frame["name"]):
        return None
    rows = [
        {name: pair.row[name] for name in ("family", "depth", "name")}
        | {name: pair.entry[name] for name in ("params_total", "params_non_embedding")}
        | {"loss": pair.score["loss"]}
        for pair in found
        if pair.score
    ]
    try:
        return table_from_frame(pd.DataFrame(rows), name="measured")
    except ValueError:  # untrained weights under a released name: losses that no model has
        return None


def measured_findings(measured: Table, found: list[Pair]) -> dict[str, str]:
    """What the rows measured here say of the study's claims, by the claim's id, as far as they bear on it."""
    about: dict[str, Callable[[], str]] = {
        "fit": lambda: _fit_said(measured),
        "slope": lambda: _slope_said(measured),
        "loss": lambda: _loss_said(measured),
        "floor": lambda: _floor_said(measured),
        "smallest": lambda: _smallest_said(measured),
        "prediction": lambda: _prediction_said(measured),
        "speed": lambda: _speed_said(found),
        "product": lambda: _product_said(found),
    }
    return {claim: said() for claim, said in about.items()}


def _interval(measured: Table, law: str, target: str) -> tuple[Any, Any]:
    found = fit(measured, law, target=target)
    return uncertainty(found, replicates=0, rng=np.random.default_rng(0)).ci["alpha"]


def _fit_said(measured: Table) -> str:
    found = fit(measured, "power", target="perplexity")
    return f"{sig(found.params['A'])} N^-{sig(found.params['alpha'])}, R2 {sig(found.r2)}."


def _slope_said(measured: Table) -> str:
    low, high = _interval(measured, "power", "perplexity")
    if low is None or high is None:
        return "The slope has no interval: all rows lie on one line."
    out = [f"-{value}" for value in CLAIMED if not low <= value <= high]
    within = [f"-{value}" for value in CLAIMED if low <= value <= high]
    said = [f"excludes {listed(out)}"] * bool(out) + [f"does not exclude {listed(within)}"] * bool(within)
    return f"The slope's 95% t(2) interval [{-high:.3f}, {-low:.3f}] {' and '.join(said)}."


def _loss_said(measured: Table) -> str:
    alpha = fit(measured, "power").params["alpha"]
    inner = fit(measured, "power", size="params_non_embedding").params["alpha"]
    return (
        f"Of loss: {alpha:.4f} {interval(_interval(measured, 'power', 'loss'), 3)}, {alpha / KAPLAN:.2f} times "
        f"Kaplan's; {inner / KAPLAN:.2f} times with non-embedding N."
    )


def _floor_said(measured: Table) -> str:
    found = fit(measured, "power_floor")
    of = uncertainty(found, replicates=0, rng=np.random.default_rng(0))
    state = "not identified" if "alpha" in of.not_identified else "identified"
    return f"With a floor E free, alpha's interval is {interval(of.ci['alpha'], 2)}: {state}."


def _smallest_said(measured: Table) -> str:
    rest = Table(measured.frame.sort_values("params_total").iloc[1:].reset_index(drop=True), (), "measured")
    slope = -fit(rest, "power", target="perplexity").params["alpha"]
    return f"Without the 125M model the slope is {slope:.3f}."


def _prediction_said(measured: Table) -> str:
    found = fit(measured, "power", target="perplexity")
    run = band(found, np.log([[2e9]]), None).of_run(found.sigma)
    value, low, high = (float(np.exp(end[0])) for end in (run.centre, run.low, run.high))
    return f"The fit gives {value:.2f}, 95% prediction interval [{low:.2f}, {high:.2f}]."


def _speeds(found: list[Pair]) -> list[tuple[Pair, float]]:
    """Pairs that are scored, with their decode speeds; empty if one was not measured."""
    scored = [pair for pair in found if pair.score]
    speeds = [number(pair.entry.get("speed") or {}, "decode_tokens_per_second") for pair in scored]
    known = [(pair, speed) for pair, speed in zip(scored, speeds, strict=True) if speed is not None]
    return known if len(known) == len(scored) else []


def _speed_said(found: list[Pair]) -> str:
    speeds = _speeds(found)
    if not speeds:
        return "Speed was not measured for all four."
    products = [speed * pair.row["depth"] for pair, speed in speeds]
    varies = max(products) / min(products) - 1
    caches = {bool(pair.entry["speed"].get("cache")) for pair, _ in speeds}
    how = {frozenset({True}): "with a KV cache", frozenset({False}): "without a KV cache"}.get(frozenset(caches), "")
    said = (
        "constant, so depth sets the speed" if varies <= CONSTANT else "not constant, so more than depth sets the speed"
    )
    listing = ", ".join(f"{product:.0f}" for product in products)
    how = f", measured here {how}" if how else ""
    return f"Tokens/s times layers{how}: {listing} (they vary by {varies:.0%}): {said}."


def _product_said(found: list[Pair]) -> str:
    speeds = _speeds(found)
    if not speeds:
        return "Speed was not measured for all four."
    perplexities = [math.exp(pair.score["loss"]) for pair, _ in speeds]  # type: ignore[index]
    products = [one * speed for one, (_, speed) in zip(perplexities, speeds, strict=True)]
    best = int(np.argmax(products))
    worst = ", the model of the worst perplexity" if best == int(np.argmax(perplexities)) else ""
    return f"Its largest value is {speeds[best][0].row['name']}'s{worst}."
