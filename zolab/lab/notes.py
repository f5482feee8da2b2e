"""What a run depends on beside its model, small enough for a journal's header."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Sequence
from typing import Any

from zolab.tasks import Sentence


def notes(**values: Any) -> dict[str, Any]:
    """JSON values by name, for `MeZO(..., notes=)`: who resumes must bring the same.

    Numbers, words and lists stand as they are; sentences become their count and hash,
    a function its name and the hash of its source (not of what it calls). Raises
    TypeError for anything else.
    """
    return {name.replace("_", " "): _small(value) for name, value in values.items()}


def _small(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence):
        if value and all(isinstance(s, Sentence) for s in value):
            text = "\n".join(f"{s.label} {s.text}" for s in value)
            return f"{len(value)} sentences, hash {_hash(text)}"
        return [_small(v) for v in value]
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__name__)
        try:
            return f"{name}, source {_hash(inspect.getsource(value))}"
        except (OSError, TypeError):  # typed into a console, or a partial
            return name
    raise TypeError(f"{type(value).__name__} is no number, word, list or function")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=4).hexdigest()
