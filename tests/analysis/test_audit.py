"""A comparison is called controlled only if all that could explain a difference is known to be matched."""

import json

import numpy as np
import pandas as pd
import pytest

from slm.analysis.audit import audit
from slm.scaling.tables import read_table
from slm.sweep.evaluation import keep_measured_runs
from tests.sweep.designs import runs, what

NAMED = {"tokens": "tokens", "data_fingerprint": "data", "tokenizer_fingerprint": "tokenizer", "schedule": "schedule"}
NAMED |= {"val_bytes": "evaluation set", "lr": "learning rate rule"}
NEEDED = tuple(NAMED)
"""Columns without which a comparison is not called controlled."""
NAMED |= {"sequence_length": "sequence length", "batch_tokens": "batch", "precision": "precision", "seed": "seeds"}
NAMED |= {"document_masking": "document masking", "optimizer": "optimizer", "ema_decay": "averaging of weights"}
OTHER = {"tokens": 2e8, "val_bytes": 999, "sequence_length": 512, "batch_tokens": 8192, "document_masking": True}
OTHER |= {"ema_decay": 0.999, "lr": 1e-4, "seed": 3}


def wide(frame: pd.DataFrame) -> pd.Series:
    return frame["family"] == "wide"


def test_families_that_differ_in_nothing_else_are_controlled() -> None:
    found = audit(runs())
    assert found["controlled"]
    assert found["violations"] == found["unknown"] == found["varies"] == []
    assert len(found["checked"]) == 11


@pytest.mark.parametrize("column", NAMED)
def test_each_difference_between_families_is_named(column: str) -> None:
    frame = runs(document_masking=False, optimizer="adamw", ema_decay=0.0)
    value = OTHER.get(column, "other")
    frame[column] = [value if other else mine for other, mine in zip(wide(frame), frame[column], strict=True)]
    found = audit(frame)
    assert not found["controlled"]
    assert what(found, "violations") == [NAMED[column]]
    assert set(found["violations"][0]["families"]) == {"deep", "wide"}
    assert found["violations"][0]["sentence"].endswith(".")
    assert ("compare bits_per_byte" in found["violations"][0]["sentence"]) == (column == "tokenizer_fingerprint")
    json.dumps(found, allow_nan=False)


def test_two_mixtures_of_the_same_sources_are_not_matched() -> None:
    """The weights are in the fingerprint: tests/data/test_mixture.py."""
    frame = runs(data_fingerprint=["a mix of 7 to 3"] * 6 + ["a mix of 6 to 4"] * 6)
    assert not audit(frame)["controlled"]
    assert what(audit(frame), "violations") == ["data"]


def test_the_audit_goes_by_the_text_of_the_measure_that_is_analysed() -> None:
    def audited(columns: dict[str, str], **changes: object) -> dict:
        frame = runs(wiki_bits_per_byte=1.5, wiki_eval_data_fingerprint="w", books_eval_data_fingerprint="b")
        frame = frame.assign(run_id=[f"run{row}" for row in frame.index], **changes)
        return audit(keep_measured_runs(frame, columns)[0])

    by_wiki, texts = {"bits_per_byte": "wiki_bits_per_byte"}, ["w"] * 6 + ["v"] * 6
    assert audited(by_wiki)["controlled"]
    assert audited({}, wiki_eval_data_fingerprint=texts)["controlled"]
    assert audited(by_wiki, books_eval_data_fingerprint=texts)["controlled"]
    assert what(audited(by_wiki, wiki_eval_data_fingerprint=texts), "violations") == ["evaluation set"]


@pytest.mark.parametrize("column", NEEDED)
def test_what_the_table_does_not_say_is_not_taken_as_matched(column: str) -> None:
    found = audit(runs().drop(columns=column))
    assert not found["controlled"]
    assert what(found, "unknown") == [NAMED[column]]
    assert "does not state" in found["unknown"][0]["sentence"]


def test_the_batch_the_precision_and_the_seeds_may_be_unknown() -> None:
    found = audit(runs().drop(columns=["batch_tokens", "precision", "seed", "sequence_length"]))
    assert found["controlled"]
    assert len(found["unknown"]) == 4


def test_what_few_tables_have_is_not_missed_in_others() -> None:
    """`test_families_that_differ_in_nothing_else_are_controlled` has none of these columns and no unknown."""
    found = audit(runs(document_masking=True, optimizer="muon", ema_decay=0.0))
    assert found["controlled"]
    assert {"document masking", "optimizer", "averaging of weights"} <= set(what(found, "checked"))


def test_tokens_are_matched_by_budget_by_ratio_or_by_compute() -> None:
    frame = runs()
    ratio = frame.assign(tokens=20.1 * frame["params_total"] * np.where(wide(frame), 1.01, 1))
    compute = frame.assign(tokens=1e15 / frame["params_total"], flops=6e15 * np.where(wide(frame), 1.02, 1))
    for table, words in ((ratio, "tokens per parameter"), (compute, "compute")):
        assert audit(table)["controlled"]
        assert words in audit(table)["checked"][0]["sentence"]


