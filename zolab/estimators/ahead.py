"""Looking ahead: the terms that a step along a gradient would add to the weights."""

from __future__ import annotations

from collections.abc import Sequence

from zolab.gradient import Term, Update, round32


def ahead(terms: Sequence[Term], lr: float) -> tuple[Term, ...]:
    """A probe's terms for theta - lr * sum c z.

    Rounded as the log and the engine will round them: in fp32, without weight decay,
    the point that is asked is to the bit the point where SGD lands.
    """
    stored = tuple((d, round32(c)) for d, c in terms)
    scales = Update(stored, (round32(lr),), (1.0,)).scales(0)
    return tuple((d, s) for (d, _), s in zip(stored, scales, strict=True))
