"""What is said on the terminal at the end of an analysis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.scaling.analysis import Analysis

Entry = dict[str, Any]


def print_summary(found: Analysis, audited: Mapping[str, Any], folder: Path) -> None:
    """Print every law of the verdict's target and N, the audit, the verdict, and where the rest is."""
    comparison = found.comparison
    primary = comparison["primary"]
    print(f"\n{comparison['n_rows']} rows, {comparison['n_runs']} runs, {len(comparison['families'])} families\n")
    for entry in found.fits:
        if entry["loss"] == primary["loss"] and entry["size"] in (None, primary["size"]) and _is_shown(entry, primary):
            print(_line(entry))
    for skipped in comparison["skipped"]:
        print(f"  {skipped['law']}: skipped, {skipped['reason']}")
    if comparison["published"]:
        print("\nThe published study, claim by claim:")
        for claim in comparison["published"]:
            print(f"- {claim['claim']}\n    {claim['finding']}")
    controlled = "the comparison is controlled" if audited["controlled"] else "the comparison is NOT CONTROLLED"
    print(f"\nAudit: {controlled}.")
    for sentence in [v["sentence"] for v in audited["violations"]] + [u["sentence"] for u in audited["unknown"]]:
        print(f"- {sentence}")
    print(f"\nVerdict: {comparison['verdict']['headline']}")
    for sentence in comparison["verdict"]["sentences"]:
        print(f"- {sentence}")
    print(f"\nreport: {folder / 'report.html'}")


def _is_shown(entry: Entry, primary: Entry) -> bool:
    """The verdict's target; and the plain power law of perplexity, which is what people quote."""
    return bool(entry["target"] == primary["target"] or (entry["law"] == "power" and entry["target"] == "perplexity"))


def _line(entry: Entry) -> str:
    head = f"  {entry['family']}, {entry['target']}, {entry['law']}: "
    if not entry["fitted"]:
        return head + entry["notes"][0]
    shown = [_parameter(entry, name) for name in entry["params"]]
    if entry["law"].startswith("power") and "E" not in entry["params"] and entry["identified"]:
        variable = next(iter(entry["range"]))
        alpha = entry["params"]["alpha"]
        shown[:0] = [f"{entry['params']['A']:.4g} {variable}^{-alpha:.4f}, R2 {entry['r2']:.4f}"]
    return head + "; ".join(shown) + ("" if entry["identified"] else "; NOT IDENTIFIED: " + _reasons(entry))


def _parameter(entry: Entry, name: str) -> str:
    low, high = entry["ci95"][name]
    ends = f"[{'open' if low is None else format(low, '.4g')}, {'open' if high is None else format(high, '.4g')}]"
    if name in entry["not_identified"]:
        return f"{name} not identified {ends}"
    return f"{name} = {entry['params'][name]:.4g} {ends}"


def _reasons(entry: Entry) -> str:
    return "; ".join(note for note in entry["notes"] if not note.startswith("an exponent of perplexity"))