def test_ranges_of_sizes_that_differ_are_named_beside_the_sizes() -> None:
    longer = runs()
    longer.loc[wide(longer) & (longer["params_total"] > 9e6), "params_total"] = 4e7
    found = {item["what"]: item["sentence"] for item in audit(longer)["violations"]}
    assert "sizes" in found
    assert found["ranges"].startswith("Ranges of params_total differ between families: exponents compare only over")
    assert found["ranges"].endswith("over the common range, 1.03M to 10M.")
    apart = runs()
    apart.loc[wide(apart), "params_total"] *= 100
    found = {item["what"]: item["sentence"] for item in audit(apart)["violations"]}
    assert found["ranges"].endswith("over the common range, which does not exist.")
    between = runs()
    between.loc[wide(between) & (between["params_total"] == 3.09e6), "params_total"] = 5e6
    assert what(audit(between), "violations") == ["sizes"]


@pytest.mark.parametrize(
    ("column", "named"), [("init_from", "initial weights"), ("distill", "distillation"), ("quantize", "rounding")]
)
def test_runs_from_weights_or_with_a_teacher_are_kept_apart_from_others_also_within_a_family(
    column: str, named: str
) -> None:
    assert audit(runs(**{column: "scratch"}))["controlled"]
    mixed = runs(**{column: "scratch"})
    mixed.loc[mixed["seed"] == mixed["seed"].max(), column] = "weights 0123456789abcdef"  # in both families alike
    for frame in (mixed, mixed[~wide(mixed)]):
        assert named in what(audit(frame), "violations")
    assert not audit(mixed)["controlled"]


@pytest.mark.parametrize("column", ["lr_tried", "lr_candidates"])
def test_a_family_that_was_given_more_learning_rates_is_named(column: str) -> None:
    assert "rates tried" not in what(audit(runs()), "checked")
    same = audit(runs(**{column: 5}))
    assert same["controlled"]
    assert "Families were given the same number of learning rates (5)." in [i["sentence"] for i in same["checked"]]
    more = runs()
    more[column] = np.where(wide(more), 9, 5)
    (violation,) = audit(more)["violations"]
    assert violation["families"] == {"deep": [5], "wide": [9]}
    said = (
        "Families were given different numbers of learning rates, and the best of more rates is lower: deep 5; wide 9."
    )
    assert violation["sentence"] == said
    more[column] = np.where(wide(more) == (more["params_total"] > 5e6), 9, 5)  # as many in all, not at each size
    assert what(audit(more), "violations") == ["rates tried"]


def test_the_same_budgets_at_other_sizes_are_not_matched() -> None:
    budgets = [1e8, 1e8, 2e8, 2e8, 4e8, 4e8]
    assert what(audit(runs(tokens=budgets + budgets[::-1])), "violations") == ["tokens"]


@pytest.mark.parametrize("column", ["schedule", "sequence_length", "batch_tokens", "precision", "optimizer"])
def test_the_same_settings_at_other_sizes_are_not_matched(column: str) -> None:
    mixed = ["a", "a", "a", "a", "b", "b"]
    assert audit(runs(**{column: mixed + mixed}))["controlled"]
    (found,) = audit(runs(**{column: mixed + mixed[::-1]}))["violations"]
    assert "at the same size" in found["sentence"]


def test_sizes_are_matched_by_either_count_of_parameters() -> None:
    frame = runs()
    embeddings = np.where(wide(frame), 1e6, 3e5)
    both = frame.assign(params_non_embedding=frame["params_total"], params_total=frame["params_total"] + embeddings)
    found = audit(both.assign(tokens=20 * both["params_total"]))
    assert found["controlled"]
    said = [item["sentence"] for item in found["checked"] if item["what"] in ("tokens", "sizes")]
    assert "tokens per parameter (params_total)" in said[0]
    assert "the same sizes (params_non_embedding)" in said[1]


def test_a_common_rule_makes_learning_rates_matched() -> None:
    frame = runs()
    rates = frame["lr"] * np.where(wide(frame), 2, 1)
    assert "not controlled" in audit(frame.assign(lr=rates))["violations"][0]["sentence"]
    assert audit(frame.assign(lr=rates, lr_rule="best of 5 at each size"))["controlled"]
    # One name for the initialisation is no rule for the learning rate, unless it is one that carries it over sizes.
    assert not audit(frame.assign(lr=rates, parametrization="standard"))["controlled"]
    assert audit(frame.drop(columns="lr").assign(parametrization="mup"))["controlled"]


def test_a_rate_whose_best_was_not_found_is_not_matched_by_its_rule() -> None:
    frame = runs(lr_rule="tuned over 5 rates", lr_at_end=False)
    assert audit(frame)["controlled"]
    frame.loc[wide(frame) & (frame["params_total"] < 2e6), "lr_at_end"] = True
    found = audit(frame)
    assert not found["controlled"]
    (violation,) = found["violations"]
    assert violation["families"] == {"wide": [1.03e6]}
    assert violation["sentence"].endswith("so a better rate is likely, at these sizes: wide 1,030,000.")


def test_one_family_says_what_varies_within_it() -> None:
    frame = runs()
    found = audit(frame[~wide(frame)].assign(tokens=20 * frame["params_total"]))
    assert found["violations"] == []
    assert {item["what"] for item in found["varies"]} == {"tokens", "learning rate", "seeds"}
    assert "in proportion to size" in found["varies"][0]["sentence"]


def test_the_published_table_is_not_controlled_and_violates_nothing() -> None:
    found = audit(read_table("mobilellm_published").frame)
    assert not found["controlled"]
    assert found["violations"] == []
    assert {"data", "evaluation set", "learning rate rule"} <= set(what(found, "unknown"))
