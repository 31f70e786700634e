"""The section on speed and memory: which speeds compare, and the latency price of block sharing."""

from __future__ import annotations

from collections import Counter
from functools import partial

from slm.evaluation.report.results import Entry, Results, name_of
from slm.report.markdown import Columns, Section, bullets, figure, table_by_column
from slm.runtime.words import (
    NO_VALUE,
    escape_markdown,
    exact_count,
    format_number,
    interval,
    is_number,
    join_names,
    megabytes,
    seconds,
    yes_or_no,
)

CAPTION = (
    "Bars: 2 standard errors, and the spread of the speed. Only speeds measured under the same conditions. A "
    "checkpoint is pale if another is at least as good in both, and better in one."
)


def conditions(entry: Entry) -> str | None:
    """The conditions of a checkpoint's speed in words: speeds compare if these are equal. None without a speed."""
    speed = entry["speed"]
    if not is_number(speed.get("decode_tokens_per_second")):
        return None
    device, dtype, prompt, new = (speed.get(key) for key in ("device", "dtype", "prompt_tokens", "new_tokens"))
    threads = f" ({speed['threads']} threads)" if speed.get("threads") and device == "cpu" else ""
    processor = speed.get("device_name") or f"{device}{threads}"  # the name of a CPU has its threads in it
    cache = ("KV cache" if speed.get("cache") else "no KV cache") + (", compiled" if speed.get("compiled") else "")
    return f"{processor}, {dtype}, {cache}, {prompt} + {new} tokens"


def usual_conditions(results: Results) -> str | None:
    """The conditions of most checkpoints; a tie goes to the first."""
    counts = Counter(shared for entry in results.entries if (shared := conditions(entry)))
    return counts.most_common(1)[0][0] if counts else None


def speed_section(results: Results) -> Section | None:
    """Load time, prefill, decode and memory of every checkpoint; None where no speed was measured."""
    entries = [entry for entry in results.entries if entry["speed"]]
    if not entries:
        return None
    return Section("Speed and memory").add(
        "Medians over repetitions after a warm-up, in brackets their spread; one sequence. Prefill reads a prompt at "
        "once; decode generates one token after the other. Neither includes loading. MB are 10^6 bytes. `512 + 128 "
        "tokens` is a prompt of 512 and 128 generated after it. KV bytes are those of keys and values: for a first "
        "token, and for the longest context, of which windows and sparse patterns keep fewer tokens. State bytes are "
        "those of recurrent mixers, the same after any number of tokens.",
        _caution(results),
        table_by_column(entries, COLUMNS),
        bullets(filter(None, map(_sharing_line, entries))),
        figure(results.folder, "pareto", CAPTION),
    )


def _rate(name: str, entry: Entry) -> str:
    value, spread = (entry["speed"].get(f"{name}_{key}") for key in ("tokens_per_second", "spread"))
    return format_number(value) + (f" {interval(spread)}" if spread and is_number(value) else "")


COLUMNS: Columns = {
    "checkpoint": name_of,
    "load": lambda entry: seconds(entry.get("load_seconds")),
    "prefill tokens/s": partial(_rate, "prefill"),
    "decode tokens/s": partial(_rate, "decode"),
    "KV cache": lambda entry: yes_or_no(entry["speed"].get("cache")),
    "peak MB": lambda entry: megabytes(entry["speed"].get("peak_memory_bytes")),
    "weights MB": lambda entry: megabytes(entry["speed"].get("model_bytes")),
    "KV bytes, first token": lambda entry: exact_count(entry["speed"].get("kv_bytes_per_token")),
    "KV bytes, full context": lambda entry: exact_count(entry["speed"].get("kv_cache_bytes")),
    "state bytes": lambda entry: exact_count(entry["speed"].get("state_bytes")),
    "measured on": lambda entry: escape_markdown(conditions(entry) or NO_VALUE),
}


def _caution(results: Results) -> str:
    usual = usual_conditions(results)
    others = [name_of(entry) for entry in results.entries if conditions(entry) not in (None, usual)]
    if not others or usual is None:
        return ""
    return (
        f"**Caution:** {join_names(others)} {'was' if len(others) == 1 else 'were'} measured under other conditions "
        f"than the rest ({escape_markdown(usual)}), so those speeds do not compare; see the last column."
    )


def sharing_price(entry: Entry) -> dict[str, float]:
    """For prefill and decode: time a token takes, over that of the same tensors with every block used once."""
    rates, unshared = entry["speed"], entry["speed"].get("without_sharing") or {}
    return {
        name: unshared[key] / rates[key]
        for name, key in (("prefill", "prefill_tokens_per_second"), ("decode", "decode_tokens_per_second"))
        if is_number(unshared.get(key)) and is_number(rates.get(key))
    }


def _sharing_line(entry: Entry) -> str:
    """The latency price of block sharing in words; empty for a model that shares none."""
    repeats = entry["shape"].get("num_repeats")
    used = f"uses each block {repeats} times" if is_number(repeats) else "uses blocks repeatedly"
    times = []
    for name, ratio in sharing_price(entry).items():
        both = (entry["speed"], entry["speed"]["without_sharing"])
        shared, unshared = (format_number(rates[f"{name}_tokens_per_second"]) for rates in both)
        times.append(f"{format_number(ratio, 3)} times the time in {name} ({shared} against {unshared} tokens/s)")
    if not times:
        return ""
    return f"{name_of(entry)} {used}: against the same tensors without sharing a token takes {join_names(times)}."
