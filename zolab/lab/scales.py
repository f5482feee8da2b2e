"""How much work a chapter does here: one environment variable, the same cells."""

from __future__ import annotations

import os
from typing import TypeVar

from zolab.doctor import SCALES
from zolab.errors import ZolabError

T = TypeVar("T")


class ScaleError(ZolabError):
    """ZOLAB_SCALE names no scale, or a choice leaves the smallest one out."""


def scale() -> str:
    """ZOLAB_SCALE: tiny, laptop (the default), overnight or gpu.

    tiny: 30 s a chapter on two cores. laptop: 10 minutes on four. overnight: 8 hours.
    gpu: 25 minutes on one large card. Raises ScaleError on any other word.
    """
    name = os.environ.get("ZOLAB_SCALE") or "laptop"
    if name not in SCALES:
        choices = ", ".join(SCALES)
        raise ScaleError(f"ZOLAB_SCALE is {name!r}; it can be {choices}")
    return name


def pick(*, tiny: T, **larger: T) -> T:
    """The value for this scale, or for the next smaller one that has a value.

    pick(tiny=20, laptop=200) is 200 at laptop, overnight and gpu.
    """
    unknown = set(larger) - set(SCALES)
    if unknown:
        raise ScaleError(f"no scale {sorted(unknown)}; there are {', '.join(SCALES)}")
    values = {"tiny": tiny, **larger}
    allowed = SCALES[: SCALES.index(scale()) + 1]
    return next(values[s] for s in reversed(allowed) if s in values)
