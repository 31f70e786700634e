"""Whether an order of families survives, from entries written by hand."""

from typing import Any

import pytest

from slm.scaling.laws import get_law
from slm.scaling.selection import rankings, survival

FAMILIES = ("a", "b", "c")


def entries(law: str, alphas: dict[str, float], **changes: Any) -> list[dict[str, Any]]:
    """Entries of one fit of every family; `changes` are common to all of them."""
    common = {"law": law, "target": "loss", "size": "N", "loss": "least_squares", "sigma_log": 0.01, "identified": True}
    common |= {"exponents": ["alpha"], "variables": list(get_law(law).variables)} | changes
    return [common | {"family": name, "params": {"alpha": value}} for name, value in alphas.items()]


FIRST = {"a": 0.3, "b": 0.2, "c": 0.1}
SWAPPED = {"a": 0.2, "b": 0.3, "c": 0.1}


def survives(*groups: list[dict[str, Any]]) -> dict[str, Any]:
    every = rankings([entry for group in groups for entry in group], FAMILIES)
    return survival(every, every[0], FAMILIES)


def test_families_are_ranked_from_the_steepest_down() -> None:
    (one,) = rankings(entries("power", {"a": 0.1, "b": 0.3, "c": 0.2}), FAMILIES)
    assert one["order"] == ["b", "c", "a"]
    assert one["usable"]


def test_an_order_that_is_the_same_everywhere_survives() -> None:
    found = survives(
        entries("power", FIRST),
        entries("power_floor", {"a": 0.9, "b": 0.5, "c": 0.4}),
        entries("power", FIRST, target="bits_per_byte"),
        entries("power", FIRST, size="params_total"),
    )
    assert found["survives"] is True
    assert (found["same_order"], found["compared_with"]) == (3, 3)
    assert found["survives_change_of"] == {"law": True, "target": True, "size": True}
    assert all(pair["same"] == pair["of"] == 3 for pair in found["pairs"])


def test_an_order_that_another_law_turns_round_does_not() -> None:
    found = survives(
        entries("power", FIRST), entries("power_floor", SWAPPED), entries("power", FIRST, target="bits_per_byte")
    )
    assert found["survives"] is False
    assert found["primary_order"] == ["a", "b", "c"]
    assert found["survives_change_of"] == {"law": False, "target": True}
    pairs = {(p["steeper"], p["flatter"]): (p["same"], p["of"]) for p in found["pairs"]}
    assert pairs == {("a", "b"): (1, 2), ("a", "c"): (2, 2), ("b", "c"): (2, 2)}


@pytest.mark.parametrize("change", [{"identified": False}, {"sigma_log": 0.031}])
def test_fits_that_say_nothing_are_not_asked(change: dict[str, Any]) -> None:
    """Not identified, or missing the data by more than three times what the best law does."""
    found = survives(entries("power", FIRST), entries("power_floor", SWAPPED, **change))
    assert found["compared_with"] == 0
    assert found["survives"] is None
    assert survives(entries("power", FIRST), entries("power_floor", SWAPPED, sigma_log=0.029))["survives"] is False


def test_one_family_that_is_not_identified_spoils_the_ranking_of_all() -> None:
    rows = entries("power_floor", SWAPPED)
    rows[2]["identified"] = False
    assert survives(entries("power", FIRST), rows)["compared_with"] == 0
    assert survives(entries("power", FIRST), rows[:2])["compared_with"] == 0  # or that was not fitted


def test_misfits_are_compared_within_one_target_only() -> None:
    """Perplexity scatters more than loss does; that does not make its laws untenable."""
    found = survives(entries("power", FIRST), entries("power", SWAPPED, target="bits_per_byte", sigma_log=0.05))
    assert found["compared_with"] == 1


def test_exponents_in_other_variables_are_another_ranking() -> None:
    found = survives(entries("power", FIRST), entries("power_D", SWAPPED, size=None))
    assert found["compared_with"] == 0


def test_only_the_choice_that_changed_the_order_is_blamed() -> None:
    """The order turns round with the target, under either law; with the other law alone it holds."""
    found = survives(
        entries("power", FIRST),
        entries("power_floor", FIRST),
        entries("power", SWAPPED, target="bits_per_byte"),
        entries("power_floor", SWAPPED, target="bits_per_byte"),
    )
    assert found["survives_change_of"] == {"law": True, "target": False}


def test_an_order_under_perplexity_is_told_but_does_not_count() -> None:
    """Its exponent is that of loss times the loss, so a family of high loss looks steep."""
    found = survives(
        entries("power", FIRST), entries("power_floor", FIRST), entries("power", SWAPPED, target="perplexity")
    )
    assert found["survives"] is True
    assert found["perplexity_order"] == sorted(SWAPPED, key=lambda name: -SWAPPED[name])
