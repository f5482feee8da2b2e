"""From a loss a token to one number: who divides by what is part of the algorithm.

    token-mean             sum_i sum_t x_it / sum_i T_i        long rows weigh more
    seq-mean-token-mean    1/N sum_i 1/T_i sum_t x_it          their tokens weigh less
    seq-mean-token-sum     1/N sum_i sum_t x_it                the policy gradient
    constant               sum_i sum_t x_it / (N L)            the same, L is given

The denominators are those of the whole batch, never of a micro-batch: then the losses
and gradients of micro-batches add up to the batch's, whatever the cut. Dividing each
micro-batch by its own tokens is the most repeated bug of this field.

GRPO is seq-mean-token-mean (arXiv:2402.03300), DAPO token-mean (arXiv:2503.14476), Dr.
GRPO constant (arXiv:2503.20783): with 1/T_i a long wrong answer is punished less a
token than a short one, and wrong answers grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zolab.rl.registry import named


@dataclass(frozen=True)
class Totals:
    """What the whole batch holds: `rows` (N), `tokens`, and `length` (L) if constant.

    A row without tokens (filtered away) still counts as a row.
    """

    rows: int
    tokens: int
    length: int | None = None

    @classmethod
    def of(cls, mask: Tensor, *, length: int | None = None) -> Totals:
        """Of the batch whose `mask` (N, T) this is."""
        return cls(len(mask), int(mask.sum()), length)


def token_mean(x: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Each token of the batch weighs the same."""
    return kept(x, mask).sum() / max(1, totals.tokens)


def seq_mean_token_mean(x: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """Each row of the batch weighs the same."""
    return (kept(x, mask).sum(1) / mask.sum(1).clamp(min=1)).sum() / totals.rows


def seq_mean_token_sum(x: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """A row weighs as much as it has tokens: log p of the whole answer."""
    return kept(x, mask).sum() / totals.rows


def constant(x: Tensor, mask: Tensor, totals: Totals) -> Tensor:
    """seq-mean-token-sum over a fixed length; ValueError when there is none."""
    if not totals.length:
        raise ValueError(
            'aggregation "constant" divides by a length that does not depend on the '
            f"answers; length is {totals.length}, expected the most tokens allowed"
        )
    return kept(x, mask).sum() / (totals.rows * totals.length)


def kept(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is, else 0; a NaN outside of the mask does not come through."""
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


AGGREGATIONS: dict[str, Callable[[Tensor, Tensor, Totals], Tensor]] = {
    "token-mean": token_mean,
    "seq-mean-token-mean": seq_mean_token_mean,
    "seq-mean-token-sum": seq_mean_token_sum,
    "constant": constant,
}


def aggregate(x: Tensor, mask: Tensor, how: str, totals: Totals) -> Tensor:
    """`x` (n, T) of some rows of the batch, as their part of the batch's one number."""
    result: Tensor = named(AGGREGATIONS, how, "aggregation")(x, mask, totals)
    return result
