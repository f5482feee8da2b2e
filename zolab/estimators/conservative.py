"""Conservative SPSA: the step is taken, mirrored or left, whichever loss is lowest.

    g = (L(theta + eps z) - L(theta - eps z)) / (2 eps)
    of theta, theta - lr g z, theta + lr g z: the lowest;  a tie stays at theta

A step that would raise this batch's loss is not made, so a large lr does no harm on
the batch that is asked. On another batch it may: what is compared is noise, too.

Y. Zhang et al., Revisiting zeroth-order optimization for memory-efficient LLM
fine-tuning, arXiv:2402.11592 (ZO-SGD-Cons).

Cost: 5 forward passes a step. The three points are asked at the optimizer's lr, one
for all groups and without weight decay, and are to the bit where SGD lands.

Where published code differs: it reaches the points by adding and subtracting in place
through the optimizer, so under momentum a step back by -2 is not the way back, and of
equal losses it takes the step uphill.
"""

from __future__ import annotations

from zolab.estimators.ahead import ahead
from zolab.estimators.base import Keys, Proposal
from zolab.estimators.spsa import SPSA
from zolab.gradient import Probe


class Conservative(SPSA):
    """SPSA, then a look at both ends of the step; `num_queries` directions."""

    def propose(self, key: Keys) -> Proposal:
        g = yield from super().propose(key)
        sides = (1.0, -1.0)
        points = [Probe(ahead((s * g).terms, key.rate)) for s in sides]
        stay, *losses = [a.value for a in (yield [Probe(), *points])]
        if min(losses) >= stay:
            return 0.0 * g
        return sides[losses.index(min(losses))] * g
