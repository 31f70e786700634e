"""The interactive figure shows the rows and curves of the files, and nothing else."""

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slm.analysis.report.directory import Directory
from slm.analysis.report.interactive import interactive_figures
from slm.scaling.sample import column_of
from tests.analysis.analysed import read, without_numbers, write


def objects(value: Any, name: str) -> Iterator[dict[str, Any]]:
    """The attributes of all Bokeh objects of a kind in a document."""
    if isinstance(value, dict):
        if value.get("name") == name and "attributes" in value:
            yield value["attributes"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from objects(item, name)


def embedded(folder: Path) -> tuple[Any, str]:
    """The document of the page's figure, read back, and the HTML around it."""
    _, fragments = interactive_figures(Directory.read(folder))
    html = fragments["curves"]
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1]), html


def sources(document: Any) -> list[dict[str, Any]]:
    """The columns of each source; numbers are decoded from the bytes that the page holds."""
    decoded = []
    for source in objects(document, "ColumnDataSource"):
        columns = dict(source["data"]["entries"])
        for name, column in columns.items():
            if isinstance(column, dict):
                assert (column["dtype"], column["order"]) == ("float64", "little")
                columns[name] = np.frombuffer(gzip.decompress(base64.b64decode(column["array"]["data"])), "<f8")
        decoded.append(columns)
    return decoded


def test_the_runs_in_the_page_are_the_rows_of_results_csv(each: Path) -> None:
    analysis = Directory.read(each)
    document, _ = embedded(each)
    by_family = {columns["family"][0]: columns for columns in sources(document) if "run" in columns}
    assert len(by_family) == len(analysis.families)
    basis = analysis.verdict_basis
    for family, columns in zip(analysis.families, by_family.values(), strict=True):
        rows = analysis.family_rows(family)
        assert list(columns["value"]) == list(rows[basis["target"]])
        axes = [axis for axis in "NCD" if axis in columns]
        assert "N" in axes
        for axis in axes:
            assert list(columns[axis]) == list(rows[column_of(axis, basis["size"])])


def test_the_curves_and_residuals_in_the_page_are_those_of_fits_json(each: Path) -> None:
    analysis = Directory.read(each)
    basis = analysis.verdict_basis
    shown = sources(embedded(each)[0])
    curves = [(list(c["x"]), list(c["centre"])) for c in shown if "centre" in c]
    residuals = [(list(c["x"]), list(c["y"])) for c in shown if "residual" in c]
    kept = [fit for fit in read(each, "fits") if fit.get("curve") and fit["target"] == basis["target"]]
    kept = [fit for fit in kept if fit["loss"] == basis["loss"] and fit["size"] in (basis["size"], None)]
    assert {fit["law"] for fit in kept} >= {"power"}
    varying = [fit for fit in kept if fit["curve"]["variable"] in "NCD"]
    assert sorted(curves) == sorted((fit["curve"]["x"], fit["curve"]["centre"]) for fit in varying)
    points = [(fit["points"][fit["curve"]["variable"]], fit["points"]["residual"]) for fit in varying]
    assert sorted(residuals) == sorted((x, [100 * value for value in y]) for x, y in points)


def test_the_page_is_the_same_for_the_same_files_and_users_names_are_text(two: Path) -> None:
    first, second = interactive_figures(Directory.read(two)), interactive_figures(Directory.read(two))
    assert first == second
    html = first[1]["curves"]
    assert "<b>wide" not in html
    assert html.count("<script") == html.count("</script>") == 1
    assert not re.search(r"<(div|p|fieldset|ul|table)\b", html)  # a paragraph may hold it


def test_without_curves_the_runs_remain_and_without_sizes_there_is_no_figure(two: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(two, tmp_path / "bare")
    write(bare, "fits", without_numbers(read(two, "fits")))
    columns = sources(embedded(bare)[0])
    assert len(columns) == 2
    analysis = Directory.read(bare)
    for column in ("params_total", "tokens", "flops"):
        analysis.results[column] = 1e6
    assert interactive_figures(analysis) == ("", {})
