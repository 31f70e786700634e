"""What is said on the terminal at the end of an analysis."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slm.scaling.analysis import Analysis

Entry = dict[str, Any]
LONGEST_LINE = 300
"""Of the terminal; longer ones are broken."""


def print_summary(found: Analysis, audited: Mapping[str, Any], laid: Entry | None, folder: Path) -> None:
    """Print the fits that the verdict is about, the audit, what was laid over, the verdict, and where the rest is."""
    comparison = found.comparison
    primary = comparison["primary"]
    families = len(comparison["families"])
    alone = families == 1
    counts = f"{comparison['n_rows']} rows, {comparison['n_runs']} runs"
    _say(f"\n{counts}, {families} {'family' if alone else 'families'}")
    for note in comparison["notes"]:
        _say(f"- {note}")
    _say()
    main = [e for e in found.fits if e["loss"] == primary["loss"] and e["size"] in (None, primary["size"])]
    shown = [entry for entry in main if _is_shown(entry, primary, alone)]
    for entry in shown:
        _say(_line(entry))
    _say(f"  and {len(found.fits) - len(shown)} more fits, in the report")
    for skipped in comparison["skipped"]:
        _say(f"  {skipped['law']}: skipped, {skipped['reason']}")
    asked = [e for e in main if e["target"] == primary["target"] and e["fitted"]]
    _print_predictions([e for e in asked if e["law"] == primary["law"]])
    _print_tests(asked)
    if comparison["published"]:
        _say("\nThe published study, claim by claim:")
        for claim in comparison["published"]:
            _say(f"- {claim['claim']}\n    {claim['finding']}")
    if len(comparison["families"]) > 1:
        _print_audit(audited)
    if laid:
        _print_overlay(laid)
    _say(f"\nVerdict: {comparison['verdict']['headline']}")
    for sentence in comparison["verdict"]["sentences"]:
        _say(f"- {sentence}")
    _say(f"\nreport: {folder / 'report.html'}")


def _print_predictions(entries: Sequence[Entry]) -> None:
    """One more run at the stated points, by the verdict's law, and how far beyond the data each is."""
    rows = [(entry, row) for entry in entries for row in entry.get("predictions") or [] if row["stated"]]
    lacking = [(entry, one) for entry in entries for one in entry.get("not_predicted") or []]
    if rows or lacking:
        _say("\nPredicted, if the law of the verdict goes on to hold:")
    for entry, row in rows:
        at = ", ".join(f"{name} = {row[name]:.4g}" for name in row["beyond"])
        out = ", ".join(f"{name} {factor:.3g}x" for name, factor in row["beyond"].items() if factor > 1.0000001)
        ends = "no interval" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"
        where = f"beyond the data by {out}" if out else "within the data"
        ignored = f"; {', '.join(row['ignored'])} is not in this law" if row["ignored"] else ""
        _say(f"  {entry['family']} at {at}: {row['value']:.4g} {ends} ({where}{ignored})")
    for entry, one in lacking:
        at = ", ".join(f"{name} = {value:.4g}" for name, value in one["point"].items())
        _say(f"  {entry['family']} at {at}: not predicted, {entry['law']} needs {', '.join(one['lacks'])} too")


def _print_tests(entries: Sequence[Entry]) -> None:
    """Given parameters against the free fit of every law that has them."""
    tested = [(entry, entry["test"]) for entry in entries if entry.get("test")]
    if tested:
        held = ", ".join(f"{name} = {value:.4g}" for name, value in tested[0][1]["given"].items())
        _say(f"\nThe best fit with {held} against the free one:")
    for entry, one in tested:
        head = f"  {entry['family']}, {entry['law']}: "
        if one["refused"]:
            _say(f"{head}not tested, {one['refused']}")
            continue
        p = "p < 1e-300" if one["p"] == 0 else f"p = {one['p']:.3g}"
        rests = "" if one["independent"] else ", rows share runs or shapes, so p is too small"
        freedom = f"{one['df']} degree{'s' * (one['df'] > 1)} of freedom"
        _say(f"{head}likelihood ratio {one['statistic']:.4g} on {freedom}, {p} ({one['method']}{rests})")


def _print_audit(audited: Mapping[str, Any]) -> None:
    _say(f"\nAudit: the comparison is {'controlled' if audited['controlled'] else 'NOT CONTROLLED'}.")
    for violation in audited["violations"]:
        _say(f"- {violation['sentence']}")
    if audited["unknown"]:
        _say(f"- The table does not say, for every run: {', '.join(one['what'] for one in audited['unknown'])}.")


def _print_overlay(laid: Entry) -> None:
    """Each checkpoint beside each family's law, and what the two do not share."""
    _say(f"\nLaid over, {laid['target'].replace('_', ' ')} beside what `{laid['law']}` says of a run of that size:")
    for place, point in enumerate(laid["points"]):
        said = [_beside(family, place) for family in laid["families"]]
        _say(f"  {point['name']}, N = {point['N']:.4g}: {point['value']:.4g}; {'; '.join(said)}")
    for caveat in [*laid["caveats"], *laid["notes"]]:
        _say(f"- {caveat}")


def _beside(family: Entry, place: int) -> str:
    if family["refused"]:
        return f"{family['family']} {family['refused']}"
    one = family["models"][place]
    beyond = f", {one['times_beyond']:.3g} times beyond its runs" if one["times_beyond"] > 1 else ""
    off = math.expm1(one["log_ratio"])
    side = "above" if off > 0 else "below"
    return f"{family['family']} {one['value']:.4g} ({abs(off):.1%} {side} it{beyond})"


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
        return head + "; ".join(shown) + f"; NOT IDENTIFIED: {_reason(entry)}"
    certificate = f"objective {entry['objective']:.6g} from {entry['starts_agreeing']:.0%} of {entry['starts']} starts"
    return head + "; ".join(shown) + f" ({certificate})"


def _reason(entry: Entry) -> str:
    """Why the first exponent is not identified, or whatever else is not."""
    reasons = entry["reasons"]
    return str(next(reasons[name] for name in [*entry["exponents"], *reasons] if name in reasons))


def _parameter(entry: Entry, name: str) -> str:
    low, high = entry["ci95"][name]
    ends = f"[{'open' if low is None else format(low, '.4g')}, {'open' if high is None else format(high, '.4g')}]"
    if name in entry["not_identified"]:
        return f"{name} not identified {ends}"
    error = entry["se"][name]
    return f"{name} = {entry['params'][name]:.4g} {ends}" + (f" se {error:.3g}" if error is not None else "")


def _say(line: str = "") -> None:
    """Print a line, broken between words where it is longer than a line may be."""
    for part in line.split("\n"):
        indent = " " * (len(part) - len(part.lstrip()) + 2)
        wrapper = textwrap.TextWrapper(LONGEST_LINE, subsequent_indent=indent, break_long_words=False)
        print(part if len(part) <= LONGEST_LINE else wrapper.fill(part))
