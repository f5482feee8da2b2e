"""Run a chapter in a Jupyter kernel and store its outputs, stamped, in the notebook."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from zolab import fresh
from zolab.chapters import Chapter, ChapterError

WIDGET = "application/vnd.jupyter.widget-view+json"
LOADED = (
    "import json as _j; from zolab import fresh as _f; print(_j.dumps(_f.loaded()))"
)


def save(
    chapter: Chapter,
    *,
    scale: str,
    progress: Callable[[int, int, str], None] = lambda done, total, doing: None,
) -> float:
    """Execute at `scale`, write outputs and cost card; returns the seconds.

    Raises ChapterError at the first cell that fails, and then writes nothing. A live
    widget is left out, since it would be dead in a notebook that is opened again: its
    page face stands in its place.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    nb = nbformat.read(chapter.path, as_version=4)
    # What this run has imported is asked for in a cell that is not kept.
    nb.cells.append(nbformat.v4.new_code_cell(LOADED))
    where = {"metadata": {"path": str(chapter.path.parent)}}
    env = os.environ | {"ZOLAB_SCALE": scale, "ZOLAB_RECORD": "1"}
    client = NotebookClient(nb, timeout=None, kernel_name="python3", resources=where)
    began = time.perf_counter()
    try:
        with client.setup_kernel(env=env):
            for i, cell in enumerate(nb.cells):
                first = cell.source.partition("\n")[0]
                progress(i, len(nb.cells), first if cell.cell_type == "code" else "")
                client.execute_cell(cell, i)
    except (CellExecutionError, DeadKernelError) as error:
        raise ChapterError(
            f"chapter {chapter.number}, nothing saved: {error}"
        ) from error
    progress(len(nb.cells), len(nb.cells), "")
    modules = json.loads(nb.cells.pop().outputs[0].text)
    _settle(nb, scale, modules)
    new = chapter.path.with_suffix(".new")
    new.write_text(nbformat.writes(nb) + "\n", "utf-8")
    new.replace(chapter.path)
    return time.perf_counter() - began


def _settle(nb: Any, scale: str, modules: list[str]) -> None:
    """Take out what a reader has no use for, and put the stamp in."""
    nb.metadata.pop("widgets", None)
    nb.metadata["language_info"] = {"name": "python"}
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(WIDGET, None)
    code = [c.source for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    now = datetime.now(UTC).date().isoformat()
    ran = {"scale": scale, "date": now} | fresh.stamp(code, modules)
    nb.metadata.setdefault("zolab", {})["ran"] = ran


def _joined(outputs: list[Any]) -> list[Any]:
    """Lines printed one after another as one output."""
    kept: list[Any] = []
    for o in outputs:
        stream = o.output_type == "stream" and kept and kept[-1].output_type == "stream"
        if stream and kept[-1].name == o.name:
            kept[-1].text += o.text
        else:
            kept.append(o)
    return kept
