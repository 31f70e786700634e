"""The one sentence that readers repeat is right in every case: who is ahead, by how much, and what is not known."""

import math
from typing import Any

import pytest

from slm.scaling.caveats import Case
from slm.scaling.headline import headline, headline_for_one_family, headline_pair

EQUATION = "L = A N^-alpha of loss"
UNLIKE = "The comparison is not controlled"


def at_equal_size(a: str, b: str, ratio: float, p: float = 0.001, **other: Any) -> dict[str, Any]:
    """A row of `paired` with losses a / b = `ratio`, worth the tenth root of the ratio in N."""
    log_factor = -math.log(ratio) * 10
    ends = sorted((0.8 * log_factor, 1.2 * log_factor))
    worth = {"factor": math.exp(log_factor), "low": math.exp(ends[0]), "high": math.exp(ends[1])}
    row = {
        "a": a,
        "b": b,
        "sizes": [1e6, 1e7, 1e8],
        "level_log_ratio": math.log(ratio),
        "level_p_adjusted": p,
        "worth": worth,
    }
    row |= {"above_floor": None, "detectable": 0.015, "band": {"centre": [math.log(ratio)] * 3}}
    return row | other


def compared(a: str, b: str, delta: float = 0.001, differs: bool | None = False, **other: Any) -> dict[str, Any]:
    """A pair of the verdict; the first family is steeper by `delta`."""
    pair = {"a": a, "b": b, "delta": delta, "ci_low": delta - 0.004, "ci_high": delta + 0.004, "differs": differs}
    return pair | {"paired": True, "above": False, "p_adjusted": 0.001 if differs else 0.5} | other


def case(families: list[str], rows: list[dict[str, Any]], **law: Any) -> Case:
    paired = {"pairs": rows, "curved": False, "power": 0.8, "advice": None}
    comparison = {"families": families, "n_runs": 48, "primary": {"level": 0.95}, "paired": paired, "weighed": {}}
    comparison["levels"] = {"pairs": law.pop("levels", [])}
    fits = [{"family": name, "identified": True} for name in families]
    return Case(comparison, fits, law_name="power", law_comparison=law, target="loss", equation=EQUATION)


def said(families: list[str], rows: list[dict[str, Any]], pairs: list[dict[str, Any]], **other: Any) -> str:
    return headline(case(families, rows, **other), pairs, None)[0]


def test_a_clear_level_and_an_unclear_exponent_are_joined_in_one_sentence() -> None:
    assert said(["a", "b"], [at_equal_size("a", "b", 1.07)], [compared("a", "b")]) == (
        "At equal size b reaches a lower loss than a, like a model 2.0 times as large [1.7, 2.3]; whether b scales "
        "faster than a these 48 runs cannot say: a lead that changes by up to 3.5% of the loss for each factor of ten "
        "in size could have gone unseen (exponents 0.015 apart)."
    )


def test_a_level_that_is_not_clear_names_no_winner() -> None:
    text = said(["a", "b"], [at_equal_size("a", "b", 1.01, p=0.3)], [compared("a", "b")])
    assert text.startswith("At equal size these 48 runs show no clear difference in loss between b and a (b is like")
    assert "lower" not in text


def test_a_level_that_changes_sides_over_the_sizes_is_said_of_the_middle_alone() -> None:
    row = at_equal_size("a", "b", 1.07, band={"centre": [0.15, 0.07, -0.01]})
    assert said(["a", "b"], [row], [compared("a", "b")]).startswith("At the middle size b reaches a lower loss than a")
    row |= {"level_p_adjusted": 0.9}
    assert said(["a", "b"], [row], [compared("a", "b")]).startswith("At the middle size these 48 runs show no clear")


def test_a_factor_near_one_has_the_digits_that_show_its_side() -> None:
    text = said(["a", "b"], [at_equal_size("a", "b", 1.003)], [compared("a", "b")])
    assert "1.03 times as large [1.02, 1.04]" in text


