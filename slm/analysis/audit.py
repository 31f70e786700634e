"""The matched-budget audit: do the families of a table differ in nothing but what is compared?

Notable: silence is no evidence. What the table does not say is listed as unknown, and a comparison is called controlled
only if tokens, data, tokenizer, evaluation set, schedule and learning rate are all known to be matched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd

from slm.analysis.matching import by_family, levels, same_levels, same_sizes, size_of, sizes_of, values_of
from slm.runtime.words import shortened, shortlist
from slm.scaling.matching import SAME_SIZE

REQUIRED = ("tokens", "data", "tokenizer", "evaluation set", "schedule", "learning rate rule")
DATA = ("data_fingerprint", "data", "dataset", "data_name")
TOKENIZER = ("tokenizer_fingerprint", "tokenizer")
EVALUATION = ("eval_fingerprint", "eval_set", "evaluation_set", "val_bytes", "val_tokens")
RATES_TRIED = ("lr_tried", "lr_candidates")
SETTINGS = {
    "schedule": ("schedule",),
    "sequence length": ("sequence_length", "context_length"),
    "batch": ("batch_tokens", "batch_size", "batch_seqs"),
    "precision": ("precision",),
}
OPTIONAL = {
    "document masking": ("document_masking",),
    "optimizer": ("optimizer",),
    "averaging of weights": ("ema_decay",),
}
"""Compared where the table has them; a table written by hand may leave them out without a word."""
SAYS = {
    "tokens": "on how many tokens it was trained",
    "data": "on which data it was trained",
    "tokenizer": "which tokenizer it has",
    "evaluation set": "on which text it was evaluated",
    "schedule": "what its schedule was",
    "sequence length": "what its sequence length was",
    "batch": "what its batch was",
    "precision": "in which precision it was trained",
    "learning rate rule": "what its learning rate was",
    "seeds": "what its seed was",
}


FAMILIES_LISTED, VALUES_LISTED = 4, 12
"""In one sentence, over all families."""


@dataclass
class Findings:
    """What the audit found, in the order of its checks."""

    violations: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[dict[str, str]] = field(default_factory=list)
    checked: list[dict[str, str]] = field(default_factory=list)

    def violated(self, what: str, families: dict[str, list[Any]], sentence: str) -> None:
        """Something differs between families."""
        self.violations.append({"what": what, "families": families, "sentence": sentence})

    def untold(self, what: str) -> None:
        """The table does not say."""
        self.unknown.append({"what": what, "sentence": f"The table does not say, for every run, {SAYS[what]}."})

    def matched(self, what: str, sentence: str) -> None:
        """Something was looked at and is the same."""
        self.checked.append({"what": what, "sentence": sentence})


def audit(frame: pd.DataFrame) -> dict[str, Any]:
    """Audit rows that have been through `slm.scaling.tables`; the result is what `audit.json` holds.

    Keys: `controlled`; `violations` (`what`, `families` with their values, `sentence`); `unknown` and `checked`
    (`what`, `sentence`); `varies`, which says what differs within the family if there is only one. Differing learning
    rates are called uncontrolled, which is no proof that a family was tuned worse.
    """
    findings = Findings()
    checks: Sequence[Callable[[pd.DataFrame, Findings], None]]
    checks = (
        _tokens,
        _data,
        _tokenizer,
        _evaluation,
        _settings,
        _learning_rate,
        _rates_tried,
        _seeds,
        _sizes,
    )
    for check in checks:
        check(frame, findings)
    unknown = {item["what"] for item in findings.unknown}
    return {
        "controlled": not findings.violations and not unknown & set(REQUIRED),
        "violations": findings.violations,
        "unknown": findings.unknown,
        "checked": findings.checked,
        "varies": _varies(frame) if frame["family"].nunique() == 1 else [],
    }


def _tokens(frame: pd.DataFrame, findings: Findings) -> None:
    if values_of(frame, ("tokens",)) is None:
        findings.untold("tokens")
        return
    if _alone(frame, "tokens", findings):
        return
    rules = [("the same token budgets", frame["tokens"], 0.005)]
    for size in sizes_of(frame):
        rules.append((f"the same tokens per parameter ({size})", frame["tokens"] / frame[size], 0.02))
    for name, what in (("budget", ""), ("isoflop", "compute "), ("flops", "compute ")):
        if name in frame:
            rules.append((f"the same {what}budgets ({name})", frame[name], 0.05))
    for rule, values, tolerance in rules:
        if same_levels(frame, levels(values, tolerance), per_size=True):
            findings.matched("tokens", f"Families have {rule}, to {tolerance:.1%}.")
            return
    budgets = by_family(frame, frame["tokens"])
    sentence = "Families differ in training tokens, in tokens per parameter and in compute"
    findings.violated("tokens", budgets, f"{sentence}: {_ranges(frame, 'tokens')}.")


def _data(frame: pd.DataFrame, findings: Findings) -> None:
    _one_value(frame, findings, "data", DATA, "Runs were not trained on the same data", "")


def _tokenizer(frame: pd.DataFrame, findings: Findings) -> None:
    remedy = "; loss a token does not compare across tokenizers, so compare bits_per_byte"
    if values_of(frame, TOKENIZER) is None and frame.get("vocab_size", pd.Series(dtype=float)).nunique() == 1:
        findings.untold("tokenizer")  # vocabularies of one size may be different ones
        return
    _one_value(frame, findings, "tokenizer", (*TOKENIZER, "vocab_size"), "Runs have different tokenizers", remedy)


def _evaluation(frame: pd.DataFrame, findings: Findings) -> None:
    _one_value(frame, findings, "evaluation set", EVALUATION, "Runs were not evaluated on the same text", "")


def _one_value(
    frame: pd.DataFrame, findings: Findings, what: str, columns: Sequence[str], wrong: str, remedy: str
) -> None:
    """What must be the same in all runs, also within a family."""
    values = values_of(frame, columns)
    if values is None:
        findings.untold(what)
    elif values.nunique() == 1:
        findings.matched(what, f"All runs have the same {what} ({values.name} {values.iloc[0]}).")
    else:
        findings.violated(what, by_family(frame, values), f"{wrong} ({values.name} differs){remedy}.")


def _settings(frame: pd.DataFrame, findings: Findings) -> None:
    for what, columns in (SETTINGS | OPTIONAL).items():
        values = values_of(frame, columns)
        if values is None:
            if what in SETTINGS:
                findings.untold(what)
            continue
        if _alone(frame, what, findings):
            continue
        found = by_family(frame, values)
        if same_levels(frame, levels(values.astype(str), 0), per_size=True):
            findings.matched(what, f"Families have the same {what} ({values.name}).")
        else:
            where = " at the same size" if _all_equal(found.values()) else ""
            findings.violated(what, found, f"Families differ in {what}{where}: {_lists(found)}.")


def _learning_rate(frame: pd.DataFrame, findings: Findings) -> None:
    what = "learning rate rule"
    at_end = values_of(frame, ("lr_at_end",))
    if at_end is not None and at_end.any():
        _tuned_in_vain(frame, at_end.astype(bool), findings)
        return
    rule = values_of(frame, ("lr_rule",))
    rates = values_of(frame, ("lr",))
    parametrization = values_of(frame, ("parametrization",))
    if rule is None and rates is None and parametrization is not None and set(parametrization) != {"standard"}:
        rule = parametrization  # one that carries learning rates over sizes, such as muP
    if rule is None and rates is None:
        findings.untold(what)
    elif _alone(frame, what, findings):
        return
    elif rule is not None and rule.nunique() == 1:
        findings.matched(what, f"All runs have one rule for the learning rate ({rule.name} {rule.iloc[0]}).")
    elif rates is not None and same_levels(frame, levels(rates, 1e-6), per_size=True):
        findings.matched(what, "Families have the same learning rates at the same size.")
    elif rates is not None:
        found = by_family(frame, rates)
        sentence = "Learning rates differ between families at the same size, so they are not controlled"
        findings.violated(what, found, f"{sentence}: {_lists(found)}.")
    else:
        found = by_family(frame, cast("pd.Series", rule))
        findings.violated(what, found, f"Families differ in the rule for the learning rate: {_lists(found)}.")


def _tuned_in_vain(frame: pd.DataFrame, at_end: pd.Series, findings: Findings) -> None:
    """A family whose best rate lies beyond those that were tried may owe its losses to that."""
    found = by_family(frame[at_end], frame.loc[at_end, size_of(frame)])
    sentence = "The best learning rate is at an end of those tried, so a better one is likely, at these sizes"
    findings.violated("learning rate rule", found, f"{sentence}: {_lists(found)}.")


def _rates_tried(frame: pd.DataFrame, findings: Findings) -> None:
    """The best of more rates is lower, whatever the family; silent where no rates were tried."""
    tried = values_of(frame, RATES_TRIED)
    if tried is None or _alone(frame, "rates tried", findings):
        return
    found = by_family(frame, tried)
    if same_levels(frame, levels(tried, 0), per_size=True):
        given = _lists({"each": sorted(set(tried.tolist()))}).removeprefix("each ")
        findings.matched("rates tried", f"Families were given the same number of learning rates ({given}).")
    else:
        where = " at the same size" if _all_equal(found.values()) else ""
        sentence = f"Families were given different numbers of learning rates{where}, and the best of more is lower"
        findings.violated("rates tried", found, f"{sentence}: {_lists(found)}.")


def _seeds(frame: pd.DataFrame, findings: Findings) -> None:
    seeds = values_of(frame, ("seed",))
    if seeds is None:
        findings.untold("seeds")
        return
    if _alone(frame, "seeds", findings):
        return
    found = by_family(frame, seeds)
    if _all_equal(found.values()):
        findings.matched("seeds", f"Families have the same seeds ({len(next(iter(found.values())))} of them).")
    else:
        findings.violated("seeds", found, f"Families differ in seeds: {_lists(found)}.")


def _sizes(frame: pd.DataFrame, findings: Findings) -> None:
    if frame["family"].nunique() == 1:
        return
    size = size_of(frame)
    if same_sizes(frame, size):
        findings.matched("sizes", f"Families have the same sizes ({size}), to 10%.")
    else:
        sentence = f"Families do not have the same sizes, to 10%: {_ranges(frame, size)}"
        findings.violated("sizes", by_family(frame, frame[size]), f"{sentence}.")
        ends = frame.groupby("family")[size].agg(["min", "max"])
        if (ends.max() / ends.min() > 1 + SAME_SIZE).any():
            low, high = ends["min"].max(), ends["max"].min()
            common = f"{low:.3g} to {high:.3g}" if low < high else "of which there is none"
            sentence = (
                f"Ranges of {size} differ between families: exponents compare over the common range only, {common}"
            )
            findings.violated("ranges", by_family(frame, frame[size]), f"{sentence}.")


def _varies(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What differs between the runs of one family besides their size."""
    family = str(frame["family"].iloc[0])
    columns = {"tokens": ("tokens",), "data": DATA, "tokenizer": TOKENIZER, "evaluation set": EVALUATION}
    found = []
    for what, names in (columns | SETTINGS | OPTIONAL | {"learning rate": ("lr",), "seeds": ("seed",)}).items():
        values = values_of(frame, names)
        if values is None or values.nunique() == 1:
            continue
        how = f"{values.name} has {values.nunique()} values"
        if what == "tokens" and levels(values / frame[size_of(frame)], 0.02).nunique() == 1:
            how = "tokens are in proportion to size"
        sentence = f"Runs of {family} differ in {what}, not in size alone: {how}."
        found.append({"what": what, "values": by_family(frame, values)[family], "sentence": sentence})
    return found


def _alone(frame: pd.DataFrame, what: str, findings: Findings) -> bool:
    """Note that there is nothing to match with, if there is one family; what differs within it is in `varies`."""
    if frame["family"].nunique() > 1:
        return False
    findings.matched(what, f"There is one family, and nothing to match its {what} with.")
    return True


def _all_equal(values: Any) -> bool:
    return len({tuple(item) for item in values}) == 1


def _ranges(frame: pd.DataFrame, name: str) -> str:
    groups = frame.groupby("family", sort=False)[name]
    ranges = (f"{shortened(family, 30)} {rows.min():.3g} to {rows.max():.3g}" for family, rows in groups)
    return shortlist(ranges, FAMILIES_LISTED, "; ")


def _lists(found: dict[str, list[Any]]) -> str:
    """A few values of a few families; all of them are in `families`."""
    values_listed = max(2, VALUES_LISTED // len(found))
    lists = (f"{shortened(name, 30)} {shortlist(map(_text, values), values_listed)}" for name, values in found.items())
    return shortlist(lists, FAMILIES_LISTED, "; ", longest=200)


def _text(value: Any) -> str:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))
    return f"{value:.6g}" if number else shortened(value, 30)
