"""pass@k: would one of k answers be right? Unbiased, from n answers of which c are.

    pass@k = 1 - C(n - c, k) / C(n, k)

the chance that k of the n, drawn without putting back, hold a right one. The plug-in
1 - (1 - c / n)^k draws with putting back and is too low (n = k = 8, c = 1: 0.66 for 1).

M. Chen et al., Evaluating large language models trained on code, arXiv:2107.03374.
"""

from __future__ import annotations

import math

from torch import Tensor


def pass_at_k(n: int, c: int, k: int) -> float:
    """Of one prompt: `c` of `n` answers are right. ValueError unless c, k fit in n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"c is {c} and k is {k} of n = {n} answers: expected 0 <= c")
    # The product of 1 - k / i is this ratio of binomials without large numbers.
    return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(right: Tensor, k: int) -> float:
    """Over prompts: `right` (P, n) bool says which of n answers to each are right."""
    if right.ndim != 2 or not right.numel():
        raise ValueError(f"right is {tuple(right.shape)}, expected (prompts, answers)")
    n = right.shape[1]
    each = [pass_at_k(n, int(c), k) for c in right.bool().sum(1).tolist()]
    return sum(each) / len(each)
