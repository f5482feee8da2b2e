"""As much of IPython's display as a chapter needs on a machine without Jupyter."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class Shown:
    """Stands for HTML, Markdown, Image and the like: keeps the text, says its kind."""

    def __init__(self, data: Any = None, **options: Any) -> None:
        self.data = data

    def __repr__(self) -> str:
        text = self.data if isinstance(self.data, str) else type(self).__name__
        return text if len(text) < 500 else f"<{type(self).__name__}>"


class HTML(Shown):
    """A page fragment."""


class Markdown(Shown):
    """Formatted text."""


class Math(Shown):
    """A formula."""


class Latex(Shown):
    """A formula."""


class Image(Shown):
    """A picture."""


class SVG(Shown):
    """A picture."""


def display(*objects: Any, **options: Any) -> None:
    """Write each object's text; a figure has none worth reading."""
    for o in objects:
        text = "[figure]" if hasattr(o, "savefig") else repr(o)
        sys.stdout.write(text + "\n")


def clear_output(wait: bool = False) -> None:
    """Nothing to clear in a terminal."""


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """`from IPython.display import ...` works inside, even where IPython is missing."""
    if importlib.util.find_spec("IPython") is not None:
        yield
        return
    package, module = ModuleType("IPython"), ModuleType("IPython.display")
    for thing in (HTML, Markdown, Math, Latex, Image, SVG, display, clear_output):
        setattr(module, thing.__name__, thing)
    package.__dict__.update(display=module, get_ipython=lambda: None)
    names = {"IPython": package, "IPython.display": module}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
