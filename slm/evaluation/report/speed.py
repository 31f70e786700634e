"""Report section on speed and memory: which speeds are comparable, and what block sharing costs in latency."""

from collections import Counter
from functools import partial

from slm.evaluation.report.results import Entry, Results, name_of
from slm.report.markdown import Columns, Section, bullets, figure, table_by_column
from slm.runtime import words

CAPTION = (
    "Vertical bars are 2 standard errors; horizontal bars span all repetitions. Only speeds measured under the same "
    "conditions are shown. Steps: the best quality at a speed or more. A checkpoint is pale if another is better in "
    "quality or speed, and not worse in the other."
)


def conditions(entry: Entry) -> str | None:
    """Return the conditions of a measured speed in words, equal for comparable speeds; None without a speed."""
    speed = entry["speed"]
    if not words.is_number(speed.get("decode_tokens_per_second")):
        return None
    device = speed.get("device")
    threads = f" ({speed['threads']} threads)" if speed.get("threads") and device == "cpu" else ""
    processor = speed.get("device_name") or f"{device}{threads}"  # `device_name` of a CPU includes its threads
    cache = "KV cache" if speed.get("cache") else "no KV cache"
    compiled = ", compiled" if speed.get("compiled") else ""
    tokens = f"{speed.get('prompt_tokens')} + {speed.get('new_tokens')} tokens"
    return f"{processor}, {speed.get('dtype')}, {cache}{compiled}, {tokens}"


def usual_conditions(results: Results) -> str | None:
    """Return the conditions of most checkpoints; in a tie, those of the first checkpoint."""
    counts = Counter(filter(None, map(conditions, results.entries)))
    return max(counts, key=lambda text: counts[text], default=None)


def speed_section(results: Results) -> Section | None:
    """Return load time, prefill, decode and memory of every checkpoint; None if no speed was measured."""
    entries = [entry for entry in results.entries if entry["speed"]]
    if not entries:
        return None
    return Section("Speed and memory").add(
        "Speeds are medians over repetitions after a warm-up, with the slowest and fastest repetition in brackets, for "
        "one sequence. Prefill reads the prompt in one pass; decode generates one token after the other. Neither "
        "includes loading. MB are 10^6 bytes. `512 + 128 tokens` means 128 tokens generated after a prompt of 512 "
        "tokens. KV bytes are the memory for the keys and values of the first token, and of a full context; sliding "
        "windows and sparse attention keep only a part of a context. State bytes are the memory for the state of "
        "recurrent mixers; they do not depend on the number of tokens.",
        _caution(results),
        table_by_column(entries, COLUMNS),
        bullets(filter(None, map(_sharing_line, entries))),
        figure(results.folder, "pareto", CAPTION),
    )


def _rate(name: str, entry: Entry) -> str:
    rate, spread = entry["speed"].get(f"{name}_tokens_per_second"), entry["speed"].get(f"{name}_spread")
    text = words.format_number(rate)
    return f"{text} {words.interval(spread)}" if spread and words.is_number(rate) else text


COLUMNS: Columns = {
    "checkpoint": name_of,
    "load": lambda entry: words.seconds(entry.get("load_seconds")),
    "prefill tokens/s": partial(_rate, "prefill"),
    "decode tokens/s": partial(_rate, "decode"),
    "KV cache": lambda entry: words.yes_or_no(entry["speed"].get("cache")),
    "peak MB": lambda entry: words.megabytes(entry["speed"].get("peak_memory_bytes")),
    "weights MB": lambda entry: words.megabytes(entry["speed"].get("model_bytes")),
    "KV bytes, first token": lambda entry: words.exact_count(entry["speed"].get("kv_bytes_per_token")),
    "KV bytes, full context": lambda entry: words.exact_count(entry["speed"].get("kv_cache_bytes")),
    "state bytes": lambda entry: words.exact_count(entry["speed"].get("state_bytes")),
    "measured on": lambda entry: words.escape_markdown(conditions(entry) or words.NO_VALUE),
}


def _caution(results: Results) -> str:
    usual = usual_conditions(results)
    others = [name_of(entry) for entry in results.entries if conditions(entry) not in (None, usual)]
    if not others or usual is None:
        return ""
    verb = "was" if len(others) == 1 else "were"
    return (
        f"**Caution:** {words.join_names(others)} {verb} measured under other conditions than the rest "
        f"({words.escape_markdown(usual)}), so these speeds are not comparable; see the last column."
    )


def _sharing_line(entry: Entry) -> str:
    """Say how much slower block sharing makes the model; empty for a model that shares no blocks."""
    slowdowns = []
    for name in ("prefill", "decode"):
        rate = entry["speed"].get(f"{name}_tokens_per_second")
        rate_without_sharing = (entry["speed"].get("without_sharing") or {}).get(f"{name}_tokens_per_second")
        if words.is_number(rate) and words.is_number(rate_without_sharing):
            ratio = words.format_number(rate_without_sharing / rate, 3)
            rates = f"{words.format_number(rate)} against {words.format_number(rate_without_sharing)} tokens/s"
            slowdowns.append(f"{ratio} times the time in {name} ({rates})")
    if not slowdowns:
        return ""
    repeats = entry["shape"].get("num_repeats")
    sharing = f"uses each block {repeats} times" if words.is_number(repeats) else "uses blocks repeatedly"
    lead = f"{name_of(entry)} {sharing}: compared with the same tensors used once, a token takes"
    return f"{lead} {words.join_names(slowdowns)}."
