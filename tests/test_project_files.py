"""README, badges and CITATION.cff say what the study, the package and its metadata say."""

import json
import math
import tomllib

import pytest
import yaml

from tests.running import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_readme_quotes_the_first_study_with_its_interval() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    pairs = json.loads((ROOT / "results/first_study/analysis/comparison.json").read_text())["paired"]["pairs"]
    (pair,) = (row for row in pairs if (row["a"], row["b"]) == ("mobilellm", "ssd"))
    # `worth` is the factor on the size of b at which it equals a.
    low, factor, high = (1 / pair["worth"][end] for end in ("high", "factor", "low"))
    assert f"a loss {-math.expm1(-pair['level_log_ratio']):.1%} lower than" in readme
    assert f"{factor:.3g} times the parameters [{low:.3g}, {high:.3g}]" in readme
    assert f"a difference of exponents under {pair['detectable']:.2g} may well have gone unseen" in readme


@pytest.mark.parametrize(
    ("badge", "words"),
    [
        ("python", PROJECT["requires-python"].removeprefix(">=") + "+"),
        ("torch", next(item for item in PROJECT["dependencies"] if item.startswith("torch>=")).split("=")[1] + "+"),
        ("licence", PROJECT["license"]),
    ],
)
def test_a_badge_says_what_the_package_declares(badge: str, words: str) -> None:
    assert f"<title>{badge}: {words}</title>" in (ROOT / "docs" / "badges" / f"{badge}.svg").read_text()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # required by the format
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
