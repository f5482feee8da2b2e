"""Sizes and rates as people write them: 8GB, 12GB/s, 100T, 16x512; and back again."""

from __future__ import annotations

import re

from zolab.errors import ZolabError

POWERS = {"": 0, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15}


class PlanError(ZolabError):
    """A plan was asked for something that it cannot read or does not know."""


def quantity(text: str, unit: str) -> float:
    """The number in "8GB", "12 GB/s" or "100T"; `unit` ("B", "B/s", "FLOP/s") may miss.

    Powers of ten, as disks, links and FLOP/s are counted; KiB, MiB and GiB are powers
    of two. Raises PlanError unless it is a positive number.
    """
    pattern = rf"\s*([\d.]+(?:e[+-]?\d+)?)\s*([KMGTP]?)(i?)\s*({re.escape(unit)})?\s*"
    found = re.fullmatch(pattern, text, re.I)
    try:
        if found is None:
            raise ValueError
        size = float(found[1])
    except ValueError:
        good = {"B": "8GB", "B/s": "12GB/s"}.get(unit, "100T")
        raise PlanError(f"{text!r} is no number of {unit}; write {good}") from None
    if not size > 0:
        raise PlanError(f"{text!r} is not above zero")
    power = POWERS[found[2].upper()]
    return size * (1024 ** (power // 3) if found[3] else 10.0**power)


def batch(text: str) -> tuple[int, int]:
    """(sequences, tokens each) of "16x512"; raises PlanError."""
    found = re.fullmatch(r"\s*(\d+)\s*[xX*]\s*(\d+)\s*", text)
    if found is None or not int(found[1]) * int(found[2]):
        raise PlanError(f"batch is {text!r}, expected sequences x tokens: 16x512")
    return int(found[1]), int(found[2])


def size(count: float, unit: str = "B") -> str:
    """Three digits and a power of ten: 25.7 GB, 941 MB, 100 TFLOP/s."""
    for letter, power in reversed(POWERS.items()):
        if count >= 10.0**power or not letter:
            x = count / 10.0**power
            digits = 0 if x >= 99.95 else 1 if x >= 9.995 else 2
            return f"{x:.{digits}f} {letter}{unit}"
    raise AssertionError


def seconds(time: float) -> str:
    """0.42 s, 35 min, 2.1 h: two digits or more."""
    unit, name = (1, "s") if time < 120 else (60, "min") if time < 7200 else (3600, "h")
    x = time / unit
    return f"{x:.2g} {name}" if x < 100 else f"{x:.0f} {name}"
