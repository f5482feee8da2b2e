"""A packed model goes back into the kind of file that it was read from.

    zolab.save_as_read(model, "trained.gguf")

The file that was read is the template: it is copied, and what differs is written over.
So what did not move stays byte for byte, and nobody else's reader sees a new format.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from zolab.errors import StoreError
from zolab.formats.gguf import Gguf
from zolab.formats.llama import name_in_model, order_of
from zolab.formats.tensors import rewrite
from zolab.space import canonical


@dataclass(frozen=True)
class Saved:
    """Where it lies, which tensors differ from the template, and what rounding cost.

    `rounded` has, for tensors whose moved scales the file cannot hold as they are, the
    largest change of a weight, in steps of its grid (the scale).
    """

    path: Path
    moved: tuple[str, ...]
    rounded: Mapping[str, float]

    def __str__(self) -> str:
        if not self.moved:
            return f"{self.path}: as read, byte for byte"
        text = f"{self.path}: {len(self.moved)} tensors moved"
        if not self.rounded:
            return f"{text}, nothing was lost"
        name = max(self.rounded, key=lambda n: self.rounded[n])
        return (
            f"{text}; {len(self.rounded)} had to be rounded to what the file holds, a "
            f"weight at most by {self.rounded[name]:.1e} steps of its grid ({name})"
        )


def save_as_read(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    like: str | os.PathLike[str] | None = None,
) -> Saved:
    """Write `model` as the file that it was read from, or as the file `like`.

    Codes are written as they are. Scales are too while they did not move; moved ones
    are rounded to what the file has room for (fp16; in Q4_K and Q6_K multiples of the
    block's largest), and the report says by how much. Raises StoreError where a tensor
    does not fit.
    """
    known: Any = like or getattr(model, "read_from", "")
    source = Path(known)
    if not source.is_file():
        raise StoreError(
            f"{source} is no file: say which one the model was read from, like=..."
        )
    return _save_gguf(model, Path(path), source)


def _save_gguf(model: nn.Module, path: Path, source: Path) -> Saved:
    file = Gguf(source)
    mine = {canonical(n): p for n, p in model.named_parameters()}
    names = {str(name_in_model(n)): n for n in file.tensors}
    if strangers := [n for n in mine.keys() - names.keys() if not _scale(n, mine)]:
        raise StoreError(
            f"{source} has no place for {', '.join(sorted(strangers)[:4])}: merge or "
            "drop what was added to the model"
        )
    if absent := names.keys() - mine.keys():
        raise StoreError(f"the model has no {', '.join(sorted(absent)[:4])}")
    moved, rounded = [], {}
    with replaced(path, source) as out:
        for name, inside in names.items():
            entry = file.tensors[inside]
            p = mine[name]
            differs, lost = rewrite(out, file, entry, p, order_of(file, entry))
            moved += [inside] * differs
            if lost:
                rounded[inside] = lost
    return Saved(path, tuple(moved), rounded)


@contextlib.contextmanager
def replaced(path: Path, source: Path) -> Iterator[BinaryIO]:
    """A copy of `source` to write over, which becomes `path` when all went well."""
    part = path.with_name(path.name + ".part")
    try:
        shutil.copyfile(source, part)
        with part.open("r+b") as out:
            yield out
        os.replace(part, path)
    except OSError as why:
        raise StoreError(f"{path} was not written: {why.strerror or why}") from why
    finally:
        part.unlink(missing_ok=True)


def _scale(name: str, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether the parameter is the scale of a packed weight."""
    whose = parameters.get(name.removesuffix("_scale"))
    return name.endswith("_scale") and hasattr(whose, "packed")