def test_a_factor_beyond_the_largest_size_is_said_to_be_extrapolated() -> None:
    """The middle size is 1e7 and the largest 1e8; a ratio of 1.25 is worth a factor of 9.3, one of 1.27 of 10.9."""
    texts = [said(["a", "b"], [at_equal_size("a", "b", ratio)], [compared("a", "b")]) for ratio in (1.25, 1.27)]
    assert ["beyond the sizes measured" in text for text in texts] == [False, True]
    assert "11 times as large [6.8, 18], if this goes on beyond the sizes measured; " in texts[1]


def test_a_level_whose_worth_is_unbounded_has_no_factor() -> None:
    row = at_equal_size("a", "b", 1.07, worth={"factor": None, "low": None, "high": None})
    assert said(["a", "b"], [row], [compared("a", "b")]).startswith("At equal size b reaches a lower loss than a; ")


@pytest.mark.parametrize(
    ("delta", "words"),
    [(-0.03, "; and over these sizes b scales faster than a"), (0.03, "; but over these sizes a scales faster than b")],
)
def test_clear_exponents_say_who_scales_faster_and_whether_it_is_the_one_ahead(delta: float, words: str) -> None:
    text = said(["a", "b"], [at_equal_size("a", "b", 1.07)], [compared("a", "b", delta, differs=True)])
    assert words in text
    assert text.endswith("its loss falls with an exponent that is larger by 0.0300 [0.0260, 0.0340].")


def test_an_answer_that_depends_on_the_law_is_no_answer() -> None:
    found = headline(case(["a", "b"], [at_equal_size("a", "b", 1.07)]), [compared("a", "b", differs=None)], None)
    assert found[0].endswith("; whether b scales faster than a depends on the law that is assumed.")
    assert found[1] is None


def test_of_many_families_the_lowest_stands_against_the_first_and_the_rule_ignores_significance() -> None:
    rows = [at_equal_size("a", "b", 1.02), at_equal_size("a", "c", 1.06), at_equal_size("b", "c", 1.04)]
    assert headline_pair(case(["a", "b", "c"], rows))[:2] == ("c", "a")
    unclear = [row | {"level_p_adjusted": 0.9} for row in rows]
    assert headline_pair(case(["a", "b", "c"], unclear))[:2] == ("c", "a")
    assert headline_pair(case(["c", "b", "a"], rows))[:2] == ("c", "b")  # the first leads: the closest to it


def test_the_lowest_of_many_is_said_to_beat_each_only_if_every_pair_is_clear() -> None:
    rows = [at_equal_size("a", "b", 1.02), at_equal_size("a", "c", 1.07), at_equal_size("b", "c", 1.04)]
    text = said(["a", "b", "c"], rows, [compared("a", "c")])
    assert text.startswith("At equal size c reaches a lower loss than each of the 2 other families (compared with a, ")
    rows[2] |= {"level_p_adjusted": 0.2}
    assert said(["a", "b", "c"], rows, [compared("a", "c")]).startswith("At equal size c reaches a lower loss than a, ")


def test_pairs_outside_the_sentence_that_differ_are_counted() -> None:
    rows = [at_equal_size("a", "b", 1.02), at_equal_size("a", "c", 1.07), at_equal_size("b", "c", 1.04)]
    pairs = [compared("a", "b", 0.05, differs=True), compared("a", "c"), compared("b", "c")]
    found = headline(case(["a", "b", "c"], rows), pairs, None)
    assert found[0].endswith("apart); 1 of 3 pairs of families differ in how they scale.")
    assert found[1] is True


def test_without_common_sizes_one_law_says_who_needs_fewer_parameters_unless_the_runs_reject_it() -> None:
    efficiency = [{"family": "b", "reference": "a", "variable": "N", "factor": 0.5, "low": 0.4, "high": 0.625}]
    tests = [{"restricted": "efficiency", "wider": "separate", "p": 0.4}]
    text = said(["a", "b"], [], [compared("a", "b", paired=False)], efficiency=efficiency, tests=tests)
    assert text.startswith(
        f"If one law {EQUATION} holds for both, a reaches a lower loss than b at equal size, like a model 2.0 times as "
        "large [1.6, 2.5]; "
    )
    assert text.endswith("no difference of exponents could have been detected.")
    tests[0]["p"] = 0.01
    text = said(["a", "b"], [], [compared("a", "b", paired=False)], efficiency=efficiency, tests=tests)
    assert text.startswith("At equal size a and b could not be compared in loss; ")


