"""The pages of a sweep, of the published study and of an evaluation, opened in a browser."""

import shutil
from pathlib import Path

import pytest

from slm.evaluation.report.write import write_report as write_evaluation
from slm.report.html import html_page
from slm.scaling.tables import read_table
from tests.analysis.analysed import AUDIT, analysed, reported, write, write_report
from tests.evaluation.reported import published, tiny
from tests.report.browser import Browser

FIRST_STUDY = Path(__file__).parents[2] / "results" / "first_study" / "analysis"
NAMES = ("sweep", "study", "evaluation")
MAX_BYTES = 2_000_000


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind of report, by name."""
    folder = tmp_path_factory.mktemp("pages")
    sweep = shutil.copytree(FIRST_STUDY, folder / "sweep", ignore=shutil.ignore_patterns("report.*"))
    write_report(sweep)
    study = analysed(folder / "study", read_table("mobilellm_published"))
    write(study, "audit", AUDIT | {"violations": [], "unknown": []})
    reported(study)
    write_evaluation(folder / "evaluation", [*published(), *tiny()], command="python evaluate.py")
    return {name: folder / name / "report.html" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("dark", [False, True])
def test_a_page_has_no_error_and_fits_the_window(
    name: str, width: int, dark: bool, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    assert browser.too_wide() == []
    browser.open_all()
    assert browser.too_wide() == []
    assert browser.errors() == []
    assert pages[name].stat().st_size < MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_the_first_screen_is_open_and_a_link_or_printing_opens_the_rest(
    name: str, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages[name])
    folds = "return [...document.querySelectorAll('details.section')].map((one) => one.open)"
    assert not any(browser.run(folds))
    assert browser.find("main > section:first-of-type > h2 + p strong").is_displayed()
    browser.find("nav li:last-child a").click()
    browser.run("return new Promise((done) => setTimeout(done, 50))")
    assert browser.run(folds)[-1]
    assert 0 <= browser.run("return document.querySelector('details.section:last-of-type section')"
                            ".getBoundingClientRect().top") < 900  # fmt: skip
    browser.run("addEventListener('beforeprint', () => {"
                " window.printed = [...document.querySelectorAll('details')].every((one) => one.open) })")  # fmt: skip
    browser.driver.print_page()
    assert browser.run("return window.printed")
    assert not all(browser.run(folds))


def test_dark_readers_get_a_dark_page_and_dark_figures(browser: Browser, pages: dict[str, Path]) -> None:
    looks = """const style = (one) => getComputedStyle(document.querySelector(one));
               return [style("body").backgroundColor, style("body").color, style(".figure img").filter]"""
    seen = {}
    for dark in (False, True):
        browser.open(pages["sweep"], dark=dark)
        seen[dark] = browser.run(looks)
    assert seen[False] == ["rgb(255, 255, 255)", "rgb(29, 33, 37)", "none"]
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in seen[True][:2]]
    assert brightness[0] < 100 < 600 < brightness[1]
    assert "invert" in seen[True][2]


def test_a_click_enlarges_a_figure_on_a_narrow_screen(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["sweep"], width=420)
    width = "return document.querySelector('.figure:not(.static) img').getBoundingClientRect().width"
    fitted = browser.run(width)
    browser.run("document.querySelector('.figure:not(.static)').click()")
    assert fitted < 420 < browser.run(width)
    assert browser.run("return document.documentElement.scrollWidth") <= 420


def test_a_fragment_replaces_its_figure_where_scripts_run_and_nowhere_else(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("a", "b"):
        svg = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="60"><circle r="30"/></svg>'
        (tmp_path / "figures" / f"{name}.svg").write_text(svg)
    markdown = "# T\n\n## One\n\n![Figure: a](figures/a.png)\n\n*Caption*\n\n![Figure: b](figures/b.png)\n"
    page = tmp_path / "page.html"
    fragment = '<div id="chart"></div><script>draw()</script>'
    head = "<script>function draw() { document.getElementById('chart').textContent = 'drawn' }</script>"
    page.write_text(html_page("T", markdown, tmp_path, {"a": fragment}, head=head))
    browser.open(page)
    shown = "return [...document.querySelectorAll('.interactive, .figure')].map((one) => one.offsetHeight > 0)"
    assert browser.run(shown) == [True, False, True]
    assert browser.find("#chart").text == "drawn"
    assert browser.errors() == []
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.run(shown) == [False, True, True]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.run("document.documentElement.classList.remove('scripted')")
    assert browser.run(shown) == [False, True, True]


def test_these_checks_see_an_error_a_request_and_what_is_too_wide(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "page.html"
    wide = '<p style="width: 2000px">wide</p><div class="scroll" style="overflow-x: auto; width: 90px">'
    page.write_text(
        f'<script>throw new Error("oh")</script><img src="lost.png">{wide}<p style="width: 99px">cut</p></div>'
    )
    browser.open(page)
    errors = browser.errors()
    assert any("oh" in error for error in errors)
    assert any("lost.png" in error for error in errors)
    found = browser.too_wide()
    assert any('"wide" from' in line for line in found)
    assert any("is cut off" in line for line in found)
