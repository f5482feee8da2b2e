"""ZO-RankSGD: only the order of the losses counts, as when a person compares.

Of m points theta + eps z_i an oracle names the k best, in order. Each pair whose order
is then known is an edge from the better i to the worse j:

    gradient = 1/|E| sum_edges (z_j - z_i),     |E| = k (2 m - k - 1) / 2
    c_j = (better ones known - worse ones known) / |E|

Any increasing map of the loss gives the same terms, to the bit. A tie is no edge: equal
losses pull nowhere, and points that tie with the k-th best count among the best. |E| is
the number without ties, so fewer known pairs make a shorter step. With k = m it is 4
times the one-sided evolution strategy with centred ranks, ties included.

The order says nothing of a step's length. `search=n` asks the same oracle again: the
present point and n steps of lr, lr / 2, ..., lr / 2^(n - 1) along the gradient. The
best is taken, of equal ones the shortest; it is 0 when no step is better. lr is the
optimizer's, one for all groups.

Z. Tang, D. Rybin, T.-H. Chang, Zeroth-order optimization meets human feedback:
provable learning via ranking oracles, arXiv:2303.03751 (normal z).

Cost: m forward passes a step, m + n + 1 with a search (m when all tie).

What a plain sort would get wrong: it breaks ties by position, and a batch of equal
rewards would move the weights.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from zolab.estimators.ahead import ahead
from zolab.estimators.base import (
    Family,
    Keys,
    Proposal,
    check_estimator,
    directions,
)
from zolab.gradient import Probe, ZOGradient, round16


class RankSGD:
    """`num_queries` (m) points, of which the `best` (k, all if None) are ranked."""

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        num_queries: int = 16,
        family: str | Family = "rademacher",
        best: int | None = None,
        search: int = 0,
    ) -> None:
        check_estimator(eps, num_queries, family)
        if num_queries < 2:
            raise ValueError(
                f"num_queries is {num_queries}, expected 2 or more to rank"
            )
        best = num_queries if best is None else best
        if not 1 <= best <= num_queries:
            raise ValueError(f"best is {best}, expected 1 to {num_queries}")
        if search < 0:
            raise ValueError(f"search is {search}, expected 0 (none) or more steps")
        self.eps, self.num_queries, self.family = round16(eps), num_queries, family
        self.best, self.search = best, search

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": "RankSGD",
            "eps": self.eps,
            "num_queries": self.num_queries,
            "best": self.best,
            "search": self.search,
        }

    def propose(self, key: Keys) -> Proposal:
        ds = directions(self.family, key, self.num_queries)
        answers = yield [Probe(((d, self.eps),)) for d in ds]
        c = edge_weights([a.value for a in answers], self.best)
        g = ZOGradient(tuple(zip(ds, c, strict=True)))
        if self.search == 0 or not any(c):
            return g
        # The present point is asked again: a sampled loss compares within an ask only.
        sizes = [0.0, *(0.5**i for i in reversed(range(self.search)))]
        points = [Probe(ahead((s * g).terms, key.rate)) for s in sizes[1:]]
        losses = [a.value for a in (yield [Probe(), *points])]
        return sizes[losses.index(min(losses))] * g


def edge_weights(losses: Sequence[float], best: int) -> list[float]:
    """(edges into a point - edges out of it) / |E|; positive is worse than most."""
    m, order = len(losses), sorted(losses)
    edges = best * (2 * m - best - 1) / 2
    last = order[best - 1]
    top = bisect_right(order, last)
    weights = []
    for x in losses:
        into = min(bisect_left(order, x), top)
        out = m - bisect_right(order, x) if x <= last else 0
        weights.append((into - out) / edges)
    return weights
