"""Figures are drawn where their data are, show what the JSON says, and are the same for the same directory."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from slm.analysis.report.compute import pareto_figure
from slm.analysis.report.curves import _points, curves_figure
from slm.analysis.report.diagnostics import residuals_figure
from slm.analysis.report.directory import Directory
from slm.analysis.report.exponents import exponents_figure
from slm.analysis.report.isoflop import isoflop_figure
from slm.analysis.report.page import FIGURES, make_report
from slm.analysis.report.predictions import doubling_figure
from slm.analysis.report.selection import extrapolation_figure
from slm.report.style import colours, log_axis, markers, panels, save, short_name, style, tick_label
from tests.analysis.analysed import changed, draw_figures, read, without_numbers, write, write_report
from tests.scaling.samples import plain_law


def drawn(paths: list[Path]) -> set[str]:
    assert all(path.stat().st_size > 1000 for path in paths)
    names = [path.name for path in paths]
    assert {name for name in names if name.endswith(".png")} == {n[:-3] + "png" for n in names if n.endswith(".svg")}
    return {path.stem for path in paths}


def test_each_figure_is_drawn_where_its_data_are_and_only_there(two: Path, one: Path, iso: Path) -> None:
    assert drawn(draw_figures(two)) == set(FIGURES) - {"accuracy", "isoflop", "overlay", "rates", "ship"}
    assert drawn(draw_figures(one)) == set(FIGURES) - {
        "accuracy",
        "isoflop",
        "ratios",
        "differences",
        "overlay",
        "rates",
        "ship",
    }
    assert drawn(draw_figures(iso)) == set(FIGURES) - {"accuracy", "ratios", "differences", "overlay", "rates", "ship"}


def test_tuned_rates_are_drawn_and_told(two: Path, tmp_path: Path) -> None:
    """Of two shapes with losses 3 + 0.1 log(lr / 0.004)^2, given 0.004, and once 0.003, which nobody tried."""
    folder = shutil.copytree(two, tmp_path / "tuned")
    shapes = pd.DataFrame({"family": "a", "width": [64, 128], "depth": [4, 8], "budget": "tokens=1"})
    rates = pd.DataFrame({"lr": [0.002, 0.004, 0.008]})
    runs = shapes.merge(rates, how="cross").assign(loss=lambda t: 3 + 0.1 * np.log(t["lr"] / 0.004) ** 2)
    runs.to_csv(folder / "runs.csv", index=False)
    found = {"params_total": [10**5, 10**6], "lr": 0.004, "loss": 3.0, "at_end": [False, True]}
    found |= {"lr_value": [0.008, 0.003], "excess_at_value": [0.016, None]}
    shapes.assign(**found).to_csv(folder / "tuning.csv", index=False)
    assert "rates" in drawn(draw_figures(folder))
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "| a | 64x4 | 100k | 0.00400 | 3.000 | 0.00800 | 1.60% |" in text
    assert "| a | 128x8 | 1M | 0.00400 (end of the grid) | 3.000 | 0.00300 | – |" in text
    assert "figures/rates.png" in text


def test_the_same_directory_gives_the_same_bytes_and_stale_figures_go(one: Path, tmp_path: Path) -> None:
    stale = shutil.copytree(one, tmp_path / "copy") / "figures" / "isoflop.svg"
    stale.write_text("of an earlier analysis")
    first, second = draw_figures(one), draw_figures(tmp_path / "copy")
    assert [(path.name, path.read_bytes()) for path in first] == [(path.name, path.read_bytes()) for path in second]
    assert not stale.exists()
    assert not list(stale.parent.glob(".*"))


def test_figures_and_report_made_together_are_those_made_one_after_the_other(one: Path, tmp_path: Path) -> None:
    made = shutil.copytree(one, tmp_path / "made", ignore=shutil.ignore_patterns("report.*", "figures"))
    make_report(made)
    names = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert names == [path.relative_to(made) for path in sorted(made.rglob("*")) if path.is_file()]
    assert all((made / name).read_bytes() == (one / name).read_bytes() for name in names)


def test_the_isoflop_figure_shows_the_budgets_and_lowest_points_of_the_comparison(iso: Path) -> None:
    analysis = Directory.read(iso)
    figure = isoflop_figure(analysis)
    (row,) = read(iso, "comparison")["isoflop"]
    lines = figure.axes[0].get_lines()
    for i, budget in enumerate(row["budgets"]):
        runs, curve, star = lines[3 * i : 3 * i + 3]
        assert list(runs.get_xdata()) == budget["points"]["params"]
        assert list(runs.get_ydata()) == budget["points"]["value"]
        c0, c1, c2 = budget["parabola"]
        z = np.log(curve.get_xdata()) - budget["centre"]
        np.testing.assert_allclose(np.log(curve.get_ydata()), c0 + c1 * z + c2 * z**2)
        assert list(star.get_xdata()) == [budget["params"]]
        assert star.get_ydata()[0] <= min(curve.get_ydata()) + 1e-9
    title = " ".join(figure.texts[0].get_text().split())
    assert f"{row['exponent']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in title


def test_points_of_a_law_in_two_variables_lie_where_the_law_moves_them(iso: Path) -> None:
    analysis = Directory.read(iso)
    (entry,) = analysis.verdict_fits
    x, y = _points(analysis, entry)
    frame = analysis.results
    N, D, held = frame["params_total"].to_numpy(), frame["tokens"].to_numpy(), entry["curve"]["held"]["D"]
    ratio = frame["loss"] / plain_law("chinchilla", entry["params"], {"N": N, "D": D})
    expected = dict(zip(N.round(), ratio, strict=True))
    moved = y / plain_law("chinchilla", entry["params"], {"N": x, "D": held})
    assert [expected[round(size)] for size in x] == pytest.approx(moved, rel=1e-3)


def test_curves_of_families_share_axes_only_where_other_variables_are_held_alike(two: Path, tmp_path: Path) -> None:
    fits = read(two, "fits")
    for place, entry in enumerate(entry for entry in fits if entry.get("curve")):
        entry["curve"]["held"] = {"D": 1e9 * (1 + place)}
    for folder, number in ((two, 3), (changed(two, tmp_path / "d", fits=fits), 2)):
        with style():
            assert len(curves_figure(Directory.read(folder)).axes) == number


def test_the_intervals_drawn_are_those_that_the_title_counts(two: Path) -> None:
    """A mark is full if its own interval holds the measured value, 0; the full marks are as many as the title says."""
    with style():
        figure = extrapolation_figure(Directory.read(two))
    full = drawn_marks = 0
    for axis in figure.axes:
        bars = [line for line in axis.get_lines() if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
        marks = [line for line in axis.get_lines() if len(line.get_xdata()) == 1 and line.get_marker() not in "^v<>"]
        marks += [line for line in axis.get_lines() if line.get_marker() == "^" and line.get_markersize() > 4]
        for bar in bars:
            (mark,) = (mark for mark in marks if mark.get_xdata()[0] == bar.get_xdata()[0])
            low, high = bar.get_ydata()
            is_full = mark.get_markerfacecolor() != "white"
            assert is_full == (low <= 0 <= high)
            full, drawn_marks = full + is_full, drawn_marks + 1
    assert f": {full} of {drawn_marks} results" in " ".join(figure.texts[0].get_text().split())


def test_the_gain_of_doubling_is_drawn_as_a_difference_of_losses_with_its_interval(two: Path) -> None:
    """By the law's own formula, A N^-alpha - A (2N)^-alpha; and no gain exceeds the loss itself."""
    analysis = Directory.read(two)
    with style():
        (axis,) = doubling_figure(analysis).axes
    marks = [line for line in axis.get_lines() if len(line.get_xdata()) == 1]
    heights = np.array([line.get_ydata()[0] for line in marks if line.get_marker() not in ("x", "v", "<", ">")])
    for entry in analysis.verdict_fits:
        N = np.array(entry["doubling"]["x"])
        values = {"N": N, "D": N}
        gains = plain_law(entry["law"], entry["params"], values)
        gains = gains - plain_law(entry["law"], entry["params"], {"N": 2 * N, "D": N})
        assert all(abs(heights - gain).min() < 1e-6 for gain in gains)
    assert heights.max() < analysis.results["loss"].min()


