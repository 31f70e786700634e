"""`Which to ship` among checkpoints: paired draws, limits, and what is not compared."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from slm.evaluation.report.quality import compare, joint_errors
from slm.evaluation.report.results import Results
from slm.evaluation.report.ship import ship_entry, ship_section
from slm.evaluation.report.write import write_report
from tests.evaluation.reported import correlated_blocks, entry, scored_blocks, speed
from tests.seeds import generator


def checkpoints(rates: tuple[float, ...] = (40.0, 30.0, 20.0), **other: object) -> list[dict]:
    nats, num_bytes, tokens = correlated_blocks(generator(), len(rates))
    scores = [scored_blocks(row, num_bytes, tokens) for row in nats[::-1]]  # the last is the best
    return [
        entry(f"m{k}", 10**6 * (k + 1), perplexity_results=[score], speed=speed(rate, cache=True, **other))
        for k, (score, rate) in enumerate(zip(scores, rates, strict=True))
    ]


def test_drawn_errors_have_the_paired_error_of_the_difference() -> None:
    scores = [one["perplexity_results"][0] for one in checkpoints()]
    drawn = joint_errors(scores, "bits_per_byte", 20_000, generator(1))
    paired = compare(scores[0], scores[1], "bits_per_byte").error
    assert paired.num_blocks
    assert (drawn[:, 0] - drawn[:, 1]).std() == pytest.approx(paired.se, rel=0.03)
    assert drawn[:, 0].std() == pytest.approx(scores[0]["se_bits_per_byte"], rel=0.03)


def test_the_probability_of_the_best_follows_from_the_paired_error() -> None:
    entries = checkpoints((40.0, 30.0))
    difference = compare(*(one["perplexity_results"][0] for one in entries), "bits_per_byte")
    made = ship_entry(Results(entries))
    assert made is not None
    quality = made["choices"][2]
    assert quality["best"] == "m1"
    assert quality["probability"] == pytest.approx(stats.norm.cdf(difference.value / difference.error.se), abs=0.03)


def test_limits_and_other_conditions() -> None:
    made = ship_entry(Results(checkpoints(), limits={"decode_tokens_per_second": 25.0}))
    assert made is not None
    assert made["choices"][2]["best"] == "m1"
    assert made["meets"][0] == 1
    assert made["meets"][2] < 0.01
    entries = checkpoints()
    entries[1]["speed"]["device_name"] = "another"
    made = ship_entry(Results(entries))
    assert made is not None
    assert made["candidates"][1]["measures"]["decode_tokens_per_second"] is None
    assert "m1 was measured under other conditions" in made["notes"][-1]


def test_different_parts_of_a_text_and_single_checkpoints_are_not_compared() -> None:
    entries = checkpoints()
    entries[0]["perplexity_results"][0]["bytes"] //= 2
    assert ship_section(Results(entries)) is None
    assert ship_section(Results(checkpoints()[:1])) is None


def test_the_report_and_decisions_are_written(tmp_path: Path) -> None:
    files = write_report(tmp_path, checkpoints(), command="python evaluate.py", limits={"bytes": None})
    assert tmp_path / "decisions.json" in files
    assert "## Which to ship" in (tmp_path / "report.md").read_text()
    assert np.isclose(checkpoints()[0]["perplexity_results"][0]["bits_per_byte"], 0.85, atol=0.1)
