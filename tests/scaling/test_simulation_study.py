"""A few minutes of benchmarks/simulation_study.py: what is said of tables with a known truth, and what covers it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.running import quiet_env

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TABLES = 40
SURE = 1e-3
"""Chance that a claim which holds fails here."""


@pytest.mark.parametrize(
    "design",
    [
        "4 sizes over 8x",
        "sizes off the law by as much as seeds scatter",
        "families off the law together",
        "scatter differs by 4, half",
        "power_floor 6 sizes over 30x, 3 seeds",
        "ranges shifted by 4",
        "trunks with 4 branches",
        "differ by 0.02, as first_study",
    ],
)
def test_intervals_cover_and_differ_is_said_where_it_is_true(design: str, tmp_path: Path) -> None:
    keep = tmp_path / "results.jsonl"
    command = [sys.executable, "benchmarks/simulation_study.py", "--only", design, "--keep", str(keep)]
    subprocess.run([*command, "--replications", str(TABLES)], check=True, env=quiet_env(), stdout=subprocess.DEVNULL)
    results = [json.loads(line) for line in keep.read_text().splitlines()]
    assert len({result["key"] for result in results}) == 1
    tables = len(results)
    # Tables are independent, intervals of one are not: 93% of them is asked for as if each table had one.
    for kind in {kind for result in results for kind in result["covers"]}:
        shares = [np.mean(result["covers"][kind]) for result in results if kind in result["covers"]]
        assert np.mean(shares) >= stats.binom.ppf(SURE, len(shares), 0.93) / len(shares), kind
    assert sum(result["wrong"] for result in results) <= stats.binom.ppf(1 - SURE, tables, 0.07)
    if "differ by" in design:
        assert sum(bool(result["said"]) for result in results) > tables / 3


@pytest.mark.parametrize("design", ["logistic_power, 6 sizes over 30x", "two steps, 8 sizes over 100x, 3 seeds"])
def test_intervals_of_accuracies_cover(design: str, tmp_path: Path) -> None:
    keep = tmp_path / "results.jsonl"
    command = [sys.executable, "benchmarks/accuracy_study.py", "--only", design, "--keep", str(keep)]
    subprocess.run([*command, "--replications", str(TABLES)], check=True, env=quiet_env(), stdout=subprocess.DEVNULL)
    results = [json.loads(line)["covers"] for line in keep.read_text().splitlines()]
    assert len(results) == TABLES
    for kind in results[0]:
        covered = [found[kind] for found in results if found.get(kind) is not None]
        assert sum(covered) >= stats.binom.ppf(SURE, len(covered), 0.93), kind
