"""Law 5: sixteen bytes a step, and anything wrong with the file is one clear error."""

import math
import struct

import pytest

from zolab.errors import JournalError
from zolab.journal import REFUSED, STEP, Journal, storable

HEADER = {"groups": 1, "queries": 1, "seed": 0, "base": "abc"}


def written(path, n=5, **header):
    with Journal(path, HEADER | header) as j:
        for i in range(n):
            j.append(i, [1e-3] * j.header["groups"], [0.5 * i] * j.header["queries"])
    return path


@pytest.mark.parametrize(("groups", "queries"), [(1, 1), (2, 1), (1, 4), (3, 5)])
def test_bytes_a_step(tmp_path, groups, queries):
    path = tmp_path / "a"
    with Journal(path, HEADER | {"groups": groups, "queries": queries}) as j:
        empty = path.stat().st_size
        j.append(0, [1.0] * groups, [2.0] * queries)
    assert path.stat().st_size - empty == 16 + 4 * (queries - 1) + 4 * (groups - 1)


def test_what_is_written_is_read(tmp_path):
    path = written(tmp_path / "a", 3)
    with Journal(path, readonly=True) as j:
        assert [r.step for r in j.records] == [0, 1, 2]
        assert [r.coefficients for r in j.records] == [(0.0,), (0.5,), (1.0,)]
        assert j.records[1].lr == storable([1e-3])
        assert j.next_step == 3


def test_resume_appends(tmp_path):
    path = written(tmp_path / "a", 3)
    with Journal(path, HEADER) as j:
        j.append(j.next_step, [1.0], [9.0])
    with Journal(path, readonly=True) as j:
        assert j.records[-1].coefficients == (9.0,)


def test_refused_steps_take_a_number(tmp_path):
    with Journal(tmp_path / "a", HEADER) as j:
        j.append(0, [1.0], [1.0])
        j.refuse(1)
        assert j.next_step == 2
    with Journal(tmp_path / "a", readonly=True) as j:
        assert [r.kind for r in j.records] == [STEP, REFUSED]


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_torn_tail_is_cut(tmp_path, cut):
    path = written(tmp_path / "a", 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path, HEADER) as j:
        assert j.next_step == 2
        j.append(2, [1e-3], [1.0])
    assert path.read_bytes() == whole


def test_every_flipped_bit_is_seen(tmp_path):
    path = written(tmp_path / "a", 3)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (0, 3, 7):
            path.write_bytes(
                whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
            )
            with pytest.raises(JournalError):
                Journal(path, readonly=True)


def test_a_missing_and_a_moved_record_are_seen(tmp_path):
    path = written(tmp_path / "a", 4)
    whole = path.read_bytes()
    head, r = whole[:-64], [whole[-64 + 16 * i :][:16] for i in range(4)]
    for wrong in (r[1:], [r[0], *r[2:]], [r[0], r[2], r[1], r[3]]):
        path.write_bytes(head + b"".join(wrong))
        with pytest.raises(JournalError, match="record . .* fails its checksum"):
            Journal(path, readonly=True)


def test_a_foreign_record_is_seen(tmp_path):
    a, b = written(tmp_path / "a", 2), written(tmp_path / "b", 3, seed=1)
    a.write_bytes(a.read_bytes() + b.read_bytes()[-16:])
    with pytest.raises(JournalError, match="record 2"):
        Journal(a, readonly=True)


def test_another_run_is_named(tmp_path):
    path = written(tmp_path / "a")
    with pytest.raises(JournalError, match="its seed is 0, this one has 7"):
        Journal(path, HEADER | {"seed": 7})


def test_of_a_setting_only_what_differs_is_named(tmp_path):
    path = written(tmp_path / "a", 1, estimator={"name": "SPSA", "eps": 0.5})
    with pytest.raises(JournalError, match="another run") as why:
        Journal(path, HEADER | {"estimator": {"name": "SPSA", "eps": 0.25}})
    assert 'estimator is {"eps": 0.5}, this one has {"eps": 0.25}' in str(why.value)


@pytest.mark.parametrize("content", [b"hello world, not a log", b"zolab log 1\n\x05"])
def test_not_a_journal(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(JournalError, match="not a zolab journal|header is cut off"):
        Journal(tmp_path / "a", readonly=True)


def test_missing(tmp_path):
    with pytest.raises(JournalError, match="no journal at"):
        Journal(tmp_path / "a", readonly=True)


def test_wrong_counts(tmp_path):
    with Journal(tmp_path / "a", HEADER) as j:
        with pytest.raises(
            JournalError, match=r"\(2, 1, 0\) learning rates[^(]* \(1, 1, 0\)"
        ):
            j.append(0, [1.0, 2.0], [1.0])
        with pytest.raises(JournalError, match="outside 0"):
            j.append(1 << 30, [1.0], [1.0])
        assert j.next_step == 0


def test_values_come_back_as_fp32():
    x = [math.pi, 1e-7, -1 / 3]
    assert storable(x) == struct.unpack("<3f", struct.pack("<3f", *x))
