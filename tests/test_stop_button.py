"""In JupyterLab a run's Stop button works while its cell is running."""

import pytest
from browser import DESKTOP, chromium, size
from test_jupyterlab import lab, wait

__all__ = ["lab"]  # the fixture
pytest.importorskip("ipywidgets")

CELLS = (
    """
import itertools, time
import torch
import zolab
from zolab import lab

torch.manual_seed(0)
model = torch.nn.Linear(8, 1)
opt = zolab.MeZO(model, lr=1e-2, eps=1e-2, journal="run.zolab")
def slow(model, x):
    time.sleep(0.05)
    return model(x).square().mean()
x = torch.ones(4, 8)
run = lab.watch(opt, slow, itertools.repeat(x), steps=2000)
""",
    'print("ended at", run.steps, "of the", opt.journal.next_step)',
)
SAVE = """
const [cells, done] = arguments;
const nb = {nbformat: 4, nbformat_minor: 5, metadata: {kernelspec:
  {name: 'python3', display_name: 'Python 3', language: 'python'}},
  cells: cells.map((source, i) => ({cell_type: 'code', id: 'c' + i, source,
  metadata: {}, outputs: [], execution_count: null}))};
window.jupyterapp.serviceManager.contents.save('stop.ipynb',
  {type: 'notebook', format: 'json', content: nb}).then(() => done(1));
"""
KERNEL = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel"
RUN = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
BUTTON = """[...document.querySelectorAll('.jp-OutputArea button')]
  .find(b => b.innerText.includes('Stop'))"""
SAID = """
const said = [...document.querySelectorAll('.jp-OutputArea')]
  .map(x => x.innerText).join(' ');
return said.includes('ended at') && said
"""


def test_the_button_stops_a_running_cell_and_the_cell_goes_on(lab):
    with chromium() as browser:
        size(browser, *DESKTOP)
        browser.get(f"{lab}/lab")
        wait(browser, "return window.jupyterapp?.serviceManager?.isReady")
        browser.execute_async_script(SAVE, CELLS)
        browser.get(f"{lab}/lab/tree/stop.ipynb")
        wait(browser, f"return {KERNEL}?.status === 'idle'")

        browser.execute_script(RUN)
        wait(
            browser, f"return {BUTTON} && document.querySelector('.jp-OutputArea img')"
        )
        browser.execute_script(f"{BUTTON}.click()")
        first = wait(browser, SAID, 30)
        assert "stopped after step" in first
        assert not browser.execute_script(f"return {BUTTON}"), "nothing to press"

        browser.execute_script(RUN)  # on, from the journal; then the kernel's interrupt
        wait(
            browser, f"return {BUTTON} && document.querySelector('.jp-OutputArea img')"
        )
        browser.execute_script(f"{KERNEL}.interrupt()")
        second = wait(browser, SAID, 30)
        assert "KeyboardInterrupt" not in second

        done = [int(s.split("ended at ")[1].split()[0]) for s in (first, second)]
        assert 0 < done[0] < done[1] < 2000
