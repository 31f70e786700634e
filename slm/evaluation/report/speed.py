"""The section on speed and memory: which speeds compare, and the latency price of block sharing."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from slm.evaluation.report.results import Entry, Results, name_of
from slm.report.markdown import Section, bullets, table
from slm.runtime.words import NOTHING, escape_markdown, interval, is_number, listed, megabytes, seconds, sig

MEMORY_COLUMNS = (
    ("KV bytes, first token", "kv_bytes_per_token"),
    ("KV bytes, full context", "kv_cache_bytes"),
    ("state bytes", "state_bytes"),
)


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
    """The conditions of most checkpoints; a tie goes to the first."""
    counts = Counter(shared for entry in results.entries if (shared := conditions(entry)))
    return counts.most_common(1)[0][0] if counts else None


def speed_section(results: Results) -> Section | None:
    """Load time, prefill, decode and memory of every checkpoint; None where no speed was measured."""
    entries = [entry for entry in results.entries if entry.get("speed")]
    if not entries:
        return None
    header = ("checkpoint", "load", "prefill tokens/s", "decode tokens/s", "KV cache", "peak MB", "weights MB",
              *(title for title, _ in MEMORY_COLUMNS), "measured on")  # fmt: skip
    section = Section("Speed and memory").add(
        "Medians over repetitions after a warm-up, in brackets their spread; one sequence. Prefill reads a prompt at "
        "once; decode generates one token after the other. Neither includes loading. MB are 10^6 bytes. `512 + 128 "
        "tokens` is a prompt of 512 and 128 generated after it. KV bytes are those of keys and values: for a first "
        "token, and for the longest context, of which windows and sparse patterns keep fewer tokens. State bytes are "
        "those of recurrent mixers, the same after any number of tokens.",
        *(f"**Mind:** {line}" for line in _warnings(results)),
        table(header, [_row(entry) for entry in entries]),
    )
    return section.add(bullets([line for entry in entries if (line := sharing_line(entry))]))


def _row(entry: Entry) -> list[str]:
    speed, measured_on = entry["speed"], conditions(entry)
    return [
        name_of(entry),
        seconds(entry.get("load_seconds")),
        _rate(speed, "prefill"),
        _rate(speed, "decode"),
        {True: "yes", False: "no"}.get(speed.get("cache"), NOTHING),
        megabytes(speed.get("peak_memory_bytes")),
        megabytes(speed.get("model_bytes")),
        *(f"{speed[key]:,}" if is_number(speed.get(key)) else NOTHING for _, key in MEMORY_COLUMNS),
        escape_markdown(measured_on.words) if measured_on else NOTHING,
    ]


def _rate(speed: Entry, name: str) -> str:
    value, spread = speed.get(f"{name}_tokens_per_second"), speed.get(f"{name}_spread")
    return sig(value) + (f" {interval(spread)}" if spread and is_number(value) else "")


def _warnings(results: Results) -> list[str]:
    usual = usual_conditions(results)
    others = [name_of(entry) for entry in results.entries if conditions(entry) not in (None, usual)]
    if not others or usual is None:
        return []
    return [
        f"{listed(others)} {'was' if len(others) == 1 else 'were'} measured under other conditions than the rest "
        f"({escape_markdown(usual.words)}), so those speeds do not compare; see the last column."
    ]


def sharing_price(entry: Entry) -> dict[str, float]:
    """For prefill and decode: time a token takes, over that of the same tensors with every block used once."""
    speed = entry.get("speed") or {}
    without = speed.get("without_sharing") or {}
    keys = {name: f"{name}_tokens_per_second" for name in ("prefill", "decode")}
    return {
        name: without[key] / speed[key]
        for name, key in keys.items()
        if is_number(without.get(key)) and is_number(speed.get(key)) and speed[key] > 0
    }


def sharing_line(entry: Entry) -> str:
    """The latency price of block sharing in words; empty for a model that shares none."""
    price = sharing_price(entry)
    if not price:
        return ""
    repeats = (entry.get("shape") or {}).get("num_repeats")
    used = f"uses each block {repeats} times" if is_number(repeats) else "uses blocks repeatedly"
    speed = entry["speed"]
    times = []
    for name, ratio in price.items():
        shared, unshared = (sig(rates[f"{name}_tokens_per_second"]) for rates in (speed, speed["without_sharing"]))
        times.append(f"{sig(ratio, 3)} times the time in {name} ({shared} against {unshared} tokens/s)")
    name = name_of(entry)
    return f"{name} {used}: against the same tensors without sharing a token takes {listed(times)}."
