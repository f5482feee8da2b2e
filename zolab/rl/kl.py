"""Kullback-Leibler divergence from a reference, estimated from sampled tokens.

With r = log ref(y) - log p(y) at tokens y drawn from the policy p:

    k1 = -r              unbiased, signed, high variance
    k2 = r^2 / 2         never negative, biased
    k3 = e^r - 1 - r     never negative, unbiased

Put in the reward (detached) all three do what their value says, and k1 gives the exact
gradient of KL(p | ref). Put in the loss, where autograd differentiates the estimate and
not the sampling, only k2 does what it is used for:

    E[grad k1] = 0                    the score function: no pull at all, pure noise
    E[grad k2] = grad KL(p | ref)     the reverse KL, exactly
    E[grad k3] = grad KL(ref | p)     the forward KL: a good value, another pull

"k3+" has k3's value and k2's gradient. All of this is on tokens that p itself drew.

J. Schulman, Approximating KL divergence, joschu.net/blog/kl-approx.html (2020). In the
loss: Z. Shao et al. (GRPO, k3), arXiv:2402.03300. In the reward: RLOO, ReMax, PPO.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def k1(logps: Tensor, ref: Tensor) -> Tensor:
    """log p - log ref; elementwise, in nats; negative where ref likes y more."""
    return logps - ref


def k2(logps: Tensor, ref: Tensor) -> Tensor:
    """(log p - log ref)^2 / 2."""
    return (logps - ref).square() / 2


def k3(logps: Tensor, ref: Tensor) -> Tensor:
    """e^r - 1 - r, with r = log ref - log p; expm1, since r is small early in a run."""
    r = ref - logps
    return r.expm1() - r


def k3_plus(logps: Tensor, ref: Tensor) -> Tensor:
    """k3's value with k2's gradient."""
    value, slope = k3(logps, ref).detach(), k2(logps, ref)
    return value + slope - slope.detach()


KLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3+": k3_plus,
}