def test_without_pairs_or_one_law_the_mean_difference_at_common_sizes_says_who_is_lower() -> None:
    """Runs at equal sizes and tokens are evidence, whatever law their tokens would need."""

    def mean(a: str, b: str, difference: float, p: float | None = 0.001) -> dict[str, Any]:
        sizes = [{"N_a": 1e7, "N_b": 1e7, "tokens": 1e9}, {"N_a": 2e7, "N_b": 2e7, "tokens": 5e9}]
        ends = {"low": difference - 0.004, "high": difference + 0.004}
        return {"a": a, "b": b, "sizes": sizes, "mean": {"difference": difference, "p": p, "p_adjusted": p} | ends}

    levels = [mean("a", "b", 0.01), mean("a", "c", 0.05), mean("b", "c", 0.04)]
    text = said(["a", "b", "c"], [], [compared("a", "c", paired=False)], levels=levels)
    assert text.startswith(
        "On average over the 2 sizes that both have, c reaches a loss 0.0500 [0.0460, 0.0540] lower than a; "
    )
    levels[1] = mean("a", "c", 0.003, p=0.2)
    text = said(["a", "b", "c"], [], [compared("a", "c", paired=False)], levels=levels)
    assert text.startswith(
        "On average over the 2 sizes that both have, these 48 runs show no clear difference in loss between c and a; "
    )
    text = said(["a", "b"], [], [compared("a", "b", paired=False)], levels=[mean("a", "b", 0.01, p=None)])
    assert text.startswith("At equal size a and b could not be compared in loss; ")


def test_exponents_that_are_not_identified_are_named_and_nothing_is_distinguishable() -> None:
    lost = case(["a", "b"], [at_equal_size("a", "b", 1.07)])
    lost.fits[0]["identified"] = False
    text, distinguishable = headline(lost, [], None)
    assert text.endswith(f"these 48 runs cannot say: the exponent of a is not identified under {EQUATION}.")
    assert distinguishable is None


def test_a_comparison_that_is_not_controlled_says_so_first() -> None:
    text = headline(case(["a", "b"], [at_equal_size("a", "b", 1.07)]), [compared("a", "b")], False)[0]
    assert text.startswith(UNLIKE)
    assert ": at equal size b reaches" in text
    for is_controlled in (True, None):
        found = headline(case(["a", "b"], [at_equal_size("a", "b", 1.07)]), [compared("a", "b")], is_controlled)
        assert UNLIKE not in found[0]


def test_one_family_is_told_what_a_doubling_does() -> None:
    fit = {"family": "a", "identified": True, "exponents": ["alpha"], "params": {"alpha": 0.1}, "law": "power"}
    alone = case(["a"], [])
    alone.fits[:] = [fit | {"ci95": {"alpha": [0.08, None]}, "variable_of": {"alpha": "N"}}]
    text = headline_for_one_family(alone)
    assert f"doubling its parameters lowers the loss by {1 - 2**-0.1:.1%} [{1 - 2**-0.08:.1%}, open] (alpha" in text
    alone.fits[0] |= {"params": {"alpha": -0.1}, "ci95": {"alpha": [-0.12, -0.08]}}  # the loss rises with size
    rises = f"raises the loss by {2**0.1 - 1:.1%} [{2**0.08 - 1:.1%}, {2**0.12 - 1:.1%}] (alpha"
    assert f"doubling its parameters {rises}" in headline_for_one_family(alone)
    alone.fits[0] |= {"law": "mine"}  # a formula, such as A*(N+3e6)**-alpha
    assert "doubling" not in headline_for_one_family(alone)


def test_a_pair_of_families_counts_once_whatever_its_number_of_exponents() -> None:
    rows = [at_equal_size("a", "b", 1.07)]
    pairs = [compared("a", "b", exponent="alpha"), compared("a", "b", 0.05, differs=True, exponent="beta")]
    text = said(["a", "b"], rows, pairs)
    assert "a scales faster than b" in text
    assert "pairs of families" not in text
