"""What a device is measured by, and the limits that `ship` sets on it. Imports neither numpy nor pandas."""

from dataclasses import dataclass

from slm.runtime.settings import POSITIVE, Kind, or_null


@dataclass(frozen=True)
class Measure:
    """A column of a device's table. Its *cost* is the value itself, or of a rate the seconds per token, 1 / rate."""

    column: str
    words: str
    is_rate: bool
    features: tuple[str, ...]
    """Terms of the model of the cost (`slm.scaling.costs`), the most important first."""
    aliases: tuple[tuple[str, float], ...] = ()
    """Other headers of the column, each with the factor that converts its unit."""

    def invert(self, value: float) -> float:
        """Convert the value to its cost, or the cost to its value."""
        return 1 / value if self.is_rate else value


_WORK = ("block_uses", "params_read", "constant", "head", "cache")
MEASURES = {
    "bytes": Measure("model_bytes", "bytes", False, ("params_total", "constant", "head"),
                     (("file_bytes", 1.0), ("size_bytes", 1.0), ("model_mb", 1e6), ("file_mb", 1e6))),
    "memory": Measure("peak_memory_bytes", "bytes of memory", False, ("params_total", "constant", "cache"),
                      (("memory_bytes", 1.0), ("peak_memory_mb", 1e6), ("memory_mb", 1e6), ("peak_mb", 1e6))),
    "prefill_tokens_per_second": Measure("prefill_tokens_per_second", "prefill tokens/s", True, _WORK,
                                         (("prefill", 1.0), ("prefill_speed", 1.0))),
    "decode_tokens_per_second": Measure("decode_tokens_per_second", "decode tokens/s", True, _WORK,
                                        (("tokens_per_second", 1.0), ("tok/s", 1.0), ("decode", 1.0),
                                         ("decode_speed", 1.0))),
    "joules": Measure("joules_per_token", "joules per token", False, _WORK, (("joules", 1.0), ("j_per_token", 1.0))),
}  # fmt: skip
"""Key of `ship` -> what it limits."""
SPEEDS = ("decode_tokens_per_second", "prefill_tokens_per_second")
"""The measures that may be the latency of a decision, the first that was measured."""
HERE = "here"  # the value of `device` with which sweep.py measures this machine
HERE_FILE = "device.csv"  # in output_dir: the measurements of `device=here`
SHIP_KINDS: dict[str, Kind] = {f"ship.{key}": or_null(POSITIVE) for key in (*MEASURES, "max_loss")}
