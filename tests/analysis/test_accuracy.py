"""sweep.py with an accuracy as the target: section, figure, terminal and files."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slm.analysis.report import accuracy
from slm.analysis.report.directory import Directory
from slm.analysis.run import analyse_runs
from slm.report.style import draw
from slm.scaling import details, table_from_frame, two_step
from slm.sweep.config import check_settings
from tests.analysis.analysed import analysed, write_report
from tests.scaling.test_two_step import frame
from tests.sweep.designs import composed

SETTINGS = {"target": "acc", "target_kind": "accuracy", "chance": 0.25, "task_loss": "task_bpb"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = pd.concat([frame(3, sizes=6), frame(4, sizes=6, family="b<|$x$")])
    table = table_from_frame(rows, target="acc", name="tasks")
    options = {"laws": ("power",), "predict": (2.0,), "bootstrap": 0, "calibration": 0}
    with pytest.MonkeyPatch.context() as patch:  # fewer points of each curve are quicker
        patch.setattr(details, "BAND_POINTS", 5)
        patch.setattr(two_step, "CURVE_POINTS", 9)
        place = analysed(tmp_path_factory.mktemp("accuracy"), table, **options, **SETTINGS)
    draw(place, {"accuracy": partial(accuracy.accuracy_figure, Directory.read(place))})
    write_report(place)
    return place


def test_every_accuracy_in_the_report_is_one_minus_an_error_in_the_files(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    assert "![Figure: accuracy](figures/accuracy.png)" in report
    section = report[report.index("## Accuracy of acc") :].split("\n## ")[0]
    fits = json.loads((folder / "fits.json").read_text())
    comparison = json.loads((folder / "comparison.json").read_text())
    law = comparison["primary"]["law"]
    assert law in ("logistic_power", "exponential_power")
    for fit in fits:
        assert (fit["target"], fit["kind"], fit["chance"]) == ("error of acc", "accuracy", 0.25)
        if fit["law"] == law and fit["loss"] == "least_squares":
            (row,) = fit["predictions"]
            shown = f"{1 - row['value']:.3f} [{1 - row['high']:.3f}, {1 - row['low']:.3f}]"
            assert shown in section
    for family in comparison["two_step"]["families"]:
        (row,) = family["predictions"]
        assert f"{row['accuracy']['centre']:.3f} [{row['accuracy']['low']:.3f}" in section
    p = comparison["two_step"]["shared"]
    assert (p is None) == ("At the same task loss" not in section)
    assert "b&lt;\\|\\$x\\$" in section
    assert not {"None", "nan"} & set(re.split(r"[\s,|\[\]]+", section))


def test_held_out_sizes_are_reported_with_sign_and_coverage(folder: Path) -> None:
    comparison = json.loads((folder / "comparison.json").read_text())
    report = (folder / "report.md").read_text()
    for family in comparison["two_step"]["families"]:
        (row,) = family["held_out"]["rows"]
        side = "high" if row["error"] > 0 else "low"
        points = f"{100 * abs(row['error']):.2g}"
        assert re.search(rf"two-step law predicts an accuracy there that is {points}\d* points too {side}", report)
    fit = next(f for f in json.loads((folder / "fits.json").read_text()) if f["law"] == comparison["primary"]["law"])
    _, errors, insides = accuracy._direct_held_out(fit) or (0, [], [])
    step = fit["extrapolation"]["steps"][0]
    assert errors == pytest.approx([-step["errors_log"][0]])  # an error that is too high is an accuracy too low
    assert sum(insides) == step["n_inside"]


def test_the_figure_has_chance_and_all_accuracies(folder: Path) -> None:
    figure = accuracy.accuracy_figure(Directory.read(folder))
    assert figure is not None
    *families, sigmoid = figure.get_axes()
    assert [axis.get_title() for axis in families] == ["a", "b<|$x$"]
    for axis in (*families, sigmoid):
        assert 0.25 in [line.get_ydata()[0] for line in axis.get_lines() if line.get_linestyle() == ":"]
    rows = pd.read_csv(folder / "results.csv")
    drawn = np.concatenate([line.get_ydata() for line in families[0].get_lines() if line.get_marker() == "o"])
    np.testing.assert_allclose(drawn, rows[rows["family"] == "a"]["acc"], rtol=1e-3)
    low, high = sigmoid.get_xlim()
    assert low > high  # a lower task loss is to the right
    assert (folder / "figures/accuracy.svg").exists()


def test_an_overlay_of_losses_is_refused(tmp_path: Path) -> None:
    frame(1).to_csv(tmp_path / "tasks.csv", index=False)
    settings = [f"analysis.{key}={value}" for key, value in SETTINGS.items()]
    config = composed(f"runs={tmp_path}/tasks.csv", *settings, "logger=csv", "overlay=other.csv")
    with pytest.raises(ValueError, match=r"overlay compares checkpoints by loss .*, not by analysis.target=acc"):
        analyse_runs(check_settings(config))
