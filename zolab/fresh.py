"""Stored outputs belong to the code that made them: fingerprints of cells and modules.

A fingerprint sees what Python would run. Comments, docstrings and the layout of the
text do not count, and neither do modules that only show what others computed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Modules that find, show or mark what others computed, and packages that only gather
# names: a change there changes no number.
PAGES = {"claims", "curve", "exercises", "figures", "notes", "pages", "records", "same"}
PAGES |= {"scales", "screen", "show", "timeline", "widgets"}
ROOMS = {"chapters", "doctor", "errors", "fresh", "ipython_shim"}
ROOMS |= {"lab", "engines", "estimators", "integrations", "optimizers", "plan"}
ROOMS |= {"rl", "suggestion", "tasks"}
SHOWING = {"zolab", *(f"zolab.{m}" for m in ROOMS), *(f"zolab.lab.{m}" for m in PAGES)}


def loaded() -> list[str]:
    """The modules of zolab in this process that compute."""
    ours = [m for m in sys.modules if m.partition(".")[0] == "zolab"]
    return sorted(set(ours) - SHOWING)


def stamp(cells: Sequence[str], modules: Iterable[str]) -> dict[str, Any]:
    """Fingerprints of code cells and of modules, by name."""
    return {
        "cells": _of("\n".join(cells)),
        "modules": {m: of_module(m) for m in sorted(modules)},
    }


def stale(stamp: Mapping[str, Any], cells: Sequence[str] | None = None) -> list[str]:
    """What has changed since the stamp: "the cells", names of modules; else nothing."""
    changed = (
        []
        if cells is None or stamp["cells"] == _of("\n".join(cells))
        else ["the cells"]
    )
    modules = stamp.get("modules", {})
    return changed + [m for m, seen in modules.items() if of_module(m) != seen]


def of_module(name: str) -> str:
    """The fingerprint of a module, which is not imported; "gone" if there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return "gone"
    if spec is None or spec.origin is None:
        return "gone"
    return _of(Path(spec.origin).read_text("utf-8"))


def _of(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            del body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def _is_text(node: ast.AST) -> bool:
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return constant and isinstance(node.value.value, str)  # type: ignore[attr-defined]
