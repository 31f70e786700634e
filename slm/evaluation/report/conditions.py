"""How a speed was measured: speeds compare only under the same conditions."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from slm.evaluation.report.results import Entry, Results
from slm.scaling.report.wording import is_number


class Conditions(NamedTuple):
    """What must be equal for two speeds to compare."""

    device: Any
    device_name: Any
    dtype: Any
    threads: Any
    compiled: Any
    cache: Any
    prompt_tokens: Any
    new_tokens: Any

    @property
    def words(self) -> str:
        """In words."""
        threads = f" ({self.threads} threads)" if self.threads and str(self.device).startswith("cpu") else ""
        processor = self.device_name or f"{self.device}{threads}"  # the name of a CPU has its threads in it
        cache = ("KV cache" if self.cache else "no KV cache") + (", compiled" if self.compiled else "")
        return f"{processor}, {self.dtype}, {cache}, {self.prompt_tokens} + {self.new_tokens} tokens"


def conditions(entry: Entry) -> Conditions | None:
    """The conditions of a checkpoint's speed; None without a speed."""
    speed = entry.get("speed") or {}
    if not is_number(speed.get("decode_tokens_per_second")):
        return None
    return Conditions(*(speed.get(name) for name in Conditions._fields))


def usual_conditions(results: Results) -> Conditions | None:
    """Those of most checkpoints, of equals the first."""
    counts = Counter(found for entry in results.entries if (found := conditions(entry)))
    return counts.most_common(1)[0][0] if counts else None
