"""The interactive figure of the published study's page, used in a browser by pointer, by keys, and in dark colours."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.analysis.analysed import write_report
from tests.report.browser import Browser

FIRST_STUDY = Path(__file__).parents[2] / "results" / "first_study" / "analysis"
SHOWN = "const view = Bokeh.documents[0].roots()[0].children.find((one) => one.visible);"
PLOT = (
    f"{SHOWN} const plot = Bokeh.index.roots.flatMap((one) => one.child_views ?? []).find((one) => one.model === view);"
)
PLACE = f"""{PLOT}
const marks = view.renderers.find((one) => one.visible && one.name), source = marks.data_source;
const box = plot.canvas_view.el.getBoundingClientRect();
return [box.left + plot.frame.x_scale.compute(source.get(marks.glyph.x.field)[arguments[0]]),
        box.top + plot.frame.y_scale.compute(source.get(marks.glyph.y.field)[arguments[0]])];
"""
"""Where in the window a mark of the first family is."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published study with a page written now."""
    ignored = shutil.ignore_patterns("report.*")
    folder = shutil.copytree(FIRST_STUDY, tmp_path_factory.mktemp("study") / "analysis", ignore=ignored)
    write_report(folder)
    return folder


@pytest.fixture
def page(study: Path, browser: Browser) -> Browser:
    opened(study, browser)
    return browser


def opened(study: Path, browser: Browser, **how: Any) -> None:
    browser.open(study / "report.html", **how)
    wait(browser, "return Boolean(window.Bokeh?.documents?.length)")
    wait(browser, f"{PLOT} return plot?.frame.bbox.width > 50")


def wait(browser: Browser, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser.driver, 20).until(lambda driver: driver.execute_script(script))


def choose(browser: Browser, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find(f"select[name={name}]")).select_by_value(value)


def tags(browser: Browser) -> list[dict[str, str]]:
    """The tags of everything that the visible view shows."""
    return list(browser.run(f"{SHOWN} return view.renderers.filter((one) => one.visible).map((one) => one.tags[0])"))


def hovered(browser: Browser, index: int) -> str:
    """The text that a pointer on a mark of the first visible family gets."""
    from selenium.webdriver.common.action_chains import ActionChains

    browser.run("document.querySelector('.interactive .plot').scrollIntoView({block: 'center'})")
    x, y = browser.run(PLACE, index)
    actions = ActionChains(browser.driver)
    actions.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    actions.perform()
    return str(browser.find(".interactive output").text)


@pytest.mark.parametrize("width", [1280, 420])
def test_a_run_that_is_pointed_at_tells_its_name_shape_tokens_seed_and_loss(
    width: int, study: Path, browser: Browser
) -> None:
    opened(study, browser, width=width)
    rows = pd.read_csv(study / "results.csv")
    first = rows[rows["family"] == rows["family"][0]].reset_index(drop=True)
    for family in set(rows["family"]) - {rows["family"][0]}:  # whose marks lie on those of the first
        browser.find(f"input[value={family}]").click()
    for index in (0, len(first) - 1):
        row = first.loc[index]
        text = hovered(browser, index)
        for expected in (
            row["name"],
            f"{row['width']:.0f}x{row['depth']:.0f}",
            "2.5M",
            str(row["seed"]),
            f"{row['loss']:.4g}",
        ):
            assert expected in text, text
    assert browser.errors() == []
    assert browser.too_wide() == []


def test_every_switch_shows_what_it_names_and_hides_the_rest(study: Path, page: Browser) -> None:
    families = set(pd.read_csv(study / "results.csv")["family"])
    assert {shown["family"] for shown in tags(page)} == families
    assert {shown.get("law") for shown in tags(page)} == {None, "power"}
    page.find("input[value=ssd]").click()
    assert {shown["family"] for shown in tags(page)} == families - {"ssd"}
    page.find("input[value=ssd]").click()
    choose(page, "law", "power_floor")
    assert {shown.get("law") for shown in tags(page)} == {None, "power_floor"}
    choose(page, "show", "residuals")
    assert {shown.get("law") for shown in tags(page)} == {"power_floor"}
    assert page.run(f"{SHOWN} return view.tags[0]") == {"axis": "N", "show": "residuals"}
    choose(page, "axis", "C")
    assert page.run(f"{SHOWN} return view.tags[0]") == {"axis": "C", "show": "residuals"}
    assert {shown["law"] for shown in tags(page)} == {"power_C"}  # the first law in C, since power_floor has none
    laws = (
        "return [...document.querySelector('select[name=law]').options].filter((o) => !o.disabled).map((o) => o.value)"
    )
    assert page.run(laws) == ["power_C", "power_floor_C"]
    assert page.errors() == []


def test_arrow_keys_read_every_run_from_left_to_right(study: Path, page: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    rows = pd.read_csv(study / "results.csv")
    plot, read = page.find(".interactive .plot"), []
    for _ in range(len(rows)):
        plot.send_keys(Keys.ARROW_RIGHT)
        read.append(page.find(".interactive output").text)
    assert {name for name in rows["name"] if any(name in text for text in read)} == set(rows["name"])
    assert page.errors() == []


def test_axes_follow_a_change_to_dark_colours_while_the_page_is_open(page: Browser) -> None:
    colours = f"{SHOWN} return [view.below[0].major_label_text_color, view.center[0].grid_line_color]"
    light = page.run(colours)
    page.prefer("dark")
    assert wait(page, f"{colours.replace('return', 'const now =')}; return now[0] !== '{light[0]}' && now")
    ink, line = page.run("const s = getComputedStyle(document.documentElement);"
                         "return ['--ink', '--line'].map((name) => s.getPropertyValue(name).trim())")  # fmt: skip
    assert page.run(colours) == [ink, line]
    assert light != [ink, line]


def test_a_printed_page_and_one_without_scripts_show_the_static_figure(study: Path, page: Browser) -> None:
    shown = (
        "return ['.interactive', '.interactive + .static'].map((one) => document.querySelector(one).offsetHeight > 0)"
    )
    assert page.run(shown) == [True, False]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.run(shown) == [False, True]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.driver.get((study / "report.html").as_uri())
    page.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert page.run(shown) == [False, True]
