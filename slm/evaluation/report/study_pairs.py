"""Which checkpoints are models of the published study, and by what result they compare with its rows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from slm.evaluation.report.results import PUBLISHED, Entry, Results, has_loss, is_wikitext2, measure_of, number, scores
from slm.scaling.published import NAME
from slm.scaling.tables import read_table

TEXT_BYTES, JOINED = 1_290_590, 0.03
"""Of WikiText-2's raw test file, and the share by which joining its lines in another way may change that."""


@dataclass(frozen=True)
class Pair:
    """A published row and the checkpoint that is the same model."""

    row: Entry
    entry: Entry

    @property
    def score(self) -> Entry | None:
        """The whole of WikiText-2 by the study's protocol; None where that was not measured."""
        for score in scores(self.entry):
            measure = measure_of(score)
            whole = abs((number(score, "bytes") or 0) / TEXT_BYTES - 1) <= JOINED
            if measure[2:] == PUBLISHED and is_wikitext2(measure.data) and has_loss(score) and whole:
                return score
        return None


def pairs(results: Results) -> list[Pair]:
    """The study's models among the checkpoints, by name and number of parameters in the blocks, smallest first."""
    rows = read_table(NAME).frame.to_dict("records")
    return [Pair(dict(row), entry) for row in rows for entry in results.entries if _same(row, entry)]


def _same(row: Entry, entry: Entry) -> bool:
    """A name such as facebook/MobileLLM-125M; block-shared models have the same number, and another name.

    Embeddings are not counted: whether a file's head is the embedding is for its tensors to say.
    """
    named = re.compile(re.escape(row["name"]) + r"(?![\w.]|-layer-share|-LS)", re.IGNORECASE)
    return entry.get("params_non_embedding") == row["params_non_embedding"] and any(
        named.search(str(entry.get(key, ""))) for key in ("name", "checkpoint")
    )
