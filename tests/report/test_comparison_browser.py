"""The page of a comparison of runs by three algorithms in real headless Chromium: three widths, both themes."""

from pathlib import Path

import pytest
from algorithm_runs import small_run
from browsing import browser, installed, requests

from selfplay.compare.head_to_head import compare
from selfplay.report.html import render_report

pytestmark = pytest.mark.skipif(
    not installed(), reason="chromium and chromium-driver are not installed (apt-get install them)"
)
REJECTION = "algorithm={kind: rejection, rounds: 1, prompts: 8, completions: 4, batch_size: 4}"
MOVED = """
    const [a, b] = document.querySelectorAll("svg.figure text");
    b.setAttribute("x", a.getAttribute("x")); b.setAttribute("y", a.getAttribute("y"));
"""
"""Puts one text of a figure over another, which has to be found."""
OVERLAPS = """
    // Texts of one figure whose boxes share more than a pixel, or that leave the figure; cells whose content is cut.
    const found = [];
    for (const svg of document.querySelectorAll("svg.figure")) {
      const frame = svg.getBoundingClientRect();
      const texts = [...svg.querySelectorAll("text")].filter((e) => e.textContent.trim() && e.getClientRects().length);
      const boxes = texts.map((e) => e.getBoundingClientRect());
      boxes.forEach((a, i) => {
        if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push("outside: " + texts[i].textContent);
        boxes.slice(0, i).forEach((b, j) => {
          const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
          const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
          if (wide > 1 && high > 3) found.push("over each other: " + texts[i].textContent + " / " + texts[j].textContent);
        });
      });
    }
    for (const cell of document.querySelectorAll("th, td"))
      if (cell.scrollWidth > cell.clientWidth + 1) found.push("cut: " + cell.textContent);
    if (document.documentElement.scrollWidth > innerWidth) found.push("wider than the window");
    return found;
"""


@pytest.fixture(scope="module")
def page(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run by PPO, one by DPO and one by rejection sampling, all from one start, and that start."""
    home = tmp_path_factory.mktemp("three")
    dpo = small_run("dpo", tiny_run, home / "dpo", "iterations=1", "name=dpo", "algorithm.batch_size=4")
    rejection = small_run("rejection", tiny_run, home / "rejection", "iterations=1", "name=rejection", REJECTION)
    targets = [f"{tiny_run}@2", f"{dpo}@1", f"{rejection}@1", f"{tiny_run}@start"]
    result = compare(targets, like=str(tiny_run), folder=home / "compared", by="animal")
    file = home / "page.html"
    file.write_text(render_report(result.page(result.folder)))
    return file


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_overlaps_or_is_cut_at_any_width(page: Path, tmp_path: Path, dark: bool) -> None:
    with browser(tmp_path / "p", dark=dark) as driver:
        driver.get("about:blank")
        requests(driver)
        for width in (400, 900, 1400):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            driver.get(f"file://{page}")
            assert requests(driver) == [f"file://{page}"] and driver.get_log("browser") == []
            texts = driver.execute_script("return document.querySelectorAll('svg.figure text').length")
            assert texts > 10 and driver.execute_script(OVERLAPS) == [], width
            paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(21, 22, 26)" if dark else "rgb(252, 251, 249)")
        driver.execute_script(MOVED)
        assert driver.execute_script(OVERLAPS)[0].startswith("over each other: ")
