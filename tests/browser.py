"""Headless Chromium for the tests: what a reader's browser sees, says and asks for."""

import json
import shutil
import tempfile
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

# "chrome-untrusted": what the first, empty tab asks for
LOCAL = ("file", "data", "blob", "chrome", "chrome-untrusted", "about")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
# Every name but this machine's fails to resolve: a page that needs one shows it.
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
DESKTOP, PHONE = (1280, 900), (360, 740)


@contextmanager
def chromium():
    """A selenium driver without a network; skips the test where there is none."""
    from selenium import webdriver

    found = [shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome")]
    binary, driver = next(filter(None, found), None), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no Chromium with its chromedriver (apt install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = webdriver.ChromeService(driver)
        browser = webdriver.Chrome(options=options, service=service)
        # JupyterLab's current tab is the one in focus; headless windows may have none.
        focus = "Emulation.setFocusEmulationEnabled"
        browser.execute_cdp_cmd(focus, {"enabled": True})
        try:
            yield browser
        finally:
            browser.quit()


def size(browser, width: int, height: int) -> None:
    """Exactly this much page, also below the window's smallest width."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )


def complaints(browser) -> list[str]:
    """Errors on the console since last asked."""
    return [x["message"] for x in browser.get_log("browser") if x["level"] == "SEVERE"]


def outside(browser) -> list[str]:
    """Addresses on other machines that the page has asked for since last asked."""
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    urls = [(u, urlsplit(u)) for u in asked]
    return [
        u for u, at in urls if at.scheme not in LOCAL and at.hostname != "127.0.0.1"
    ]
