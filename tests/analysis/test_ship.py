"""`Which to ship` of an analysis: files, sentences, and what it refuses to say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slm.analysis.report.ship import lifetime_sentence
from slm.analysis.run import analyse_runs
from slm.sweep.config import check_settings
from tests.seeds import generator
from tests.sweep.designs import QUICK, composed

FAST = ("analysis.laws=[power]", "analysis.targets=[loss]", "analysis.sizes=[params_total]", "analysis.bootstrap=0")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.analysis.report.page.FIGURES", {})


def analysed(*overrides: str) -> dict:
    analyse_runs(check_settings(composed(*QUICK, *FAST, "output_dir=out", *overrides)))
    return json.loads(Path("out/decisions.json").read_text())


def write_tables(num_shapes: int = 6) -> None:
    """Family b is 5% better at each size and equally fast."""
    rng, rows = generator(), []
    for family, factor in (("a", 1.0), ("b", 0.95)):
        for k, N in enumerate(np.geomspace(1e6, 1e8, 6), start=1):
            for seed in (1, 2):
                loss = 20 * factor * N**-0.1 * np.exp(0.002 * rng.standard_normal())
                rows.append({"family": family, "width": 64 * k, "depth": 2 * k, "params_total": N, "tokens": 1e9,
                             "seed": seed, "loss": loss})  # fmt: skip
    runs = pd.DataFrame(rows)
    runs.to_csv("runs.csv", index=False)
    device = runs[runs["seed"] == 1].groupby("family").head(num_shapes)[["family", "width", "depth"]]
    device = pd.concat([device, device])  # each shape is measured twice
    seconds = (1e-4 * device["depth"] + 1e-7 * device["width"] ** 2) * np.exp(0.02 * rng.standard_normal(len(device)))
    device.assign(decode_tokens_per_second=1 / seconds).to_csv("phone.csv", index=False)


def test_the_better_family_is_shipped_and_the_report_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    write_tables()
    made = analysed("runs=runs.csv", "device=phone.csv", "ship.decode_tokens_per_second=400")
    quality = made["choices"][2]
    inside = [row for row in made["candidates"] if row["measures"]["decode_tokens_per_second"] >= 400]
    assert quality["best"] == min(inside, key=lambda row: row["loss"])["name"]
    assert quality["best"].startswith("b ")
    logs = np.log(pd.read_csv("runs.csv").groupby(["family", "width"])["loss"].apply(list).tolist())
    error_of_mean = logs.std(axis=1, ddof=1).dot(logs.std(axis=1, ddof=1) / 12) ** 0.5 / np.sqrt(2)
    half_widths = [np.log(row["high"] / row["low"]) / 2 for row in made["candidates"]]
    assert np.mean(half_widths) == pytest.approx(stats.t(12).ppf(0.975) * error_of_mean, rel=0.05)
    best = max(made["largest"], key=lambda row: row["probability"])
    assert best["family"] == "b"
    report = Path("out/report.md").read_text()
    assert f"**Quality first**: {quality['best']}" in report
    assert "Which to ship" in capsys.readouterr().out
    assert Path("out/figures/ship.png").exists()
    assert "Which to ship" in Path("out/report.html").read_text()


def test_few_measured_shapes_have_choices_but_no_model(without_figures: None) -> None:
    write_tables(num_shapes=2)
    made = analysed("runs=runs.csv", "device=phone.csv")
    assert all("a model needs 5" in row["refused"] for row in made["largest"])
    assert len(made["candidates"]) == 4
    assert "the data cannot say which size is best" in Path("out/report.md").read_text()


def test_the_published_study_s_speeds_decide_nothing(without_figures: None) -> None:
    made = analysed("runs=mobilellm_published", "device=mobilellm_published")
    assert [choice["sure"] for choice in made["choices"][:2]] == [False, False]
    report = Path("out/report.md").read_text()
    assert "these speeds measure depth" in report
    assert "4 shapes were measured, and a model needs 5" in report


def test_a_limit_that_no_shape_meets_is_said(without_figures: None) -> None:
    write_tables()
    made = analysed("runs=runs.csv", "device=phone.csv", "ship.decode_tokens_per_second=1e9")
    assert {choice["why"] for choice in made["choices"]} == {"no candidate meets the limits"}
    assert {row["N"] for row in made["largest"]} == {None}
    assert "there is no size: none that was searched meets the limits" in Path("out/report.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ship.bytes=1e6"], "ship.bytes=1e+06 needs measurements: give device=FILE.csv"),
        (["device=missing.csv"], "device=missing.csv does not exist"),
        (["device=phone.csv", "ship.bytes=-1"], "ship.bytes=-1 must be a number above 0"),
        (["device=phone.csv", "ship.joules=1"], "ship.joules=1 needs the column joules_per_token"),
        (["analysis.served_tokens=1e12"], "analysis.served_tokens=1e+12 needs the loss to reach"),
        (["analysis.training_flops=1e20"], "analysis.training_flops needs analysis.served_tokens"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(overrides: list[str], words: str) -> None:
    write_tables()
    with pytest.raises(ValueError, match=r".") as refusal:
        analysed("runs=runs.csv", *overrides)
    assert words in str(refusal.value)
    assert not Path("out").exists()


def test_without_any_error_of_the_results_quality_is_not_decided(without_figures: None) -> None:
    frame = pd.DataFrame({"family": "a", "width": [64, 128], "depth": [2, 4], "params_total": [1e6, 4e6],
                          "tokens": 1e9, "loss": [4.0, 3.5]})  # fmt: skip
    frame.to_csv("two.csv", index=False)
    frame.assign(decode_tokens_per_second=[40, 20]).to_csv("phone.csv", index=False)
    made = analysed("runs=two.csv", "device=phone.csv")
    assert [choice["sure"] for choice in made["choices"]] == [False, True, False]  # no balanced one, surely
    assert "no repetition and no model shows the error of decode tokens/s" in made["choices"][0]["doubt"]
    assert "no second seed and no law" in made["choices"][2]["doubt"]


def test_a_limit_that_every_shape_meets_does_not_say_which_size_is_best(without_figures: None) -> None:
    write_tables()
    made = analysed("runs=runs.csv", "device=phone.csv", "ship.decode_tokens_per_second=1e-3")
    assert all(row["every_size"] for row in made["largest"])
    assert "so the limits do not say which size is best" in Path("out/report.md").read_text()


def test_a_shape_measured_once_has_the_scatter_about_the_model_as_its_error(without_figures: None) -> None:
    """Near a limit, the share of draws that meet it is that of a normal with the model's sigma."""
    write_tables()
    phone = pd.read_csv("phone.csv").drop_duplicates(["family", "width", "depth"])
    phone.to_csv("phone.csv", index=False)
    limit = 0.9 * phone["decode_tokens_per_second"].iloc[0]
    made = analysed("runs=runs.csv", "device=phone.csv", f"ship.decode_tokens_per_second={limit}")
    (model,) = [row for row in made["models"] if row["family"] == "a"]
    assert made["candidates"][0]["meets"] == pytest.approx(stats.norm.cdf(-np.log(0.9) / model["sigma_log"]), abs=0.04)
    assert "Some shapes have one measurement of decode tokens/s" in made["notes"][-1]


