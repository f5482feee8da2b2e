"""A packed model goes back into the kind of file that it was read from.

    zolab.save_as_read(model, "trained.gguf")

The file that was read is the template: it is copied, and what differs is written over.
So what did not move stays byte for byte, and nobody else's reader sees a new format.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zolab.errors import StoreError
from zolab.formats.gguf import Gguf
from zolab.formats.llama import name_in_model, order_of
from zolab.formats.patch import Folder, replaced
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

    The file may be a GGUF, or a folder of NF4, GPTQ or AWQ. Codes are written as they
    are. Scales are too while they did not move; moved ones are rounded to what the file
    has room for (fp16; multiples of a block's largest in Q4_K and Q6_K; nested bytes in
    NF4), and the report says by how much. Raises StoreError where a tensor does not
    fit.
    """
    known: Any = like or getattr(model, "read_from", "")
    source = Path(known)
    if str(known) and source.is_dir():
        template = Folder(source)
        mine = _parameters(model, template.names, source)
        moved, rounded = template.save(Path(path), mine)
        return Saved(Path(path), tuple(moved), rounded)
    if not source.is_file():
        raise StoreError(
            f"{source} is no file: say which one the model was read from, like=..."
        )
    return _save_gguf(model, Path(path), source)


def _save_gguf(model: nn.Module, path: Path, source: Path) -> Saved:
    file = Gguf(source)
    names = {str(name_in_model(n)): n for n in file.tensors}
    mine = _parameters(model, names, source)
    moved, rounded = [], {}
    with replaced(path, source) as out:
        for name, inside in names.items():
            entry = file.tensors[inside]
            order = order_of(file, entry)
            differs, lost = rewrite(out, file, entry, mine[name], order)
            moved += [inside] * differs
            if lost:
                rounded[inside] = lost
    return Saved(path, tuple(moved), rounded)


def _parameters(
    model: nn.Module, names: Iterable[str], source: Path
) -> dict[str, Tensor]:
    """Parameters and buffers by name: each must be in the file, and the other way."""
    once = {canonical(n): p for n, p in model.named_parameters()}
    all_names: dict[str, Tensor] = {
        canonical(n): p for n, p in model.named_parameters(remove_duplicate=False)
    }
    all_names |= {canonical(n): b for n, b in model.named_buffers()}
    names = set(names)
    seen = {id(all_names[n]) for n in names & all_names.keys()}
    strangers = [
        n for n, p in once.items() if id(p) not in seen and not _scale(n, once)
    ]
    if strangers:
        raise StoreError(
            f"{source} has no place for {', '.join(sorted(strangers)[:4])}: merge or "
            "drop what was added to the model"
        )
    if absent := names - all_names.keys():
        raise StoreError(f"the model has no {', '.join(sorted(absent)[:4])}")
    return all_names


def _scale(name: str, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether the parameter is the scale of a packed weight."""
    whose = parameters.get(name.removesuffix("_scale"))
    return name.endswith("_scale") and hasattr(whose, "packed")
