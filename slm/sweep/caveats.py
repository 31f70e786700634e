"""What checkpoints from elsewhere do not share with the runs of a table, or are not known to share, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from slm.sweep.matching import values_of

Entry = dict[str, Any]

BITS = "bits_per_byte"
TEXTS = ("eval_data", "eval_set", "evaluation_set")
WINDOWS = ("max_length", "context_length", "sequence_length")


def caveats(
    theirs: pd.DataFrame, runs: pd.DataFrame, points: Sequence[Entry], families: Sequence[Entry], *, measured: str
) -> list[str]:
    """A sentence each on data, tokens, tokenizer, context, recipe and extrapolation.

    `theirs` are the rows of the checkpoints, `points` and `families` as in overlay.json, `measured` the column that is
    laid over.
    """
    return [
        f"Data: nothing says that the checkpoints were trained on the data of these runs, and they were "
        f"{_texts(theirs, runs, measured)}.",
        f"Tokens: the runs were trained {_budgets(runs)}, the checkpoints {_budgets_of(points)}; a law in N alone says "
        "what a run of that size would reach on the tokens of these runs.",
        _tokenizers(theirs, runs, measured),
        f"Context: windows of {_values(theirs, WINDOWS)} tokens for the checkpoints and of {_values(runs, WINDOWS)} "
        "for the runs; a longer window lowers the result by itself.",
        "Recipe: optimizer, schedule, learning rate and choice of data are the checkpoints' own, and nothing here "
        "controls for them.",
        _extrapolation(families, len(points)),
    ]


def listed(names: Sequence[Any]) -> str:
    """Names with commas, or `none`."""
    return ", ".join(map(str, names)) or "none"


def _texts(theirs: pd.DataFrame, runs: pd.DataFrame, measured: str) -> str:
    """Whether both were scored on one text, as far as the tables say."""
    prints = [values_of(frame, ("eval_data_fingerprint",)) for frame in (theirs, runs)]
    if measured == BITS and all(one is not None for one in prints) and len({*prints[0], *prints[1]}) == 1:  # type: ignore[misc]
        return f"scored on the same text ({_values(theirs, TEXTS)})"
    where = _values(theirs, TEXTS, "a text that the file does not name") if measured in (BITS, "loss") else measured
    return (
        f"scored on {where}, the runs on {_values(runs, TEXTS, 'their own validation text')}: results on different "
        "texts differ whatever the model"
    )


def _budgets(runs: pd.DataFrame) -> str:
    return "on a number that the table does not say" if "tokens" not in runs else f"on {_span(runs['tokens'])}"


def _budgets_of(points: Sequence[Entry]) -> str:
    known = [point["tokens"] for point in points if point["tokens"] is not None]
    unknown = list(dict.fromkeys(point["name"] for point in points if point["tokens"] is None))
    said = [f"on {_span(known)}"] if known else []
    return " and ".join([*said, *([f"on a number that the file does not say ({listed(unknown)})"] if unknown else [])])


def _tokenizers(theirs: pd.DataFrame, runs: pd.DataFrame, measured: str) -> str:
    if measured == "loss":
        return "Tokenizer: the same, by what both tables say, so nats a token compare."
    own, other = (_values(frame, ("vocab_size",)) for frame in (runs, theirs))
    return (
        f"Tokenizer: vocabularies of {other} for the checkpoints and of {own} for the runs; bits per byte compare "
        "across tokenizers, and N counts the embeddings of each where it counts them."
    )


def _extrapolation(families: Sequence[Entry], count: int) -> str:
    of_each = zip(*(family["models"] for family in families if family["models"]), strict=True)
    beyond = [max(one["times_beyond"] for one in of_one) for of_one in of_each]
    return (
        f"Extrapolation: {sum(one > 1 for one in beyond)} of {count} lie beyond the sizes of the runs, by a factor of "
        f"up to {max(beyond, default=1.0):.3g}; there a law is a guess, and its interval takes the law for true."
    )


def _values(frame: pd.DataFrame, columns: Sequence[str], otherwise: str = "unknown size") -> str:
    values = values_of(frame, columns)
    if values is None:
        return otherwise
    return listed([f"{one:,.0f}" if isinstance(one, (int, float)) else one for one in values.unique().tolist()])


def _span(values: Any) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g} tokens" if low == high else f"{low:.3g} to {high:.3g} tokens"
