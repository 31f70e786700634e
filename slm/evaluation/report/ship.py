"""Report section "Which to ship": the measured checkpoints by use case, with the probability of each choice.

Notable: losses on the same blocks of a text are drawn together, so whatever makes a block hard for all checkpoints
cancels. Checkpoints may differ in dtype, compilation and engine, but not in the device or the text that was generated.
"""

from collections import Counter
from typing import Any

import numpy as np

from slm.evaluation.report.quality import joint_errors
from slm.evaluation.report.results import Entry, Results, family_of, has_same_extent, number
from slm.report.markdown import Section
from slm.report.ship import choice_blocks, choice_sentences
from slm.runtime.words import join_names
from slm.scaling.choices import DRAWS, SURE, Candidates, choose, draws_of
from slm.scaling.device import SPREADS, USUAL_REPETITIONS, median_error
from slm.scaling.measures import MEASURES

LEVEL = 0.95
CONDITIONS = ("device_name", "cache", "prompt_tokens", "new_tokens")


def ship_entry(results: Results) -> dict[str, Any] | None:
    """The content of decisions.json; None without two comparable checkpoints that have a result and a measured cost."""
    metric = results.metric_for(results.primary)
    pairs = results.scores_under(results.primary) if results.primary else []
    scores = [score for _, score in pairs]
    comparable = has_same_extent(scores) and (metric == "bits_per_byte" or results.has_same_tokens(results.primary))
    if len(pairs) < 2 or not comparable:
        return None
    entries = [entry for entry, _ in pairs]
    usual = Counter(_conditions(entry) for entry in entries if entry["speed"]).most_common(1)
    if not usual:
        return None
    costs, left_out = _costs(entries, usual[0][0])
    rng = np.random.default_rng(0)
    estimates = np.array([score[metric] for score in scores])
    losses = np.vstack([estimates, estimates + joint_errors(scores, metric, DRAWS, rng)])
    names = [str(entry["name"]) for entry in entries]
    candidates = Candidates(names, losses, {key: np.exp(draws_of(*cost, rng)) for key, cost in costs.items()})
    chosen = choose(candidates, results.limits)
    made: dict[str, Any] = {"target": metric, "level": LEVEL, "sure": SURE, **chosen}
    made["limits"] = {key: limit for key, limit in results.limits.items() if limit is not None}
    made["words"] = {key: MEASURES[key].words for key in costs}
    notes = [
        "Errors of results cover other text of the same kind, not other seeds of training.",
        "Errors of speeds are those of repetitions in a row: load on the machine that lasted longer is not in them.",
    ]
    if left_out:
        notes.append(f"The speed of {join_names(left_out)} was measured under other conditions and is not compared.")
    made["notes"] = notes
    rows = zip(candidates.entries(chosen["meets"], LEVEL), entries, strict=True)
    return made | {"candidates": [row | {"family": family_of(entry)} for row, entry in rows]}


def _conditions(entry: Entry) -> tuple[Any, ...]:
    return tuple(entry["speed"].get(key) for key in CONDITIONS)


def _costs(entries: list[Entry], usual: tuple[Any, ...]) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Key of a measure -> log costs of all checkpoints and their errors; and who was measured otherwise."""
    costs = {}
    left_out: list[str] = []
    for key, measure in MEASURES.items():
        values, errors = np.full(len(entries), np.nan), np.zeros(len(entries))
        for k, entry in enumerate(entries):
            value = number(entry["speed"], measure.column) or number(entry, measure.column)
            if value is None:
                continue
            if measure.is_rate and _conditions(entry) != usual:
                left_out.append(str(entry["name"]))
                continue
            values[k] = np.log(measure.invert(value))
            prefix = measure.column.partition("_")[0]
            spread = entry["speed"].get(f"{prefix}_spread") if measure.column in SPREADS else None
            if spread:
                slowest, fastest = spread
                repetitions = entry["speed"].get("repetitions") or USUAL_REPETITIONS
                errors[k] = median_error(slowest, fastest, repetitions)
        if np.isfinite(values).any():
            costs[key] = values, errors
    return costs, list(dict.fromkeys(left_out))


def ship_section(results: Results) -> Section | None:
    """The choices among the checkpoints; None if they cannot be compared."""
    made = ship_entry(results)
    if made is None:
        return None
    return Section("Which to ship").add(*choice_blocks(made))


def ship_sentences(results: Results) -> list[str]:
    """The choices in a sentence each."""
    made = ship_entry(results)
    return choice_sentences(made) if made else []