def test_refits_that_do_not_reach_the_loss_are_said() -> None:
    optimum = {"params": 1e9, "tokens": 1e11, "flops": 6e20}
    row = {"family": "a", "refused": None, "loss": 2.0, "served_tokens": 1e12, "best": optimum, "alone": optimum,
           "alone_flops": 8e20, "params_interval": [8e8, 2e9], "tokens_interval": [9e10, 2e11], "params_beyond": 1.0,
           "tokens_beyond": 1.0}  # fmt: skip
    assert "The floor of 30% of the refits is above this loss" in lifetime_sentence(row | {"reached_in": 0.7})
    assert "refits" not in lifetime_sentence(row | {"reached_in": 1.0})


def test_an_accuracy_is_compared_as_its_error_under_its_own_laws(without_figures: None) -> None:
    write_tables()
    runs = pd.read_csv("runs.csv")
    runs.assign(acc=1 - 0.75 * (1 - np.exp(-runs["loss"] / 4))).to_csv("runs.csv", index=False)
    asked = ("analysis.target=acc", "analysis.target_kind=accuracy", "analysis.chance=0.25", *FAST[2:])
    analyse_runs(check_settings(composed(*QUICK, *asked, "output_dir=out", "runs=runs.csv", "device=phone.csv")))
    made = json.loads(Path("out/decisions.json").read_text())
    lowest = min(made["candidates"], key=lambda row: row["loss"])
    assert made["choices"][2]["best"] == lowest["name"] == "b 384x12"
    assert all(row["refused"] is None for row in made["largest"])