def test_each_family_has_its_own_band_of_residuals(two: Path) -> None:
    analysis = Directory.read(two)
    with style():
        figure = residuals_figure(analysis)
    assert len(figure.axes) == len(analysis.families)
    for axis, entry in zip(figure.axes, analysis.verdict_fits, strict=True):
        (band,) = axis.patches
        assert band.get_height() == pytest.approx(400 * entry["sigma_log"])
        assert list(axis.get_lines()[1].get_ydata()) == [100 * residual for residual in entry["points"]["residual"]]


def test_the_forest_of_the_verdict_shows_its_exponents_on_a_scale_of_their_own(two: Path) -> None:
    analysis = Directory.read(two)
    with style():
        (first,) = exponents_figure(analysis).axes
    assert first.get_title(loc="left").startswith(f"{analysis.verdict_basis['law']}: exponent of loss in N")
    assert [label.get_text() for label in first.get_yticklabels()] == [short_name(name) for name in analysis.families]
    highest = max(entry["ci95"]["alpha"][1] for entry in analysis.verdict_fits)
    assert highest < first.get_xlim()[1] < 1.6 * highest


def test_pareto_fronts_are_steps_through_means_over_seeds(two: Path) -> None:
    analysis = Directory.read(two)
    with style():
        figure = pareto_figure(analysis)
    means = set(analysis.results.groupby("cell")["loss"].mean())
    for axis in figure.axes:
        (steps,) = (line for line in axis.get_lines() if line.get_drawstyle() != "default")
        assert set(steps.get_ydata()) <= means
        # Each step stands at the losses of a front: none is reached with less.
        order = -1 if "per second" in axis.get_xlabel() else 1
        assert list(steps.get_ydata())[::order] == sorted(steps.get_ydata(), reverse=True)


