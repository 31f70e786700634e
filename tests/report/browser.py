"""A headless Chromium for tests of pages. Tests that use it are skipped, with the reason, where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HEIGHT = 900
TOO_WIDE = """
const limit = document.documentElement.clientWidth, found = [];
const cuts = (one) => ["auto", "scroll"].includes(getComputedStyle(one).overflowX);
const isInScrolled = (one) => { for (; one; one = one.parentElement) if (cuts(one)) return true; return false; };
const name = (one) => `${one.tagName.toLowerCase()}.${one.className} "${(one.textContent || "").slice(0, 40)}"`;
if (document.documentElement.scrollWidth > limit) found.push(`page ${document.documentElement.scrollWidth}`);
for (const one of document.body.querySelectorAll("*")) {
  const box = one.getBoundingClientRect();
  if (box.width && (box.right > limit + 1 || box.left < -1) && !isInScrolled(one.parentElement)) {
    found.push(`${name(one)} from ${box.left} to ${box.right}`);
  }
  const isTable = one.matches(".scroll, .figure");
  if (isTable && one.scrollWidth > one.clientWidth + 1) found.push(`${name(one)} is cut off: ${one.scrollWidth}`);
}
return found;
"""
"""Elements that reach beyond the window, and tables and figures that do not fit into their frames."""


class Browser:
    """One page at a time in a window of a given width, in light or dark colours."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Open a file; the log of earlier pages is forgotten."""
        window = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        self.prefer("dark" if dark else "light")
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(page.resolve().as_uri())

    def prefer(self, scheme: str) -> None:
        """Set the colour scheme that the reader prefers."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page and return its value."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        """The first element that a CSS selector matches."""
        return self.driver.find_element("css selector", selector)

    def open_all(self) -> None:
        """Open every fold by the button above the contents, as a reader does."""
        self.find("#open-all").click()

    def errors(self) -> list[str]:
        """Errors on the console, and addresses from which the page tried to load anything."""
        messages = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        loaded = self.run("return performance.getEntriesByType('resource').map((one) => one.name)")
        return messages + [name for name in loaded if not name.startswith(("data:", "blob:"))]

    def too_wide(self) -> list[str]:
        """What is wider than the window, or cut off at its frame."""
        return list(self.run(TOO_WIDE))

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save the window, or the whole page, as a PNG."""
        import base64

        options: dict[str, Any] = {"captureBeyondViewport": whole}
        if whole:
            size = self.run("const e = document.documentElement; return [e.clientWidth, e.scrollHeight]")
            options["clip"] = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path.write_bytes(base64.b64decode(taken["data"]))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser that all tests of a session share."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install -e '.[test]'")
    if not CHROMIUM or not DRIVER:
        pytest.skip("no browser: apt-get install -y chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # root has no sandbox
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu", *sandbox):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
