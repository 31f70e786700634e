"""The matched-budget audit: do the families of a table differ only in what is compared?

Notable: a setting that the table does not state is listed as unknown and never assumed to match. A comparison is
controlled only if the table shows that tokens, data, tokenizer, evaluation set, schedule and learning rate are matched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from slm.analysis.agreement import (
    complete_column,
    group_numbers,
    has_same_groups,
    has_same_sizes,
    size_column,
    size_columns,
    values_by_family,
)
from slm.runtime.words import count, shortened, shortlist
from slm.scaling.matching import SAME_SIZE
from slm.scaling.tables.suspicions import similar_names

REQUIRED_FOR_CONTROL = ("tokens", "data", "tokenizer", "evaluation set", "schedule", "learning rate rule")
DATA = ("data_fingerprint", "data", "dataset", "data_name")
TOKENIZER = ("tokenizer_fingerprint", "tokenizer")
EVALUATION = ("eval_fingerprint", "eval_set", "evaluation_set", "val_bytes", "val_tokens")
RATES_TRIED = ("lr_tried", "lr_candidates")
"""Columns that may state how many rates were tried. Of each such tuple, the first complete column is compared."""
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
"""Settings that are compared if the table has them, but are not listed as unknown if it lacks them."""
STARTS = {
    "initial weights": ("init_from", "Runs did not all start from the same weights"),
    "rounding": ("quantize", "Runs were not all rounded to the same numbers of bits"),
    "distillation": ("distill", "Runs did not all learn from the same teacher"),
}
"""What has its own column in a table of runs of train.py: the column, and the sentence if its values differ."""
MAX_FAMILIES = 4  # maximum number of families that a sentence names
MAX_VALUES = 12  # maximum number of values that a sentence lists, for all families together


@dataclass
class Findings:
    """What the audit found, in the order of its checks."""

    frame: pd.DataFrame
    violations: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[dict[str, str]] = field(default_factory=list)
    checked: list[dict[str, str]] = field(default_factory=list)

    @property
    def has_one_family(self) -> bool:
        """Whether the table has only one family, so that there is nothing to compare."""
        return bool(self.frame["family"].nunique() == 1)

    def add_violation(self, what: str, values: pd.Series, sentence: str) -> None:
        """Note that `values` differ. A sentence that ends with a colon is completed with the values of each family."""
        families = values_by_family(self.frame, values)
        ending = f" {_family_values_text(families)}." if sentence.endswith(":") else ""
        self.violations.append({"what": what, "families": families, "sentence": sentence + ending})

    def add_unknown(self, what: str) -> None:
        """Note that the table does not state `what` for every run."""
        self.unknown.append({"what": what, "sentence": f"The table does not state the {what} of every run."})

    def add_match(self, what: str, sentence: str) -> None:
        """Note that `what` is matched."""
        self.checked.append({"what": what, "sentence": sentence})

    def skip_one_family(self, what: str) -> bool:
        """Return whether to skip the check of `what`, because there is only one family. If so, note this first."""
        if self.has_one_family:
            self.add_match(what, f"There is one family, and nothing to match its {what} with.")
        return self.has_one_family

    def compare(self, what: str, values: pd.Series, groups: pd.Series, same: str, differ: str) -> None:
        """Add the sentence `same` if families have the same `values` at the same size, otherwise the sentence `differ`.

        Values with the same number in `groups` (from `group_numbers`) count as equal. `{where}` in `differ` becomes
        ` at the same size` if all families have the same set of values, but at different sizes.
        """
        if has_same_groups(self.frame, groups):
            return self.add_match(what, same)
        where = " at the same size" if _are_equal(values_by_family(self.frame, values)) else ""
        return self.add_violation(what, values, f"{differ.format(where=where)}:")


def audit(frame: pd.DataFrame) -> dict[str, Any]:
    """Audit the rows of a table that `slm.scaling.tables` read; returns `controlled` and the lists of `audit.json`.

    - `violations`: settings that differ (`what`, `families` with their values, `sentence`). Different learning rates
      are a violation, although they do not prove that a family was tuned worse.
    - `unknown` and `checked`: settings that are unknown or matched (`what`, `sentence`).
    - `varies`: if there is only one family, the differences between its runs.
    """
    findings = Findings(frame)
    _check_tokens(frame, findings)
    _check_one_value(findings, "data", DATA, "Runs were not trained on the same data")
    _check_tokenizer(frame, findings)
    _check_one_value(findings, "evaluation set", EVALUATION, "Runs were not evaluated on the same text")
    for what, (column, differ) in STARTS.items():
        if complete_column(frame, (column,)) is not None:
            _check_one_value(findings, what, (column,), differ)
    _check_settings(frame, findings)
    _check_learning_rate(frame, findings)
    _check_rates_tried(frame, findings)
    _check_seeds(frame, findings)
    if not findings.has_one_family:
        _check_sizes(frame, findings)
        _check_names(frame, findings)
    unknown = {item["what"] for item in findings.unknown}
    return {
        "controlled": not findings.violations and unknown.isdisjoint(REQUIRED_FOR_CONTROL),
        "violations": findings.violations,
        "unknown": findings.unknown,
        "checked": findings.checked,
        "varies": _differences_within_family(frame) if findings.has_one_family else [],
    }


def _check_names(frame: pd.DataFrame, findings: Findings) -> None:
    """A family that is written in two ways is compared with a part of itself."""
    for group in similar_names(frame["family"]):
        sentence = f"The families {' and '.join(group)} may be one family: their names differ only in spelling."
        findings.add_violation("names", frame["family"], sentence)


def _check_tokens(frame: pd.DataFrame, findings: Findings) -> None:
    if complete_column(frame, ("tokens",)) is None:
        return findings.add_unknown("tokens")
    if findings.skip_one_family("tokens"):
        return None
    tokens = frame["tokens"]
    rules = [("the same token budgets", tokens, 0.005)]
    rules += [(f"the same tokens per parameter ({size})", tokens / frame[size], 0.02) for size in size_columns(frame)]
    for name, meaning in (("budget", "budgets"), ("isoflop", "compute budgets"), ("flops", "compute budgets")):
        if name in frame:
            rules.append((f"the same {meaning} ({name})", frame[name], 0.05))
    for rule, values, tolerance in rules:
        if has_same_groups(frame, group_numbers(values, tolerance)):
            return findings.add_match("tokens", f"Families have {rule}, to {tolerance:.1%}.")
    sentence = "Families differ in training tokens, in tokens per parameter and in compute"
    return findings.add_violation("tokens", frame["tokens"], f"{sentence}: {_ranges(frame, 'tokens')}.")


def _check_tokenizer(frame: pd.DataFrame, findings: Findings) -> None:
    has_one_vocab_size = "vocab_size" in frame and frame["vocab_size"].nunique() == 1
    if complete_column(frame, TOKENIZER) is None and has_one_vocab_size:
        return findings.add_unknown("tokenizer")  # vocabularies of equal size may still differ
    remedy = "; loss per token does not compare across tokenizers, so compare bits_per_byte"
    differ = "Runs have different tokenizers"
    return _check_one_value(findings, "tokenizer", (*TOKENIZER, "vocab_size"), differ, remedy)


def _check_one_value(findings: Findings, what: str, columns: Sequence[str], differ: str, remedy: str = "") -> None:
    """Note whether all runs have the same value in the first complete column; checked even for a single family."""
    values = complete_column(findings.frame, columns)
    if values is None:
        findings.add_unknown(what)
    elif values.nunique() == 1:
        findings.add_match(what, f"All runs have the same {what} ({values.name} {values.iloc[0]}).")
    else:
        findings.add_violation(what, values, f"{differ} ({values.name} differs){remedy}.")


def _check_settings(frame: pd.DataFrame, findings: Findings) -> None:
    for what, columns in (SETTINGS | OPTIONAL).items():
        values = complete_column(frame, columns)
        if values is None and what in SETTINGS:
            findings.add_unknown(what)
        elif values is not None and not findings.skip_one_family(what):
            same = f"Families have the same {what} ({values.name})."
            differ = f"Families differ in {what}{{where}}"
            findings.compare(what, values, group_numbers(values.astype(str), 0), same, differ)


def _check_learning_rate(frame: pd.DataFrame, findings: Findings) -> None:
    what = "learning rate rule"
    is_at_end = complete_column(frame, ("lr_at_end",))
    if is_at_end is not None and is_at_end.any():
        # A family whose best rate lies beyond the rates tried may have higher losses for that reason alone.
        sentence = "The best learning rate is at an end of those tried, so a better rate is likely, at these sizes:"
        return findings.add_violation(what, frame.loc[is_at_end.astype(bool), size_column(frame)], sentence)
    rule = complete_column(frame, ("lr_rule",))
    rates = complete_column(frame, ("lr",))
    parametrization = complete_column(frame, ("parametrization",))
    if rule is None and rates is None:
        if parametrization is None or set(parametrization) == {"standard"}:
            return findings.add_unknown(what)
        rule = parametrization  # for example muP, which transfers learning rates between sizes
    if findings.skip_one_family(what):
        return None
    if rule is not None and rule.nunique() == 1:
        return findings.add_match(what, f"All runs have one rule for the learning rate ({rule.name} {rule.iloc[0]}).")
    if rates is not None:
        same = "Families have the same learning rates at the same size."
        differ = "Learning rates differ between families at the same size, so they are not controlled"
        return findings.compare(what, rates, group_numbers(rates, 1e-6), same, differ)
    return findings.add_violation(what, rule, "Families differ in the rule for the learning rate:")


def _check_rates_tried(frame: pd.DataFrame, findings: Findings) -> None:
    """Compare how many learning rates were tried, because the best of more rates has a lower loss by chance alone."""
    tried = complete_column(frame, RATES_TRIED)
    if tried is None or findings.skip_one_family("rates tried"):
        return
    counts = shortlist(map(_text, sorted(set(tried.tolist()))), MAX_VALUES)
    same = f"Families were given the same number of learning rates ({counts})."
    differ = "Families were given different numbers of learning rates{where}, and the best of more rates is lower"
    findings.compare("rates tried", tried, group_numbers(tried, 0), same, differ)


def _check_seeds(frame: pd.DataFrame, findings: Findings) -> None:
    values = complete_column(frame, ("seed",))
    if values is None:
        return findings.add_unknown("seeds")
    if findings.skip_one_family("seeds"):
        return None
    if _are_equal(values_by_family(frame, values)):
        return findings.add_match("seeds", f"Families have the same seeds ({values.nunique()} of them).")
    return findings.add_violation("seeds", values, "Families differ in seeds:")


def _check_sizes(frame: pd.DataFrame, findings: Findings) -> None:
    size = size_column(frame)
    if has_same_sizes(frame, size):
        return findings.add_match("sizes", f"Families have the same sizes ({size}), to 10%.")
    sentence = f"Families do not have the same sizes, to 10%: {_ranges(frame, size)}."
    findings.add_violation("sizes", frame[size], sentence)
    ends = frame.groupby("family")[size].agg(["min", "max"])
    if (ends.max() / ends.min() > 1 + SAME_SIZE).any():
        low, high = ends["min"].max(), ends["max"].min()
        common = f"{count(float(low))} to {count(float(high))}" if low < high else "which does not exist"
        sentence = f"Ranges of {size} differ between families: exponents compare only over the common range, {common}."
        findings.add_violation("ranges", frame[size], sentence)
    return None


def _differences_within_family(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The settings other than size that differ between the runs of one family."""
    family = str(frame["family"].iloc[0])
    columns = {"tokens": ("tokens",), "data": DATA, "tokenizer": TOKENIZER, "evaluation set": EVALUATION}
    differences = []
    for what, names in (columns | SETTINGS | OPTIONAL | {"learning rate": ("lr",), "seeds": ("seed",)}).items():
        values = complete_column(frame, names)
        if values is None or values.nunique() == 1:
            continue
        how = f"{values.name} has {values.nunique()} values"
        if what == "tokens" and group_numbers(values / frame[size_column(frame)], 0.02).nunique() == 1:
            how = "tokens are in proportion to size"
        sentence = f"Runs of {family} differ in {what}, not in size alone: {how}."
        differences.append({"what": what, "values": values_by_family(frame, values)[family], "sentence": sentence})
    return differences


def _are_equal(lists: dict[str, list[Any]]) -> bool:
    return len({tuple(values) for values in lists.values()}) == 1


def _ranges(frame: pd.DataFrame, name: str) -> str:
    groups = frame.groupby("family", sort=False)[name]
    ranges = (
        f"{shortened(name, 30)} {count(float(rows.min()))} to {count(float(rows.max()))}" for name, rows in groups
    )
    return shortlist(ranges, MAX_FAMILIES, "; ")


def _family_values_text(families: dict[str, list[Any]]) -> str:
    max_values = max(2, MAX_VALUES // len(families))
    texts = (f"{shortened(name, 30)} {shortlist(map(_text, values), max_values)}" for name, values in families.items())
    return shortlist(texts, MAX_FAMILIES, "; ", max_characters=200)


def _text(value: Any) -> str:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))
    if is_number and float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.6g}" if is_number else shortened(value, 30)
