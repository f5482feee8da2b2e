"""JupyterLab as a reader has it: the first chapter runs, and its widget moves."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import DESKTOP, chromium, complaints, outside, size

from zolab import chapters

ROOT = Path(__file__).parent.parent
FIRST = min(chapters.find(ROOT / "notebooks").items())[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("notebooks", "exercises", "solutions"):
        shutil.copytree(ROOT / name, folder / name)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--notebook-dir={folder}",
    ]
    command += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    own = {"JUPYTER_CONFIG_DIR": str(folder / "config"), "ZOLAB_SCALE": "tiny"}
    log = (folder / "log").open("w+")
    server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def wait(browser, script: str, seconds: float = 90) -> object:
    """What `script` returns, as soon as that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := browser.execute_script(script):
            return found
        time.sleep(0.2)
    raise AssertionError(f"after {seconds} s still nothing from {script}")


IMAGE = "document.querySelector('.jp-OutputArea .jupyter-widgets img')"
HANDLE = "document.querySelector('.jp-OutputArea .jupyter-widgets .noUi-handle')"
DONE = """
const cells = window.jupyterapp.shell.currentWidget.content.widgets
  .filter(c => c.model.type === 'code');
const text = cells.map(c => c.node.innerText).join('\\n');
if (cells.some(c => c.node.querySelector('[data-mime-type$="stderr"] .ansi-red-fg')))
  return 'failed: ' + text.slice(-2000);
return cells.every(c => c.model.executionCount) && 'done';
"""


def test_the_first_chapter_runs_and_its_widget_moves(lab):
    from selenium.webdriver import ActionChains, Keys

    with chromium() as browser:
        size(browser, *DESKTOP)
        browser.get(f"{lab}/lab/tree/notebooks/{FIRST.path.name}")
        wait(browser, "return window.jupyterapp?.shell.currentWidget?.context?.isReady")
        assert wait(browser, "return document.querySelectorAll('mjx-container').length")
        session = "window.jupyterapp.shell.currentWidget.sessionContext"
        wait(browser, f"return {session}.session?.kernel?.status === 'idle'")
        browser.execute_script(
            "window.jupyterapp.commands.execute('notebook:run-all-cells')"
        )
        assert wait(browser, DONE) == "done"

        wait(browser, f"return {HANDLE} && {IMAGE}")
        browser.execute_script(f"{HANDLE}.scrollIntoView({{block: 'center'}})")
        handle = browser.execute_script(f"return {HANDLE}")

        def moved(before):
            script = f"const now = {IMAGE}.src; return now !== arguments[0] && now"
            end = time.monotonic() + 20
            while time.monotonic() < end:
                if now := browser.execute_script(script, before):
                    return now
                time.sleep(0.1)
            raise AssertionError("the picture stays as it was")

        first = browser.execute_script(f"return {IMAGE}.src")
        browser.execute_script("arguments[0].focus()", handle)
        handle.send_keys(Keys.ARROW_RIGHT)
        second = moved(first)
        ActionChains(browser).drag_and_drop_by_offset(handle, 60, 0).perform()
        third = moved(second)
        play = browser.execute_script(
            "return document.querySelector('.jupyter-widgets.widget-play button,"
            " .widget-play button')"
        )
        play.click()
        moved(third)
        alt = browser.execute_script(f"return {IMAGE}.alt")
        assert len(alt.split()) >= 5
        assert outside(browser) == []
        assert complaints(browser) == []
