"""Run a chapter's code cells in order, with or without Jupyter installed."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from zolab import ipython_shim
from zolab.chapters import Cell, Chapter, ChapterError

# Magics that only set up a notebook's display; others would change what is run.
HARMLESS = re.compile(r"%(matplotlib|config|autoreload|load_ext\s+autoreload)\b")
MAGIC = re.compile(r"\s*(%|!|\?)|.*\?\s*$")
SKIP = {"nbval-skip", "skip-execution"}
RAISES = {"nbval-raises-exception", "raises-exception"}


def run(
    chapter: Chapter,
    *,
    scale: str,
    show: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, doing: None,
) -> list[tuple[Cell, float]]:
    """Execute the cells in one namespace, at `scale`; returns the seconds of each.

    `show` lets the cells' output through; otherwise only a failing cell's is told.
    Raises ChapterError with chapter, cell, line and traceback at the first failure.
    """
    cells = [c for c in chapter.cells() if not c.tags & SKIP]
    times = []
    with _stage(chapter, scale) as namespace:
        for done, cell in enumerate(cells):
            progress(done, len(cells), cell.first_line)
            began = time.perf_counter()
            _run_cell(chapter, cell, len(cells), namespace, show)
            times.append((cell, time.perf_counter() - began))
    progress(len(cells), len(cells), "")
    return times


@contextlib.contextmanager
def _stage(chapter: Chapter, scale: str) -> Iterator[dict[str, Any]]:
    """What a kernel would give the cells: their folder, `__main__`, and display."""
    main = ModuleType("__main__")  # dataclasses and pickle look names up there
    main.__dict__["display"] = ipython_shim.display
    environ = {"ZOLAB_SCALE": scale, "MPLBACKEND": "Agg"}
    before = {k: os.environ.get(k) for k in environ}
    saved_main, saved_path = sys.modules["__main__"], list(sys.path)
    os.environ.update(environ)
    sys.modules["__main__"] = main
    sys.path.insert(0, str(chapter.path.parent))
    try:
        with contextlib.chdir(chapter.path.parent), ipython_shim.installed():
            yield main.__dict__
    finally:
        sys.modules["__main__"], sys.path[:] = saved_main, saved_path
        for k, v in before.items():
            os.environ.pop(k) if v is None else os.environ.update({k: v})


def _run_cell(
    chapter: Chapter, cell: Cell, total: int, namespace: dict[str, Any], show: bool
) -> None:
    where = f"<chapter {chapter.number}, cell {cell.number}>"
    output = io.StringIO()
    hide = contextlib.ExitStack()
    if not show:
        hide.enter_context(contextlib.redirect_stdout(output))
        hide.enter_context(contextlib.redirect_stderr(output))
    failure: BaseException | None = None
    with hide:
        try:
            _execute(cell.source, where, namespace)
        except (Exception, SystemExit) as error:
            failure = error
        _close_figures()
    expected = bool(cell.tags & RAISES)
    if failure is not None and not expected:
        text = _explain(failure, where, chapter, cell, total, output.getvalue())
        raise ChapterError(text) from failure
    if failure is None and expected:
        raise ChapterError(f"{_title(chapter, cell, total)} should raise and did not")


def _execute(source: str, where: str, namespace: dict[str, Any]) -> None:
    """Run one cell as a notebook would: a last expression is displayed."""
    source = _without_magics(source) + "\n"
    lines = source.splitlines(keepends=True)
    linecache.cache[where] = (
        len(source),
        None,
        lines,
        where,
    )  # for inspect, tracebacks
    tree = ast.parse(source, where)
    last = tree.body[-1] if tree.body else None
    shown = isinstance(last, ast.Expr) and not source.rstrip().endswith(";")
    body = ast.Module(tree.body[:-1] if shown else tree.body, [])
    exec(compile(body, where, "exec"), namespace)
    if shown and isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), where, "eval"), namespace)
        if value is not None:
            namespace["_"] = value
            ipython_shim.display(value)


def _without_magics(source: str) -> str:
    """The source with display magics blanked; raises SyntaxError on any other."""
    try:
        ast.parse(source)
        return source
    except SyntaxError as error:
        lines = source.splitlines()
        for i, line in enumerate(lines):
            if HARMLESS.match(line.strip()):
                lines[i] = ""
            elif MAGIC.match(line) and error.lineno == i + 1:
                text = f"{line.strip()!r} is a notebook command, not Python"
                raise SyntaxError(text, ("", i + 1, 1, line)) from None
        if lines == source.splitlines():
            raise
        return _without_magics("\n".join(lines))


def _close_figures() -> None:
    """A notebook closes figures after each cell; without it they pile up in memory."""
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.close("all")


def _title(chapter: Chapter, cell: Cell, total: int) -> str:
    return f"chapter {chapter.number} ({chapter.path.name}), cell {cell.number}/{total}"


def _explain(
    failure: BaseException,
    where: str,
    chapter: Chapter,
    cell: Cell,
    total: int,
    output: str,
) -> str:
    """Chapter, cell, the source line, the error; then its traceback and output."""
    frames = traceback.extract_tb(failure.__traceback__)
    inside = [i for i, f in enumerate(frames) if f.filename == where]
    line = frames[inside[-1]].lineno if inside else getattr(failure, "lineno", None)
    source = cell.source.splitlines()
    text = f"{_title(chapter, cell, total)}"
    if line and line <= len(source):
        text += f", line {line}:\n    {source[line - 1].strip()}"
    error = "".join(traceback.format_exception_only(failure)).strip()
    text += f"\n{error}"
    if inside:
        trace = traceback.format_list(frames[inside[0] :])
        text += f"\n\nTraceback:\n{''.join(trace).rstrip()}"
    if output.strip():
        tail = "\n".join(output.rstrip().splitlines()[-20:])
        text += f"\n\nWhat the cell printed:\n{tail}"
    return text
