"""A law in parameters and depth: L = E + A/N^a + B/d^b."""

from slm.scaling.forms import SumOfPowers, Term
from slm.scaling.laws import register_law

register_law(
    SumOfPowers(
        name="size_depth",
        equation="L = E + A/N^a + B/d^b",
        source="docs/extending.md",
        terms=(Term("E"), Term("A", "N", "a"), Term("B", "d", "b")),
        parameters={
            "E": "loss at unlimited size and depth",
            "A": "loss due to finite N at N = 1",
            "B": "loss due to finite depth at depth 1",
            "a": "exponent in N",
            "b": "exponent in depth",
        },
    )
)
