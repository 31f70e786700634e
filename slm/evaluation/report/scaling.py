"""The sections on size: the power law of each family, and what doubling N gains."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from slm.evaluation.report.average import DISTINGUISHED
from slm.evaluation.report.fits import FEWEST_SIZES, Gain, gains, points
from slm.evaluation.report.results import UNNAMED, Entry, Results, family_of
from slm.report.markdown import Section, bullets, figure, table
from slm.runtime.words import TARGET_NAMES, count, escape_markdown, listed, measured, plural, sig
from slm.scaling.describe import exponent, notes, status

FEW = 6
"""Sizes below which one power law cannot be told from another law."""


def scaling_section(results: Results, fits: Sequence[Entry], folder: Path) -> Section | None:
    """Exponents of families with three sizes or more, and where the whole analysis is to be had."""
    if not fits:
        return None
    target = TARGET_NAMES[results.fit_target]
    section = Section("Scaling").add(
        f"`L = A N^-alpha` of {target}, N being all parameters, with 95% intervals (Student's t over the sizes).",
        table(
            ("family", "sizes", "alpha", "R2", "status"),
            [_row(entry, results) for entry in fits if entry["fitted"]],
        ),
        bullets(
            [
                f"{escape_markdown(e['family'])}: {escape_markdown('; '.join(e['notes']))}."
                for e in fits
                if not e["fitted"]
            ]
        ),
        bullets(notes([entry for entry in fits if entry["fitted"]])),
        bullets(_limits(results, fits)),
    )
    command = shlex.join(["python", "sweep.py", f"runs={folder / 'results.csv'}"])
    return section.add(
        f"Other laws, other N, intervals of all of them, and the comparison of families:\n\n    {command}"
    )


def _row(entry: Entry, results: Results) -> list[str]:
    sizes = len(points(results)[entry["family"]])
    return [escape_markdown(entry["family"]), str(sizes), exponent(entry, "alpha"), sig(entry["r2"]), status(entry)]


def _limits(results: Results, fits: Sequence[Entry]) -> list[str]:
    """What these sizes cannot say."""
    said = []
    for entry in fits:
        family = entry["family"]
        sizes = len(points(results)[family])
        if entry["fitted"] and sizes < FEW:
            said.append(
                f"{escape_markdown(family)}: {plural(sizes, 'size')} support the slope between the smallest and the "
                f"largest at "
                "best. They cannot tell a floor from none, nor one law from another, nor what larger models reach."
            )
        said += _caveats(family, results)
    return said


def _caveats(family: str, results: Results) -> list[str]:
    """What keeps a difference within a family from being one of N alone, as far as is known."""
    name = escape_markdown(family)
    said = []
    if family == UNNAMED:
        said.append(f"{name}: these checkpoints state no family and are taken for one; if they are not, this is void.")
    budgets = {e.get("train_tokens") for e, _ in results.scored(results.primary) if family_of(e) == family}
    if budgets == {None}:
        said.append(f"{name}: training tokens are not known, so this holds for these models as trained.")
    elif len(budgets) > 1:
        said.append(f"{name}: training tokens differ or are partly unknown, so this mixes N with tokens.")
    return said


def gain_section(results: Results, folder: Path) -> Section | None:
    """What doubling N gains from each size of a family to the next."""
    steps = gains(results)
    if not steps:
        return None
    target = TARGET_NAMES[results.fit_target]
    rows = [
        [
            escape_markdown(step.family),
            count(step.smaller),
            count(step.larger),
            measured(step.value, step.se),
            _sure(step),
        ]
        for step in steps
    ]
    section = Section("Gain of doubling").add(
        f"Difference of {target} between neighbouring sizes of a family, for each doubling of N. "
        + _errors_said(steps),
        table(
            ("family", "from N", "to N", f"fall of {target} per doubling of N", "more than 2 se from 0"),
            rows,
        ),
        bullets(
            [line for family in dict.fromkeys(step.family for step in steps) for line in _caveats(family, results)]
        ),
    )
    few = f"Line: the law of a family with {FEWEST_SIZES} sizes or more, and its 95% band."
    return section.add(figure(folder, "doubling", f"Bars: 2 standard errors, and the two sizes. {few}"))


def _errors_said(steps: Sequence[Gain]) -> str:
    """Which of the errors are of differences, and which of independent figures."""
    apart = [f"{escape_markdown(s.family)} from {count(s.smaller)} to {count(s.larger)}" for s in steps if not s.paired]
    if not apart:
        return "Errors are of the differences, paired by blocks of the text."
    which = f"Errors of {listed(apart)}" if len(apart) < len(steps) else "Errors"
    rest = " The others are paired by blocks of the text." if len(apart) < len(steps) else ""
    return f"{which} are those of two independent figures, too large where both err on the same parts.{rest}"


def _sure(step: Gain) -> str:
    return "not known" if step.se is None else "yes" if abs(step.value) > DISTINGUISHED * step.se else "no"