def texts_of(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn: not the labels of ticks beyond the limits of an axis, which matplotlib keeps."""
    yield from figure.texts
    for axes in figure.axes:
        yield from (axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.texts)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            yield from (tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)
    for legend in [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]:
        yield from legend.get_texts()


def test_no_text_is_cut_off_and_none_covers_another(each: Path) -> None:
    analysis = Directory.read(each)
    for name, figure_of in FIGURES.items():
        with style():
            figure = figure_of(analysis)
            if figure is None:
                continue
            figure.canvas.draw()
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure) if text.get_text().strip()]
        for text, box in boxes:
            is_inside = min(box.x0, box.y0) >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            assert is_inside, (name, text)
        for (text, box), (other, other_box) in combinations(boxes, 2):
            assert not box.shrunk(0.9, 0.6).overlaps(other_box), (name, text, other)


def test_an_exponent_that_is_not_identified_is_labelled_and_never_written_out(two: Path) -> None:
    analysis = Directory.read(two)
    lost = analysis.verdict_fits[0]
    lost |= {"identified": False, "not_identified": ["alpha"]}
    with style():
        figure = exponents_figure(analysis)
    shown = [text.get_text() for text in figure.findobj(Text)]
    assert "not identified" in shown
    assert "1 of 2 are not identified" in " ".join(figure.texts[0].get_text().split())
    assert not any(f"{lost['params']['alpha']:.3g}" in text for text in shown)


def test_numbers_that_could_not_be_computed_leave_figures_without_nan_or_none(two: Path, tmp_path: Path) -> None:
    fits, comparison = read(two, "fits"), read(two, "comparison")
    for entry in fits:
        entry["ci95"] = {name: [None, None] for name in entry["ci95"]}
        entry |= {"sigma_log": None, "rmse_log": None}
        if entry.get("curve"):
            entry["curve"] |= {band: [None] * 60 for band in ("low", "high", "run_low", "run_high")}
            gain = entry["doubling"]
            entry["doubling"] = gain and gain | {end: [None] * len(gain["x"]) for end in ("low", "high", "measured")}
            entry["extrapolation"] = {"error_log": None, "in_sample_rmse_log": None, "inside_interval": None}
    for law in comparison["laws"].values():
        for pair in law["pairs"]:
            pair |= {"ci_low": None, "ci_high": None, "p": None, "p_adjusted": None}
        law.get("power", {})["detectable"] = None
    analysis = Directory.read(changed(two, tmp_path / "d", fits=fits, comparison=comparison))
    for figure_of in FIGURES.values():
        with style():
            figure = figure_of(analysis)
        texts = [text.get_text() for text in figure.findobj(Text)] if figure else []
        assert not any("nan" in text or "None" in text for text in texts)


def test_an_analysis_that_computed_nothing_draws_what_is_left(each: Path, tmp_path: Path) -> None:
    for name in ("fits", "comparison"):
        write(tmp_path, name, without_numbers(read(each, name)))
    shutil.copy(each / "results.csv", tmp_path)
    assert {path.stem for path in draw_figures(tmp_path)} <= {"exponents", "other_exponents"}


def test_a_family_keeps_its_colour_no_two_of_seven_share_one_or_a_mark_and_no_two_of_twenty_share_both() -> None:
    names = [f"family{i}" for i in range(20)]
    assert len(set(colours(names[:7]).values())) == len(set(markers(names[:7]).values())) == 7
    assert colours(names[:2]).items() <= colours(names[:7]).items()
    assert len({(colours(names)[name], markers(names)[name]) for name in names}) == 20


@pytest.mark.parametrize(("value", "label"), [(1.25e8, "125M"), (1e19, "10¹⁹"), (2e-4, "2×10⁻⁴"), (2.5, "2.5")])
def test_ticks_read_as_people_write(value: float, label: str) -> None:
    assert tick_label(value, as_counts=value < 1e15) == label


@pytest.mark.parametrize("span", [1.001, 1.3, 3.0, 1e3, 1e9])
def test_a_log_axis_of_any_span_has_a_few_ticks_inside_it(span: float) -> None:
    axis = Figure().add_subplot().xaxis
    log_axis(axis, 2.37, 2.37 * span)
    ticks = np.array(axis.get_ticklocs()) / 2.37
    assert 2 <= len(ticks) <= 7
    assert ((ticks >= 0.999) & (ticks <= 1.001 * span)).all()


def test_importing_figures_and_report_loads_no_matplotlib_and_drawing_no_pyplot(one: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from slm.analysis.report.page import make_report;"
        "assert not {'matplotlib', 'torch', 'bokeh'} & {*sys.modules};"
        f"make_report(Path({str(one)!r})); assert 'matplotlib.pyplot' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_long_name_is_shortened_in_its_middle_and_marks_get_the_rows_that_they_need() -> None:
    assert short_name("deep_thin") == "deep_thin"
    long = [f"transformer_with_everything_{i}" for i in range(12)]
    assert len({short_name(name) for name in long}) == 12
    assert {len(short_name(name)) for name in long} == {24}
    with style():
        figure, axes = panels(1, "Title", ncols=1, families=long)
    legend = figure.legends[0].get_window_extent()
    assert legend.x1 <= figure.bbox.x1
    assert legend.y0 >= axes[0].get_window_extent().y1


@pytest.mark.filterwarnings("error")
def test_a_name_that_the_font_cannot_write_is_drawn_without_warnings(tmp_path: Path) -> None:
    with style():
        save(panels(1, "模型", ncols=1)[0], tmp_path, "figure")
