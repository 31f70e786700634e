"""The table of differences of a measure, and how to read it."""

from __future__ import annotations

from slm.evaluation.report.differences import ALL_PAIRS, LEVEL, Compared, Difference, compared, ranked
from slm.evaluation.report.results import Measure, Results
from slm.report.markdown import table
from slm.runtime.words import NOTHING, TARGET_NAMES, escape_markdown, measured
from slm.scaling.pairs import holm

OF_THE_TEXT = (
    "Errors are of the text: another text of its kind would give other figures. They are not of training, of which "
    "another seed would give another checkpoint."
)
PAIRED = (
    "The error of a difference is *paired* where both checkpoints were scored on the same blocks of the text: it is "
    "taken from the difference in each block (delta method), so that what makes a block hard for both cancels, and may "
    "be much smaller than the errors of the two figures."
)
INDEPENDENT = (
    "*Independent* errors are two errors added as if each checkpoint had read a text of its own; where both err on the "
    "same parts they are too large: a difference that stands out does so all the more, and one that does not may yet "
    "be real."
)
HOLM = (
    f"*Not after Holm*: beyond 2 standard errors, but not different at {LEVEL:.0%} once Holm's method allows for all "
    "differences of its table being asked about at once."
)
NOT_AFTER_HOLM = "yes, not after Holm"


def differences(results: Results, measure: Measure) -> list[str]:
    """A line and a table; nothing where fewer than two checkpoints compare."""
    pairs = compared(results, measure)
    if not pairs:
        return []
    few = len(ranked(results, measure)) <= ALL_PAIRS
    line = "**Differences**, A - B: below zero, A is better." + ("" if few else " Neighbours in rank only.")
    target = results.target_by(measure)
    others = [name for name in ("loss",) if name != target and any(name in pair.figures for pair in pairs)]
    header = ["A", "B", *(TARGET_NAMES[name] for name in (target, *others)), "error", "beyond 2 se"]
    said = verdicts([pair.figures[target] for pair in pairs])
    rows = [_row(pair, [target, *others], verdict) for pair, verdict in zip(pairs, said, strict=True)]
    return [line, table(header, rows)]


def _row(pair: Compared, targets: list[str], verdict: str) -> list[str]:
    names = [escape_markdown(entry["name"]) for entry in (pair.first, pair.second)]
    return [*names, *(_shown(pair.figures.get(name)) for name in targets), _kind(pair.figures[targets[0]]), verdict]


def _shown(of: Difference | None) -> str:
    return NOTHING if of is None else measured(of.value, of.error.se, 2)


def _kind(of: Difference) -> str:
    if of.error.blocks:
        return f"paired, {of.error.blocks} blocks"
    return NOTHING if of.error.se is None else f"independent: {of.error.why}"


def verdicts(found: list[Difference]) -> list[str]:
    """Whether each is beyond two standard errors, and whether it still counts among all of them."""
    words = {True: "yes", False: "no", None: "not known"}
    return [
        NOT_AFTER_HOLM if of.beyond and p is not None and p > LEVEL and len(found) > 1 else words[of.beyond]
        for of, p in zip(found, holm([of.p for of in found]), strict=True)
    ]


def reading(results: Results) -> str:
    """What the tables' words mean, as far as they stand there."""
    tables = [
        [pair.figures[results.target_by(measure)] for pair in compared(results, measure)]
        for measure in results.measures
    ]
    found = [of for one in tables for of in one]
    if not found:
        return ""
    said = [OF_THE_TEXT]
    said += [PAIRED] * any(of.error.blocks for of in found)
    said += [INDEPENDENT] * any(of.error.blocks is None and of.error.se is not None for of in found)
    said += [HOLM] * any(NOT_AFTER_HOLM in verdicts(one) for one in tables)
    return " ".join(said)
