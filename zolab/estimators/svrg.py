"""MeZO-SVRG: mini-batch slopes, corrected by what the batch said at an anchor.

One step is one period: the anchor is the stored point theta_0, a full-batch slope moves
away from it, then `inner` mini-batch steps, each with its own z and its own batch:

    s_0 = slope of "full" at theta_0 along z_0
    theta_1     = theta_0 - anchor_lr s_0 z_0
    theta_{j+1} = theta_j - lr [(s_j(theta_j) - s_j(theta_0)) z_j + s_0 z_0]

with s_j the two-sided slope of batch j along z_j, the same z_j and the same batch at
both points. The difference is O(lr), so the batch's noise cancels; with another z or
another batch at the anchor it would double.

Within a period nothing is stored: theta_j is theta_0 plus the terms so far. The period
is one gradient with a coefficient for each of z_0 ... z_inner, so the log holds all
that a replay or a resume needs, and no second copy of the weights exists. Weight decay
is applied once a period; bf16 and fp16 round once a period.

The closure is the first batch ("loss"), further ones are named "batch2", "batch3", ...

    opt.step(batch, full=everything, batch2=another)

`lr` must be the optimizer's, one for all groups: the inner points are asked before the
optimizer moves. With an lr schedule the step is still a sum of the same terms, but the
inner points are not on its path.

T. Gautam et al., Variance-reduced zeroth-order methods for fine-tuning language models,
arXiv:2404.08080. Their q is inner + 1, anchor_lr their eta_1 and lr their eta_2. They
keep the anchor and its full-batch estimate as two copies of the weights.

Cost a period: 2 passes over "full" and 4 inner forward passes.
"""

from __future__ import annotations

from typing import Any

from zolab.estimators.ahead import ahead, check_lr
from zolab.estimators.base import Keys, Proposal, check_estimator
from zolab.gradient import Answer, Direction, Probe, Term, ZOGradient, round16


class SVRG:
    """A full-batch step and `inner` corrected mini-batch steps, as one gradient."""

    def __init__(
        self,
        *,
        lr: float,
        anchor_lr: float | None = None,
        eps: float = 1e-3,
        inner: int = 1,
        family: str = "rademacher",
    ) -> None:
        check_estimator(eps, 1, family)
        if inner < 1:
            raise ValueError(f"inner is {inner}, expected at least 1 mini-batch step")
        anchor_lr = lr if anchor_lr is None else anchor_lr
        check_lr("lr", lr)
        check_lr("anchor_lr", anchor_lr)
        self.eps, self.family = round16(eps), family
        self.lr, self.anchor_lr, self.inner = lr, anchor_lr, inner
        self.num_queries = inner + 1

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": "SVRG",
            "eps": self.eps,
            "inner": self.inner,
            "lr": self.lr,
            "anchor_lr": self.anchor_lr,
        }

    def propose(self, key: Keys) -> Proposal:
        first = Direction(key(0), self.family)
        full = self._slope((yield self._pair((), first, "full")))
        terms = [(first, self.anchor_lr / self.lr * full)]
        for j in range(1, self.num_queries):
            d, batch = Direction(key(j), self.family), "loss" if j == 1 else f"batch{j}"
            here = self._pair(ahead(terms, self.lr), d, batch)
            answers = yield here + self._pair((), d, batch)
            moved = self._slope(answers[:2]) - self._slope(answers[2:])
            terms[0] = (first, terms[0][1] + full)
            terms.append((d, moved))
        return ZOGradient(tuple(terms))

    def _pair(self, to: tuple[Term, ...], d: Direction, name: str) -> list[Probe]:
        return [Probe((*to, (d, s * self.eps)), name) for s in (1, -1)]

    def _slope(self, pair: list[Answer]) -> float:
        up, down = pair
        return (up.value - down.value) / (2 * self.eps)
