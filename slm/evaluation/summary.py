"""What is said on the terminal at the end of an evaluation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slm.evaluation.overlap import task_caveats, text_caveats

Entry = Mapping[str, Any]


def print_summary(entries: Sequence[Entry], folder: Path) -> None:
    """Print a table of the checkpoints, one of their tasks if there are any, and where the rest is."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(_main_table(entries))
    for entry in entries:
        if entry["speed"] and entry["speed"]["without_sharing"]:
            ratio, name = _price(entry["speed"]), entry["name"]
            line = f"{name}: sharing blocks takes {ratio:.2f}x the time a token of the same tensors used once"
            console.print(line, markup=False, soft_wrap=True)
    if any(entry["tasks"] for entry in entries):
        console.print(_task_table(entries))
    for entry in entries:
        for task, result in entry["tasks"].items():
            if "error" in result:
                console.print(f"skipped: {task} of {entry['name']}: {result['error']}", markup=False, soft_wrap=True)
    for entry in entries:
        for line in (*text_caveats(entry), *task_caveats(entry)):
            console.print(f"mind: {line}", markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.md'}", markup=False, soft_wrap=True)


def _main_table(entries: Sequence[Entry]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    numbers = (
        "parameters",
        "data",
        "protocol",
        "perplexity",
        "bits/byte",
        "prefill tok/s",
        "decode tok/s",
        "memory MB",
    )
    for name in numbers:
        table.add_column(name, justify="left" if name in ("data", "protocol") else "right")
    for entry in entries:
        speed = entry["speed"] or {}
        tail = [
            _number(speed.get("prefill_tokens_per_second"), ",.0f"),
            _number(speed.get("decode_tokens_per_second"), ",.1f"),
            _number(speed["peak_memory_bytes"] / 1e6 if speed else None, ",.0f"),
        ]
        head = [entry["name"], f"{entry['params_total']:,}"]
        for score in entry["perplexity_results"] or [None]:
            table.add_row(*map(escape, head + _scores(score) + tail))
            head, tail = ["", ""], ["", "", ""]
    return table


def _scores(score: Entry | None) -> list[str]:
    if score is None:
        return ["", "", "", ""]
    error = score["se_bits_per_byte"]
    bits = _number(score["bits_per_byte"], ".4f") + ("" if error is None else f" ± {error:.4f}")
    return [score["data"], _windows(score), _number(score["perplexity"], ",.3f"), bits]


def _windows(score: Entry) -> str:
    stride = f"/{score['stride']}" if score["protocol"] == "sliding" else ""
    return f"{score['protocol']} {score['max_length']}{stride}"


def _price(speed: Entry) -> float:
    return float(speed["without_sharing"]["decode_tokens_per_second"] / speed["decode_tokens_per_second"])


def _task_table(entries: Sequence[Entry]) -> Table:
    names = list(dict.fromkeys(task for entry in entries for task in entry["tasks"]))
    table = Table(box=None, pad_edge=False)
    table.add_column("task")
    for entry in entries:
        table.add_column(escape(entry["name"]), justify="right", overflow="fold")
    for name in names:
        table.add_row(escape(name), *(_task(entry["tasks"].get(name)) for entry in entries))
    return table


def _task(result: Entry | None) -> str:
    if result is None:
        return ""
    if "error" in result:
        return "skipped"
    error = "" if result["se"] is None else f" ± {result['se']:.3f}"
    return f"{result['value']:.3f}{error} ({result['metric']}, n={result['n']})"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
