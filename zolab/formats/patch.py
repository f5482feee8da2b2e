"""Writing over a copy of a folder's safetensors what moved in a model."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from zolab.errors import StoreError
from zolab.formats.folder import Parts, Scheme, entries_in, scheme_of
from zolab.formats.safe import Entry
from zolab.storage.packed import Packed


class Folder:
    """A quantized folder as a template: `names` are the weights that it has."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.scheme: Scheme = scheme_of(source)
        entries = entries_in(source)
        self.weights: dict[str, Parts] = self.scheme.parts(entries)
        used = {id(e) for parts in self.weights.values() for e in parts.values()}
        self.plain = {n: e for n, e in entries.items() if id(e) not in used}
        self.files = sorted({e.path for e in entries.values()})
        self.names = self.weights.keys() | self.plain.keys()

    def save(
        self, path: Path, mine: Mapping[str, Tensor]
    ) -> tuple[list[str], dict[str, float]]:
        """The folder at `path`; which weights moved, and what rounding cost."""
        moved, rounded = [], {}
        _copy_rest(self.source, path)
        with contextlib.ExitStack() as stack:
            outs = {
                file: stack.enter_context(replaced(path / file.name, file))
                for file in self.files
            }
            for name in sorted(self.names):
                parts = self.weights.get(name) or {"": self.plain[name]}
                new, lost = self._encode(name, mine[name])
                differs = [_over(outs, parts[end], t) for end, t in new.items()]
                if any(differs):
                    moved.append(name)
                    if lost:
                        rounded[name] = lost
        return moved, rounded

    def _encode(self, name: str, p: Tensor) -> tuple[dict[str, Tensor], float]:
        """A weight's tensors as the folder has them, and what rounding cost."""
        packed: Packed | None = getattr(p, "packed", None)
        if (packed is not None) != (name in self.weights):
            has, other = ("packed", "plain")[:: 1 if packed is None else -1]
            raise StoreError(f"{self.source} has {name} {has}, the model {other}")
        if packed is None:
            return _cast(self.source, name, self.plain[name], p.detach().cpu())
        parts = self.weights[name]
        kind = self.scheme.read(name, parts, packed.shape).codec
        if kind != packed.codec:
            raise StoreError(
                f"{self.source} has {name} in {kind.name}, group {kind.group}; the "
                f"model's is {p!r}"
            )
        return self.scheme.encode(name, parts, packed)


def _cast(
    source: Path, name: str, entry: Entry, p: Tensor
) -> tuple[dict[str, Tensor], float]:
    """Bytes stay where they read as what the model has: a cast may have lost some."""
    was = entry.read()
    if was.shape != p.shape:
        raise StoreError(
            f"{source} has {name} as {tuple(was.shape)}, the model {tuple(p.shape)}"
        )
    fresh = p.to(was.dtype)
    lost = 0.0 if torch.equal(fresh.to(p.dtype), p) else 0.5
    return {"": torch.where(was.to(p.dtype) == p, was, fresh)}, lost


def _over(outs: Mapping[Path, BinaryIO], entry: Entry, new: Tensor) -> bool:
    """Write a tensor over a file's where they differ; whether they did."""
    flat, at, moved = new.contiguous().reshape(-1).view(torch.uint8), 0, False
    for _, piece in entry.pieces():
        was = piece.reshape(-1).view(torch.uint8)
        now = flat[at : at + len(was)]
        if not torch.equal(was, now):
            moved = True
            outs[entry.path].seek(entry.start + at)
            outs[entry.path].write(now.numpy().data)
        at += len(was)
    return moved


def _copy_rest(source: Path, path: Path) -> None:
    """Configuration and tokenizer: all files that are no safetensors."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if path.resolve() == source.resolve():
            return
        for file in source.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copy(file, path)
    except OSError as why:
        raise StoreError(f"{path} was not written: {why.strerror or why}") from why


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
