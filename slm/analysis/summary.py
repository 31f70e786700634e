"""The summary that the terminal shows at the end of an analysis."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.runtime.words import plural
from slm.scaling.analysis import Analysis

Entry = dict[str, Any]
MAX_LINE_CHARACTERS = 300
"""Longer lines are broken."""


def print_summary(analysis: Analysis, audited: Mapping[str, Any], laid: Entry | None, folder: Path) -> None:
    """Print the fits that the verdict is about, the audit, what was laid over, the verdict, and where the rest is."""
    comparison = analysis.comparison
    primary = comparison["primary"]
    alone = len(comparison["families"]) == 1
    rows, runs = (plural(comparison[f"n_{thing}s"], thing) for thing in ("row", "run"))
    _say(f"\n{rows}, {runs}, {plural(len(comparison['families']), 'family', 'families')}")
    for note in comparison["notes"]:
        _say(f"- {note}")
    _say()
    main = [e for e in analysis.fits if e["loss"] == primary["loss"] and e["size"] in (None, primary["size"])]
    shown = [entry for entry in main if _is_shown(entry, primary, alone)]
    for entry in shown:
        _say(_line(entry))
    _say(f"  and {len(analysis.fits) - len(shown)} more fits, in the report")
    for skipped in comparison["skipped"]:
        _say(f"  {skipped['law']}: skipped, {skipped['reason']}")
    asked = [e for e in main if e["target"] == primary["target"] and e["fitted"]]
    _print_predictions([e for e in asked if e["law"] == primary["law"]])
    _print_tests(asked)
    if comparison["published"]:
        _say("\nThe published study, claim by claim:")
        for claim in comparison["published"]:
            _say(f"- {claim['claim']}\n    {claim['finding']}")
    if not alone:
        _print_audit(audited)
    if laid:
        _print_overlay(laid)
    _say(f"\nVerdict: {comparison['verdict']['headline']}")
    for sentence in comparison["verdict"]["sentences"]:
        _say(f"- {sentence}")
    _say(f"\nreport: {folder / 'report.html'}")


def _print_predictions(entries: Sequence[Entry]) -> None:
    """One more run at the points that the settings state, by the verdict's law."""
    rows = [(entry, row) for entry in entries for row in entry.get("predictions") or [] if row["stated"]]
    refused = [(entry, row) for entry in entries for row in entry.get("not_predicted") or []]
    if rows or refused:
        _say("\nPredicted, if the law of the verdict still holds there:")
    for entry, row in rows:
        at = ", ".join(f"{name} = {row[name]:.4g}" for name in row["beyond"])
        out = ", ".join(f"{name} {factor:.3g}x" for name, factor in row["beyond"].items() if factor > 1.0000001)
        ends = "no interval" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"
        where = f"beyond the data by {out}" if out else "within the data"
        ignored = f"; {', '.join(row['ignored'])} is not in this law" if row["ignored"] else ""
        _say(f"  {entry['family']} at {at}: {row['value']:.4g} {ends} ({where}{ignored})")
    for entry, row in refused:
        at = ", ".join(f"{name} = {value:.4g}" for name, value in row["point"].items())
        _say(f"  {entry['family']} at {at}: not predicted, {entry['law']} needs {', '.join(row['lacks'])} too")


def _print_tests(entries: Sequence[Entry]) -> None:
    """Given parameters against the free fit of every law that has them."""
    tested = [(entry, entry["test"]) for entry in entries if entry.get("test")]
    if tested:
        held = ", ".join(f"{name} = {value:.4g}" for name, value in tested[0][1]["given"].items())
        _say(f"\nThe best fit with {held} against the free one:")
    for entry, test in tested:
        head = f"  {entry['family']}, {entry['law']}: "
        if test["refused"]:
            _say(f"{head}not tested, {test['refused']}")
            continue
        p = "p < 1e-300" if test["p"] == 0 else f"p = {test['p']:.3g}"
        caveat = "" if test["independent"] else ", rows share runs or shapes, so p is too small"
        freedom = plural(test["df"], "degree of freedom", "degrees of freedom")
        _say(f"{head}likelihood ratio {test['statistic']:.4g} on {freedom}, {p} ({test['method']}{caveat})")


