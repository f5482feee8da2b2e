"""Blocks in a file: a model that fits neither on the device nor into RAM.

    FILE         what never moves, block after block | places for what moves
    FILE.marks   a header, then two small records a block: which place, how many steps

There is one place more than there are blocks. A block is written into the free place,
then its record names that place, and the old one is free: a process that is killed at
any instant leaves whole blocks, each with the number of steps that it has taken. The
two records of a block are written in turn, and each has a checksum, so that a torn one
is seen and the other holds.

Each block's bytes have a checksum too; it is looked at when the file is opened again.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zolab.errors import StoreError
from zolab.storage.blocks import Size

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_sync = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter
MAGIC = b"zolab blocks 1\n"
HEADER = 4096
RECORD = struct.Struct("<IIIIIQ")  # crc of the rest | turn, place, crc, crc, mark
PAGE = 4096


class Disk:
    """A model's blocks in the file `path`, which goes on where it was left.

    A killed process loses nothing; with `fsync=True` a power cut neither, at the price
    of waiting for the disk. The file needs the model's size and one block more. A
    `readonly` one is filled where it is missing, and then only opened for reading: its
    files may be read-only, and it serves any number of runs at once.
    """

    direct = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: bool = False,
        readonly: bool = False,
    ) -> None:
        if fcntl is None:
            raise StoreError("a store in a file needs Linux or macOS; use Ram")
        self.path, self.fsync, self.readonly = Path(path), fsync, readonly
        self.marks: list[int] = []
        self.fd = self.marked = -1

    @property
    def index(self) -> Path:
        return self.path.with_name(self.path.name + ".marks")

    def open(self, sizes: Sequence[Size], layout: str) -> bool:
        self.close()
        self.sizes = list(sizes)
        still = [_paged(s.nbytes - s.moving) for s in sizes]
        self.still = [sum(still[:i]) for i in range(len(still))]
        self.first = sum(still)
        self.room = _paged(max(s.moving for s in sizes))
        self.total = self.first + (len(sizes) + 1) * self.room
        n = len(sizes)
        self.marks, self.place, self.turn = [0] * n, list(range(n)), [0] * n
        self.sums = [(0, 0)] * n
        self.free, self.proved = n, [True] * n
        self.head: dict[str, Any] = {"layout": layout, "filled": False}
        exists = self.path.exists() and self.index.exists()
        goes_on = exists and self._resume()
        if not goes_on:
            self._create()
        with torch.inference_mode(False):
            self.bytes = torch.from_file(
                str(self.path),
                shared=not (goes_on and self.readonly),
                size=self.total,
                dtype=torch.uint8,
            )
        return goes_on

    def fill(self, block: int, data: Tensor) -> None:
        size = self.sizes[block]
        moving, still = data[: size.moving], data[size.moving : size.nbytes]
        self._put(self.still[block], still)
        self._put(self._at(self.place[block]), moving)
        self.sums[block] = _crc(moving), _crc(still)
        self._record(block)

    def seal(self, base: str) -> None:
        self.head |= {"filled": True, "base": base}
        self._write_header()
        if self.readonly:
            fcntl.flock(self.marked, fcntl.LOCK_SH)

    @property
    def base(self) -> str | None:
        return self.head.get("base")

    def begin(self, run: str) -> None:
        if self.readonly:
            return
        owner = self.head.setdefault("run", run)
        if owner != run:
            raise StoreError(
                f"{self.path} holds the blocks of another run: its log is "
                f"{owner or '(none)'}, this one's {run or '(none)'}"
            )
        self._write_header()

    def read(self, block: int, out: Tensor) -> None:
        size = self.sizes[block]
        self._get(self._at(self.place[block]), out[: size.moving])
        self._get(self.still[block], out[size.moving : size.nbytes])
        if not self.proved[block]:
            self._prove(block, out)

    def write(self, block: int, data: Tensor, mark: int) -> None:
        if self.readonly:
            raise StoreError(f"{self.path} is only read")
        moving = data[: self.sizes[block].moving]
        self._put(self._at(self.free), moving)
        if self.fsync:
            _sync(self.fd)
        self.sums[block] = _crc(moving), self.sums[block][1]
        self.place[block], self.free = self.free, self.place[block]
        self.marks[block] = mark
        self._record(block)

    def home(self, block: int) -> tuple[Tensor, Tensor]:
        size, at = self.sizes[block], self._at(self.place[block])
        still = self.bytes[self.still[block] :][: size.nbytes - size.moving]
        return self.bytes[at : at + size.moving], still

    def close(self) -> None:
        """Give the files back."""
        for fd in (self.fd, self.marked):
            if fd >= 0:
                os.close(fd)
        self.fd = self.marked = -1

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()

    def _open(self, *, readonly: bool = False) -> None:
        how = os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT
        self.marked = os.open(self.index, how, 0o644)
        try:
            lock = fcntl.LOCK_SH if readonly else fcntl.LOCK_EX
            fcntl.flock(self.marked, lock | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise StoreError(f"{self.path} is in use by another run") from None
        self.fd = os.open(self.path, how, 0o644)

    def _at(self, place: int) -> int:
        return self.first + place * self.room

    def _create(self) -> None:
        self._open()
        os.ftruncate(self.marked, 0)  # first: blocks without marks are no store
        try:
            os.ftruncate(self.fd, 0)
            if hasattr(os, "posix_fallocate"):  # a full disk is found now, not later
                os.posix_fallocate(self.fd, 0, self.total)
            else:
                os.ftruncate(self.fd, self.total)
        except OSError as error:
            raise StoreError(
                f"{self.path} needs {self.total / 1e9:.2f} GB for the blocks: "
                f"{error.strerror or error}"
            ) from error
        self._write_header()

    def _resume(self) -> bool:
        """Read header and marks; False where a fill was not finished."""
        self._open(readonly=self.readonly)
        data = os.pread(self.marked, HEADER + 64 * len(self.sizes), 0)
        head = _header(data, self.index)
        if head is None or not head["filled"]:
            self.close()
            return False
        if head["layout"] != self.head["layout"]:
            raise StoreError(
                f"{self.path} holds another model's blocks (layout {head['layout']}, "
                f"this model's is {self.head['layout']}): use another path"
            )
        found = os.fstat(self.fd).st_size
        if found != self.total:
            raise StoreError(
                f"{self.path} has {found} bytes, expected {self.total}: it was cut. "
                "Delete it and its .marks; the log rebuilds it from the base weights."
            )
        self.head = head
        for b in range(len(self.sizes)):
            self._read_record(b, data)
        self.proved = [False] * len(self.sizes)
        (self.free,) = set(range(len(self.sizes) + 1)) - set(self.place)
        return True

    def _read_record(self, b: int, data: bytes) -> None:
        best: tuple[int, ...] = ()
        for half in (0, 1):
            at = HEADER + 64 * b + 32 * half
            part = data[at : at + RECORD.size]
            if len(part) < RECORD.size:
                continue
            crc, *rest = RECORD.unpack(part)
            if zlib.crc32(part[4:]) == crc and (not best or rest[0] > best[0]):
                best = tuple(rest)
        if not best:
            raise StoreError(f"{self.index}: both records of block {b} are damaged")
        self.turn[b], self.place[b], moving, still, self.marks[b] = best
        self.sums[b] = moving, still

    def _record(self, b: int) -> None:
        self.turn[b] += 1
        rest = RECORD.pack(
            0, self.turn[b], self.place[b], *self.sums[b], self.marks[b]
        )[4:]
        data = struct.pack("<I", zlib.crc32(rest)) + rest
        os.pwrite(self.marked, data, HEADER + 64 * b + 32 * (self.turn[b] & 1))
        if self.fsync:
            _sync(self.marked)

    def _write_header(self) -> None:
        text = json.dumps(self.head).encode()
        head = MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text
        if len(head) > HEADER:
            raise StoreError(f"{self.index}: a header of {len(head)} bytes")
        os.pwrite(self.marked, head.ljust(HEADER, b"\0"), 0)

    def _put(self, at: int, data: Tensor) -> None:
        view = _raw(data)
        try:
            while view:
                done = os.pwrite(self.fd, view, at)
                view, at = view[done:], at + done
        except OSError as error:
            raise StoreError(
                f"{self.path}: a block could not be written ({error.strerror or error})"
                "; the block that was there is whole"
            ) from error

    def _get(self, at: int, out: Tensor) -> None:
        view = _raw(out)
        while view:
            done = os.preadv(self.fd, [view], at)
            if not done:
                raise StoreError(f"{self.path} ends at byte {at}: it was cut")
            view, at = view[done:], at + done

    def _prove(self, block: int, data: Tensor) -> None:
        size = self.sizes[block]
        found = _crc(data[: size.moving]), _crc(data[size.moving : size.nbytes])
        if found != self.sums[block]:
            raise StoreError(
                f"{self.path}: block {block} fails its checksum; the file was edited "
                "or damaged. Delete it and its .marks; the log rebuilds it from the "
                "base weights."
            )
        self.proved[block] = True


def _header(data: bytes, path: Path) -> dict[str, Any] | None:
    """The header, None where it was never finished."""
    if len(data) < HEADER:
        return None
    if not data.startswith(MAGIC):
        raise StoreError(f"{path} is not a zolab store")
    size, crc = struct.unpack_from("<II", data, len(MAGIC))
    text = data[len(MAGIC) + 8 : len(MAGIC) + 8 + size]
    if zlib.crc32(text) != crc:
        raise StoreError(f"{path}: the header fails its checksum")
    return json.loads(text)


def _raw(data: Tensor) -> memoryview:
    array: Any = data.numpy()
    return memoryview(array)


def _crc(data: Tensor) -> int:
    return zlib.crc32(_raw(data)) if len(data) else 0


def _paged(n: int) -> int:
    return -(-n // PAGE) * PAGE
