"""The log that is the checkpoint: sixteen bytes a step, append-only, checked.

    header   magic, length, JSON (seed, estimator, rule, slots, base hash, plan), crc
    record   crc32 | kind and step | lr a group | coefficient a query | scalars (fp32)

A record's crc continues the crc of all that stands before it, so a flipped bit, a
missing record and a foreign one are all seen. Keys are not stored: direction i of
step t is key(seed, t, i). The base weights and this file are the run.

A write is appended before the weights move. A tail shorter than a record is a write
that died and is cut; anything else that does not add up raises JournalError.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zolab.errors import JournalError
from zolab.gradient import round32

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, two writers are not noticed
    fcntl = None  # type: ignore[assignment]

MAGIC = b"zolab log 1\n"
STEP, REFUSED, SNAPSHOT = 0, 1, 2
KIND_BITS = 3
MAX_STEP = (1 << (32 - KIND_BITS)) - 1


@dataclass(frozen=True)
class Record:
    """One line of the log, fp32: `lr` a group, `coefficients` a query, `scalars`."""

    kind: int
    step: int
    lr: tuple[float, ...] = ()
    coefficients: tuple[float, ...] = ()
    scalars: tuple[float, ...] = ()
    payload: bytes = b""


class Journal:
    """An open log. `Journal(path, header)` opens it, or makes it when it is missing.

    An existing file's header must equal `header` where both have a key; the error
    names the key, what was found and what was expected. `fsync=True` survives power
    loss, not only a killed process.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: dict[str, Any] | None = None,
        *,
        fsync: bool = False,
        readonly: bool = False,
    ) -> None:
        self.path, self.fsync = Path(path), fsync
        exists = self.path.exists() and self.path.stat().st_size > 0
        if not exists and (header is None or readonly):
            raise JournalError(f"no journal at {self.path}")
        flags = os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT
        self.fd = os.open(self.path, flags | getattr(os, "O_BINARY", 0), 0o644)
        try:
            if not readonly:
                self._lock()
            if os.fstat(self.fd).st_size:  # again: another run may just have made it
                self.header, self.start, self.crc = self._read_header()
                _compare(self.header, header or {}, self.path)
            else:
                assert header is not None
                self.header = json.loads(json.dumps(header))
                self.start, self.crc = self._write_header()
            self.wanted = tuple(
                self.header.get(n, 0) for n in ("groups", "queries", "scalars")
            )
            self.layout = struct.Struct(f"<I{sum(self.wanted)}f")
            self.size = 4 + self.layout.size
            self.records, self.end = self._scan()
            if not readonly and self.end < os.fstat(self.fd).st_size:
                os.ftruncate(self.fd, self.end)
        except BaseException:
            self.close()
            raise

    def append(
        self,
        step: int,
        lr: Sequence[float],
        coefficients: Sequence[float],
        scalars: Sequence[float] = (),
    ) -> None:
        """Write a step; JournalError (and the file as before) when it cannot be."""
        numbers = tuple(lr), tuple(coefficients), tuple(scalars)
        self._write(Record(STEP, step, *numbers))

    def refuse(self, step: int) -> None:
        """Write that a step was refused: nothing moved."""
        self._write(Record(REFUSED, step))

    def snapshot(self, step: int, digest: bytes) -> None:
        """Write that `snapshot_path(step)` holds the weights after `step` steps."""
        self._write(Record(SNAPSHOT, step, payload=digest))

    def snapshot_path(self, step: int) -> Path:
        """Where the weights after `step` steps lie, beside the log."""
        return self.path.with_name(f"{self.path.name}.{step}.safetensors")

    @property
    def next_step(self) -> int:
        """The step that comes after the last record."""
        last = self.records[-1] if self.records else None
        return 0 if last is None else last.step + (last.kind != SNAPSHOT)

    @property
    def name(self) -> str:
        """What tells this run from others: a hash of its header."""
        return f"{zlib.crc32(json.dumps(self.header, sort_keys=True).encode()):08x}"

    def close(self) -> None:
        """Give the file back; a closed journal can be opened again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()

    def _write(self, record: Record) -> None:
        body = self._encode(record)
        crc = zlib.crc32(body, self.crc)
        try:
            self._put(struct.pack("<I", crc) + body, self.end)
        except OSError as error:
            os.ftruncate(self.fd, self.end)
            raise JournalError(
                f"{self.path}: step {record.step} could not be logged "
                f"({error.strerror or error}); nothing moved"
            ) from error
        self.records.append(record)
        self.crc, self.end = crc, self.end + self.size

    def _put(self, data: bytes, at: int) -> None:
        os.lseek(self.fd, at, os.SEEK_SET)
        while data:
            data = data[os.write(self.fd, data) :]
        if self.fsync:
            os.fsync(self.fd)

    def _encode(self, r: Record) -> bytes:
        if not 0 <= r.step <= MAX_STEP:
            raise JournalError(f"step {r.step} is outside 0..{MAX_STEP}")
        word = struct.pack("<I", r.kind << (32 - KIND_BITS) | r.step)
        if r.kind == STEP:
            found = len(r.lr), len(r.coefficients), len(r.scalars)
            if found != self.wanted:
                raise JournalError(
                    f"{found} learning rates, coefficients and scalars, expected "
                    f"{self.wanted}"
                )
            return self.layout.pack(
                r.kind << (32 - KIND_BITS) | r.step,
                *(*r.lr, *r.coefficients, *r.scalars),
            )
        return word + r.payload.ljust(self.layout.size - 4, b"\0")

    def _decode(self, body: bytes) -> Record:
        (word,) = struct.unpack_from("<I", body)
        kind, step = word >> (32 - KIND_BITS), word & MAX_STEP
        if kind == STEP:
            values = self.layout.unpack(body)[1:]
            a, b = self.wanted[0], sum(self.wanted[:2])
            return Record(kind, step, values[:a], values[a:b], values[b:])
        return Record(kind, step, payload=body[4:])

    def _scan(self) -> tuple[list[Record], int]:
        data = self._all()
        records: list[Record] = []
        at, crc = self.start, self.crc
        while at + self.size <= len(data):
            (stored,) = struct.unpack_from("<I", data, at)
            body = data[at + 4 : at + self.size]
            crc = zlib.crc32(body, crc)
            if crc != stored:
                raise JournalError(
                    f"{self.path}: record {len(records)} (byte {at}) fails its "
                    "checksum; the log was edited, mixed with another or damaged. "
                    f"The {len(records)} records before it are sound."
                )
            records.append(self._decode(body))
            at += self.size
        self.crc = crc
        return records, at

    def _write_header(self) -> tuple[int, int]:
        text = json.dumps(self.header, sort_keys=True).encode()
        head = MAGIC + struct.pack("<I", len(text)) + text
        crc = zlib.crc32(head)
        try:
            self._put(head + struct.pack("<I", crc), 0)
        except OSError as error:
            os.ftruncate(self.fd, 0)
            raise JournalError(f"{self.path}: {error.strerror or error}") from error
        return len(head) + 4, crc

    def _read_header(self) -> tuple[dict[str, Any], int, int]:
        data = self._all()
        if not data.startswith(MAGIC):
            raise JournalError(f"{self.path} is not a zolab journal")
        at = len(MAGIC)
        if len(data) < at + 4:
            raise JournalError(f"{self.path}: the header is cut off")
        end = at + 4 + struct.unpack_from("<I", data, at)[0]
        if len(data) < end + 4:
            raise JournalError(f"{self.path}: the header is cut off")
        crc = zlib.crc32(data[:end])
        if struct.unpack_from("<I", data, end)[0] != crc:
            raise JournalError(f"{self.path}: the header fails its checksum")
        return json.loads(data[at + 4 : end]), end + 4, crc

    def _all(self) -> bytes:
        os.lseek(self.fd, 0, os.SEEK_SET)
        parts: Iterator[bytes] = iter(lambda: os.read(self.fd, 1 << 20), b"")
        return b"".join(parts)

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JournalError(
                    f"{self.path} is in use by another run; close it first"
                ) from None


def _compare(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    wanted = json.loads(json.dumps(wanted))
    for key in wanted:
        if key in found and found[key] != wanted[key]:
            raise JournalError(
                f"{path} belongs to another run: "
                + _difference(f"its {key}", found[key], wanted[key])
            )


def _difference(name: str, found: Any, wanted: Any) -> str:
    """Of two settings with the same names, only those that differ."""
    both = isinstance(found, dict) and isinstance(wanted, dict)
    if both and found.keys() == wanted.keys():
        keys = [k for k in found if found[k] != wanted[k]]
        found, wanted = ({k: x[k] for k in keys} for x in (found, wanted))
    return f"{name} is {_short(found)}, this one has {_short(wanted)}"


def _short(x: Any) -> str:
    text = json.dumps(x)
    return text if len(text) < 120 else text[:117] + "..."


def storable(values: Sequence[float]) -> tuple[float, ...]:
    """The values as the log will give them back."""
    return tuple(round32(v) for v in values)
