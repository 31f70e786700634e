"""Formulas are typeset as a reader of papers expects, and only where they are formulas."""

from pathlib import Path

import pytest

from slm.report.formulas import typeset
from slm.report.html import html_page


@pytest.mark.parametrize(
    ("formula", "shown"),
    [
        ("L = A N^-alpha", "<i>L</i> = <i>A</i> <i>N</i><sup>−<i>α</i></sup>"),
        ("E + B/D^beta", "<i>E</i> + <i>B</i>/<i>D</i><sup><i>β</i></sup>"),
        ("(N_c/N)^(alpha_N/alpha_D) + 1", "(<i>N</i><sub>c</sub>/<i>N</i>)<sup><i>α</i><sub>N</sub>/<i>α</i>"
         "<sub>D</sub></sup> + 1"),
        ("N^(a + (b))^2", "<i>N</i><sup><i>a</i> + (<i>b</i>)</sup><sup>2</sup>"),
        ("max(N, 1e6) < x", "max(<i>N</i>, 1e6) &lt; <i>x</i>"),
        ("N^", "<i>N</i><sup></sup>"),
    ],
)  # fmt: skip
def test_exponents_are_raised_and_names_are_letters(formula: str, shown: str) -> None:
    assert typeset(formula) == f'<span class="formula">{shown}</span>'


def test_a_formula_is_typeset_in_text_but_not_in_code_or_inside_another_name() -> None:
    markdown = "## A\n\n**L = A N^-a**, alphabet, `L = A N^-a`, alpha = 0.1 [0.05, 0.15] & L = A N^-ab\n"
    page = html_page("T", markdown, Path(), formulas=("L = A N^-a", "alpha"))
    assert page.count('<span class="formula">') == 2
    assert "<code>L = A N^-a</code>" in page
    assert "alphabet" in page
    assert "0.1&nbsp;[0.05,&nbsp;0.15] &amp; L = A N^-ab" in page
