"""Whether a run was trained on what it is evaluated on, as far as the hashes of its training documents can show.

Notable: they are looked for in the caches, by the fingerprint of the run's corpus. Only whole documents are found (of a
long text the pieces that `data.max_document_bytes` cut it into), so a share of 0 is no proof of the contrary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.data.documents import text_hash, training_hashes
from slm.data.readers import pieces
from slm.evaluation.texts import cached_documents, run_facts


@dataclass(frozen=True)
class TrainedOn:
    """`text_hash` of all training documents of a run, and the bytes at which long ones were cut."""

    hashes: np.ndarray
    limit: int | None

    def share_of_bytes(self, texts: Iterable[str]) -> float:
        """The share of the bytes of some texts that are in training documents."""
        cut = [piece for text in texts for piece in pieces([text.encode()], self.limit)]
        sizes = np.array([len(piece) for piece in cut])
        return float(sizes[self._hold([piece.decode() for piece in cut])].sum() / sizes.sum())

    def share_of(self, questions: Sequence[Sequence[str]]) -> float:
        """The share of questions of which any of the texts given for each is a training document."""
        found = self._hold([text for texts in questions for text in texts])
        starts = np.cumsum([0, *(len(texts) for texts in questions[:-1])])
        return float(np.logical_or.reduceat(found, starts).mean())

    def _hold(self, texts: Sequence[str]) -> np.ndarray:
        return np.isin(np.array([text_hash(text) for text in texts], dtype=np.uint64), self.hashes)


def trained_on(run: Path | None, cache_dir: Path) -> TrainedOn | None:
    """What a run was trained on; None for what is no run, and where neither cache has its documents any more."""
    if run is None:
        return None
    config, prints = run_facts(run)
    folder = cached_documents(config, prints["data"], cache_dir)
    hashes = None if folder is None else training_hashes(folder)
    return None if hashes is None else TrainedOn(hashes, config["data"].get("max_document_bytes"))


def text_caveats(entry: Mapping[str, Any]) -> list[str]:
    """A sentence for each text of an entry of results.json that the checkpoint was trained on, in part or whole."""
    shares = {score["data"]: score.get("in_training") for score in entry.get("perplexity_results") or []}
    return _caveats(entry, shares, "bytes")


def task_caveats(entry: Mapping[str, Any]) -> list[str]:
    """The same for its tasks."""
    shares = {task: result.get("in_training") for task, result in (entry.get("tasks") or {}).items()}
    return _caveats(entry, shares, "questions")


def _caveats(entry: Mapping[str, Any], shares: Mapping[str, float | None], unit: str) -> list[str]:
    return [
        f"{entry['name']} was trained on {100 * share:.3g}% of the {unit} of {what}, so its figures there say little "
        "of text that it has not seen."
        for what, share in shares.items()
        if share
    ]
