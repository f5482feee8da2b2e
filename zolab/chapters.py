"""Run a chapter's code cells in order, with or without Jupyter installed."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from zolab import ipython_shim
from zolab.errors import ZolabError

# Magics that only set up a notebook's display; others would change what is run.
HARMLESS = re.compile(r"%(matplotlib|config|autoreload|load_ext\s+autoreload)\b")
MAGIC = re.compile(r"\s*(%|!|\?)|.*\?\s*$")
SKIP = {"nbval-skip", "skip-execution"}
RAISES = {"nbval-raises-exception", "raises-exception"}


class ChapterError(ZolabError):
    """A chapter cannot be found or read, or one of its cells failed."""


@dataclass(frozen=True)
class Cell:
    """A code cell: its place among the code cells from 1, its source, its tags."""

    number: int
    source: str
    tags: frozenset[str]

    @property
    def first_line(self) -> str:
        """The first line of code or comment, to tell cells apart in a report."""
        return next((s for s in self.source.splitlines() if s.strip()), "")


@dataclass(frozen=True)
class Chapter:
    """A notebook NN_name.ipynb; `number` is "NN"."""

    number: str
    path: Path

    @property
    def name(self) -> str:
        """The file's name in words, without its number."""
        return self.path.stem.partition("_")[2].replace("_", " ")

    def cells(self) -> list[Cell]:
        """The code cells that hold anything; raises ChapterError on a damaged file."""
        try:
            cells = json.loads(self.path.read_text("utf-8"))["cells"]
            code = [c for c in cells if c["cell_type"] == "code"]
            found = []
            for number, c in enumerate(code, 1):
                tags = frozenset(c.get("metadata", {}).get("tags", ()))
                found.append(Cell(number, "".join(c["source"]), tags))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ChapterError(f"{self.path} is not a notebook: {error!r}") from error
        return [c for c in found if c.source.strip()]


def find(folder: Path | None = None) -> dict[str, Chapter]:
    """The chapters by number: of `folder`, ./notebooks, or the package's checkout.

    Raises ChapterError when there is no such folder or it holds no chapter.
    """
    places = [Path("notebooks"), Path(__file__).parent.parent / "notebooks"]
    if folder is not None:
        places = [folder]
    for place in places:
        paths = sorted(place.glob("[0-9][0-9]_*.ipynb"))
        if paths:
            return {p.name[:2]: Chapter(p.name[:2], p.resolve()) for p in paths}
    where = " or ".join(str(p) for p in places)
    raise ChapterError(f"no chapter NN_name.ipynb in {where}: run it in a checkout")


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
