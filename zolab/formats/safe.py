"""A safetensors file, read and written a piece at a time.

    length of the header (u64) | header, JSON | tensors

The package `safetensors` maps a file, whose pages then count as this process's memory,
and writes from one dictionary of copies. Here a tensor is read into the buffer where it
stays, and written from the buffer where it lies. Each number of the header is held
against the file's size, so a damaged file is one AssetError.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from zolab.assets import AssetError
from zolab.errors import StoreError

PIECE = 1 << 20  # bytes read at once
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {v: k for k, v in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where it lies, what it is."""

    path: Path
    dtype: torch.dtype
    shape: torch.Size
    start: int
    nbytes: int

    def read(self) -> Tensor:
        """The whole tensor, in memory of its own."""
        out = torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            fill(file, out.reshape(-1).view(torch.uint8).numpy(), self.path)
        return out

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows), about a megabyte each, and a multiple of eight rows."""
        rows = self.shape[0] if self.shape else 1
        each = max(8, PIECE * max(rows, 1) // max(self.nbytes, 1) // 8 * 8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            for a in range(0, rows, each):
                shape = (min(each, rows - a), *self.shape[1:])
                out = torch.empty(shape, dtype=self.dtype)
                fill(file, out.reshape(-1).view(torch.uint8).numpy(), self.path)
                yield a, out


def read_header(path: Path) -> dict[str, Entry]:
    """The file's tensors by name. Raises AssetError on a file that is none, or cut."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise AssetError(
                    f"{path} has {size:,} bytes and a header of {length:,}: truncated, "
                    "or no safetensors file"
                )
            lines = json.loads(file.read(length))
    except OSError as why:
        raise AssetError(f"{path}: {why.strerror or why}") from why
    except ValueError as why:
        raise AssetError(f"{path} is no safetensors file: {why}") from None
    try:
        return {
            name: _entry(path, name, line, 8 + length, size)
            for name, line in lines.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError) as why:
        raise AssetError(f"{path}: a header that says nothing clear ({why!r})") from why


def _entry(path: Path, name: str, line: Any, first: int, size: int) -> Entry:
    a, b = map(int, line["data_offsets"])
    if line["dtype"] not in DTYPES:
        raise AssetError(f"{path}: {name} is of type {line['dtype']!r}, not one I read")
    dtype, shape = DTYPES[line["dtype"]], torch.Size(line["shape"])
    if not 0 <= a <= b or min(shape, default=0) < 0:
        raise AssetError(f"{path}: {name} lies at {a} to {b}")
    if b - a != math.prod(shape) * dtype.itemsize:
        raise AssetError(f"{path}: {name} is {tuple(shape)}, but has {b - a:,} bytes")
    if first + b > size:
        raise AssetError(
            f"{path} has {size:,} bytes, but {name} ends at byte {first + b:,}: "
            "truncated"
        )
    return Entry(path, dtype, shape, first + a, b - a)


def write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the tensors one after another; returns the file's SHA-256."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, t in tensors.items():
        if t.dtype not in NAMES:
            raise StoreError(f"{name} is {t.dtype}, which safetensors has no name for")
        end = at + t.numel() * t.element_size()
        header[name] = {
            "dtype": NAMES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part, h = path.with_name(path.name + ".part"), hashlib.sha256()
    try:
        with part.open("wb") as out:
            for data in itertools.chain(
                [memoryview(struct.pack("<Q", len(text)) + text)],
                (_raw(t) for t in tensors.values()),
            ):
                h.update(data)
                out.write(data)
        os.replace(part, path)
    except OSError as why:
        raise StoreError(f"{path} was not written: {why.strerror or why}") from why
    finally:
        part.unlink(missing_ok=True)
    return h.hexdigest()


def fill(file: BinaryIO, out: np.ndarray[Any, Any], path: Path) -> None:
    """Read until `out` (bytes) is full."""
    view = memoryview(out.data).cast("B") if out.size else memoryview(b"")
    while len(view):
        if not (done := file.readinto(view)):  # type: ignore[attr-defined]
            raise AssetError(f"{path} ends before its tensors do: truncated")
        view = view[done:]


def _raw(t: Tensor) -> memoryview:
    flat = t.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)
