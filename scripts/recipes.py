"""Run the recipes and put what they print, and the tables of the records, on the pages.

    python scripts/recipes.py [PAGE ...]        default: every page of book/recipes

On a page (Markdown), fences mean:

    ```python run       executed, in order, one namespace a page, in an empty folder
    ```text output      what the last such block printed; written by this script
    ```python, ```bash  shown, never executed

and between `<!-- begin: MODULE:FUNCTION -->` and `<!-- end -->` stands what FUNCTION()
returns: a table or sentences made from a record. tests/test_recipes.py does the same
in a temporary folder at ZOLAB_SCALE=tiny and compares.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

PAGES = Path(__file__).parent.parent / "book" / "recipes"
FENCE = re.compile(r"^```(python run|text output)\n(.*?)^```$", re.S | re.M)
DRAWN = re.compile(r"(<!-- begin: ([\w.]+):(\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def render(text: str, name: str = "recipe") -> str:
    """The page with its outputs and tables made anew; runs in the current folder.

    Raises what a block raises, with the page's own line number.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    printed = ""

    def fill(fence: re.Match[str]) -> str:
        nonlocal printed
        kind, body = fence.groups()
        if kind == "text output":
            return f"```{kind}\n{printed.strip(chr(10))}\n```"
        lines = text[: fence.start(2)].count("\n")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * lines + body, name, "exec"), names)
        printed = out.getvalue()
        return fence.group()

    def draw(block: re.Match[str]) -> str:
        begin, module, function, _, end = block.groups()
        drawn = getattr(importlib.import_module(module), function)()
        return f"{begin}\n{drawn.strip()}\n\n{end}"

    return DRAWN.sub(draw, FENCE.sub(fill, text))


def main(paths: list[str]) -> int:
    os.environ["ZOLAB_SCALE"] = "tiny"
    for path in [Path(p).resolve() for p in paths] or sorted(PAGES.glob("*.md")):
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            made = render(path.read_text("utf-8"), path.name)
        path.write_text(made, "utf-8")
        print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
