"""A law in parameters and depth: L = E + A/N^a + B/d^b."""

from slm.scaling.forms import SumOfPowers, Term
from slm.scaling.laws import register_law

register_law(
    SumOfPowers(
        "size_depth",
        "L = E + A/N^a + B/d^b",
        "docs/extending.md",
        Term("E"),  # loss at unlimited size and depth
        Term("A", "N", "a"),  # A: loss due to finite N at N = 1
        Term("B", "d", "b"),  # B: loss due to finite depth at depth 1
    )
)