def _print_audit(audited: Mapping[str, Any]) -> None:
    _say(f"\nAudit: the comparison is {'controlled' if audited['controlled'] else 'NOT CONTROLLED'}.")
    for violation in audited["violations"]:
        _say(f"- {violation['sentence']}")
    if audited["unknown"]:
        _say(f"- The table does not state for every run: {', '.join(item['what'] for item in audited['unknown'])}.")


def _print_overlay(laid: Entry) -> None:
    """Each checkpoint beside each family's law, and what the two do not share."""
    _say(
        f"\nLaid over, {laid['target'].replace('_', ' ')} beside what `{laid['law']}` predicts for a run of that size:"
    )
    for place, point in enumerate(laid["points"]):
        laws = "; ".join(_beside(family, place) for family in laid["families"])
        _say(f"  {point['name']}, N = {point['N']:.4g}: {point['value']:.4g}; {laws}")
    for caveat in [*laid["caveats"], *laid["notes"]]:
        _say(f"- {caveat}")


def _beside(family: Entry, place: int) -> str:
    if family["refused"]:
        return f"{family['family']} {family['refused']}"
    model = family["models"][place]
    beyond = f", {model['times_beyond']:.3g} times beyond its runs" if model["times_beyond"] > 1 else ""
    difference = math.expm1(model["log_ratio"])
    side = "above" if difference > 0 else "below"
    return f"{family['family']} {model['value']:.4g} ({abs(difference):.1%} {side} it{beyond})"


def _is_shown(entry: Entry, primary: Entry, alone: bool) -> bool:
    """The verdict's law (with one family: every law), and the plain power law of perplexity, which people quote."""
    if entry["target"] == primary["target"]:
        return bool(alone or entry["law"] == primary["law"])
    return bool(alone and entry["law"] == "power" and entry["target"] == "perplexity")


def _line(entry: Entry) -> str:
    head = f"  {entry['family']}, {entry['target']}, {entry['law']}: "
    if not entry["fitted"]:
        return head + entry["notes"][0]
    shown = [_parameter(entry, name) for name in entry["params"]]
    if set(entry["params"]) == {"A", "alpha"} and entry["identified"]:
        variable = next(iter(entry["range"]))
        alpha = entry["params"]["alpha"]
        shown[:0] = [f"{entry['params']['A']:.4g} {variable}^{-alpha:.4f}, R2 {entry['r2']:.4f}"]
    if not entry["identified"]:
        reasons = entry["reasons"]
        reason = next(reasons[name] for name in [*entry["exponents"], *reasons] if name in reasons)
        return head + "; ".join(shown) + f"; NOT IDENTIFIED: {reason}"
    certificate = f"objective {entry['objective']:.6g} from {entry['starts_agreeing']:.0%} of {entry['starts']} starts"
    return head + "; ".join(shown) + f" ({certificate})"


def _parameter(entry: Entry, name: str) -> str:
    low, high = entry["ci95"][name]
    ends = f"[{'open' if low is None else format(low, '.4g')}, {'open' if high is None else format(high, '.4g')}]"
    if name in entry["not_identified"]:
        return f"{name} not identified {ends}"
    error = entry["se"][name]
    return f"{name} = {entry['params'][name]:.4g} {ends}" + (f" se {error:.3g}" if error is not None else "")


def _say(line: str = "") -> None:
    """Print a line, broken between words if it is too long."""
    for part in line.split("\n"):
        indent = " " * (len(part) - len(part.lstrip()) + 2)
        wrapper = textwrap.TextWrapper(MAX_LINE_CHARACTERS, subsequent_indent=indent, break_long_words=False)
        print(part if len(part) <= MAX_LINE_CHARACTERS else wrapper.fill(part))
