"""Headless Chromium for the tests of the report (Debian: chromium, chromium-driver)."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def installed() -> bool:
    """Whether there is a browser to test in."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextlib.contextmanager
def browser(
    profile: Path, *, dark: bool = False, scripts: bool = True, width: int = 1280, height: int = 900
) -> Iterator[webdriver.Chrome]:
    """A fresh browser whose console and network are recorded; `profile` is a new, empty directory."""
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(
        options=options,
        service=Service(shutil.which("chromedriver"), env={**os.environ, "NO_PROXY": "127.0.0.1,localhost"}),
    )
    try:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {
                "features": [
                    {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
                    {"name": "prefers-reduced-motion", "value": "reduce"},
                ]
            },
        )
        yield driver
    finally:
        driver.quit()


def requests(driver: webdriver.Chrome) -> list[str]:
    """Addresses that the page asked for since the last call and that its policy did not refuse.

    What the browser asks for its own pages is left out.
    """
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    refused = {
        event["params"]["requestId"]
        for event in events
        if event["method"] == "Network.loadingFailed" and event["params"].get("blockedReason") == "csp"
    }
    asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [
        one["request"]["url"]
        for one in asked
        if one["requestId"] not in refused
        and not one["documentURL"].startswith("chrome://")
        and not one["request"]["url"].startswith("chrome://")
    ]
