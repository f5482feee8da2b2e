"""A GGUF file: what it says of itself, and its tensors' bytes, a piece at a time.

    magic, version | names and values | a line a tensor | padding | tensors

Little-endian, versions 2 and 3. Nothing is mapped: a piece is read into one buffer, so
that the file's pages never count as this process's memory. Every count and offset is
held against the file's size, so a damaged file is one AssetError.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from zolab.assets import AssetError
from zolab.formats.blocks import KINDS, Array
from zolab.formats.safe import PIECE, fill

# number: (struct's letter, bytes); 8 is a string, 9 an array
SCALARS = dict(
    zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?QqdD", strict=False),
)
STRING, ARRAY = 8, 9
PLAIN = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2)}


@dataclass(frozen=True)
class Entry:
    """One tensor: its type's number, its shape as torch has it, where it lies."""

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int  # byte in the file
    nbytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])


class Gguf:
    """`Gguf(path)` reads the header; `fields` are its values, `tensors` its entries.

    Raises AssetError on a file that is no GGUF, truncated or contradicts itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.size = self.path.stat().st_size
            with self.path.open("rb") as file:
                self._read(file)
        except OSError as why:
            raise AssetError(f"{path}: {why.strerror or why}") from why

    def pieces(self, entry: Entry) -> Iterator[tuple[int, Array]]:
        """(first row, bytes as (rows, bytes a row)), about a megabyte each."""
        width = entry.nbytes // max(entry.rows, 1)
        count = max(1, PIECE // max(width, 1))
        with self.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            for a in range(0, entry.rows, count):
                out = np.empty((min(count, entry.rows - a), width), np.uint8)
                fill(file, out, self.path)
                yield a, out

    def _read(self, file: BinaryIO) -> None:
        self._file = file
        magic = file.read(4)
        if magic != b"GGUF":
            raise AssetError(
                f"{self.path} begins with {magic!r}, expected b'GGUF': not a GGUF file"
            )
        (version,) = self._take("I")
        if version not in (2, 3):
            raise AssetError(
                f"{self.path} is GGUF version {version:#x}, expected 2 or 3, "
                "little-endian"
            )
        tensors, fields = self._take("QQ")
        self.fields: dict[str, Any] = {}
        for _ in range(fields):
            key = self._string()
            self.fields[key] = self._value(*self._take("I"))
        lines = [self._line() for _ in range(tensors)]
        unit = self.fields.get("general.alignment", 32)
        if not isinstance(unit, int) or unit <= 0:
            raise AssetError(f"{self.path}: alignment is {unit!r}, expected 1 or more")
        first = -(-file.tell() // unit) * unit
        self.tensors = {x[0]: self._entry(first, *x) for x in lines}
        if len(self.tensors) < len(lines):
            raise AssetError(f"{self.path} names a tensor twice")
        del self._file

    def _take(self, letters: str) -> tuple[Any, ...]:
        size = struct.calcsize("<" + letters)
        data = self._file.read(size)
        if len(data) < size:
            raise AssetError(f"{self.path} is truncated: it ends within its header")
        return struct.unpack("<" + letters, data)

    def _bytes(self, count: int) -> bytes:
        left = self.size - self._file.tell()
        if count > left:
            raise AssetError(
                f"{self.path} is truncated or damaged: its header speaks of {count:,} "
                f"bytes where {max(left, 0):,} are left"
            )
        return self._file.read(count)

    def _string(self) -> str:
        data = self._bytes(*self._take("Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as why:
            raise AssetError(f"{self.path}: a name is no UTF-8 ({why})") from None

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._take(SCALARS[kind])[0]
        if kind != ARRAY:
            raise AssetError(f"{self.path}: a field of unknown type {kind}")
        inner, count = self._take("IQ")
        if inner == STRING:
            self._fits(count, 8)
            return [self._string() for _ in range(count)]
        if inner not in SCALARS:
            raise AssetError(f"{self.path}: a list of unknown type {inner}")
        letter = SCALARS[inner]
        data = self._bytes(count * struct.calcsize("<" + letter))
        return list(struct.unpack(f"<{count}{letter}", data))

    def _fits(self, count: int, each: int) -> None:
        if count * each > self.size:
            raise AssetError(
                f"{self.path}: a list of {count:,} items is no such file's"
            )

    def _line(self) -> tuple[str, int, tuple[int, ...], int]:
        name, (axes,) = self._string(), self._take("I")
        if axes > 8:
            raise AssetError(f"{self.path}: {name} has {axes} axes")
        shape = self._take("Q" * axes)
        kind, offset = self._take("IQ")
        return name, kind, shape[::-1], offset

    def _entry(
        self, first: int, name: str, kind: int, shape: tuple[int, ...], offset: int
    ) -> Entry:
        per, each = _layout(kind, f"{self.path}: {name}")
        count = math.prod(shape)
        columns = shape[-1] if shape else 1
        if columns % per:
            raise AssetError(
                f"{self.path}: {name} has rows of {columns}, expected a multiple of "
                f"{per}"
            )
        entry = Entry(name, kind, shape or (1,), first + offset, count // per * each)
        if entry.start + entry.nbytes > self.size:
            raise AssetError(
                f"{self.path} has {self.size:,} bytes, but {name} ends at byte "
                f"{entry.start + entry.nbytes:,}: truncated"
            )
        return entry


def _layout(kind: int, what: str) -> tuple[int, int]:
    """Weights a block, and its bytes."""
    if kind in PLAIN:
        return 1, PLAIN[kind][1]
    if kind in KINDS:
        return KINDS[kind].size, KINDS[kind].nbytes
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        return GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise AssetError(f"{what} is of unknown type {kind}") from None


def name_of(kind: int) -> str:
    """The type's name, for people."""
    if kind in PLAIN:
        return PLAIN[kind][0]
    if kind in KINDS:
        return KINDS[kind].name
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType(kind).name
