"""The interactive figure shows the rows and curves of the files, and nothing else; a browser can use all of it."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slm.analysis.report.directory import Directory
from slm.analysis.report.interactive import interactive_figures
from slm.scaling.sample import column_of
from tests.analysis.analysed import changed, read, without_numbers

NUM_POINTS_OF_A_CURVE = 60


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
                columns[name] = np.frombuffer(base64.b64decode(column["array"]["data"]), "<f8")
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
    bare = changed(two, tmp_path / "bare", fits=without_numbers(read(two, "fits")))
    columns = sources(embedded(bare)[0])
    assert len(columns) == 2
    analysis = Directory.read(bare)
    analysis.results["params_total"] = 1e6
    analysis.results["tokens"] = 1e9
    assert interactive_figures(analysis) == ("", {})


PAGE = """<!DOCTYPE html><html><head><meta charset="utf-8"><style>
:root { --ink: #111111; --line: #dddddd; --paper: #ffffff; --quiet: #555555; }
@media (prefers-color-scheme: dark) { :root { --ink: #eeeeee; --line: #333333; --paper: #111111; } }
</style>HEAD</head><body><p><span class="interactive">FIGURE</span><span class="figure static">static</span></p></body></html>
"""


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    binary, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (binary and driver):
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def test_in_a_browser_hover_switches_keys_and_dark_mode_work_without_errors(
    two: Path, tmp_path: Path, browser: Any
) -> None:
    """Every run can be read by pointer and by key; each switch hides and shows what it names; no console message."""
    head, fragments = interactive_figures(Directory.read(two))
    page = tmp_path / "page.html"
    page.write_text(PAGE.replace("HEAD", head).replace("FIGURE", fragments["curves"]), encoding="utf-8")
    browser.get(page.as_uri())
    wait(browser, "return Boolean(document.querySelector('.interactive.drawn canvas'))")
    shown = "return Bokeh.documents[0].roots()[0].children.filter((v) => v.visible)[0]"
    visible = f"{shown}.renderers.filter((r) => r.visible).map((r) => r.tags[0])"

    assert {tags["family"] for tags in browser.execute_script(visible)} == set(Directory.read(two).families)
    assert {tags.get("law") for tags in browser.execute_script(visible)} == {None, "power"}
    browser.find_element("css selector", "input[type=checkbox]").click()
    assert {tags["family"] for tags in browser.execute_script(visible)} == set(Directory.read(two).families[1:])
    browser.find_element("css selector", "input[type=checkbox]").click()

    choose(browser, "law", "power_floor")
    assert {tags.get("law") for tags in browser.execute_script(visible)} == {None, "power_floor"}
    choose(browser, "show", "residuals")
    assert {tags.get("law") for tags in browser.execute_script(visible)} == {"power_floor"}
    choose(browser, "show", "runs")

    hovered = hover_first_mark(browser, shown)
    wait(browser, f"return document.body.innerText.length > 0 && {json.dumps(hovered)} !== ''")
    assert browser.get_log("browser") == []


def wait(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda one: one.execute_script(script))


def choose(browser: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("css selector", f"select[name={name}]")).select_by_value(value)


def hover_first_mark(browser: Any, shown: str) -> str:
    return ""
