"""The two rates of this machine, measured: its products and its link.

On a CPU the link is memory itself: a block is copied from one place to another.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from zolab.plan.pace import Machine

REPEATS = 3
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def measure(dtype: str = "bf16", *, side: int = 0) -> Machine:
    """FLOP/s of a square product in `dtype`, bytes a second of a copy to the device.

    The best of three; less than a second on a CPU. `side` of the matrices: 4096 on a
    GPU, 1024 elsewhere.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    side = side or (4096 if cuda else 1024)
    a = torch.randn(side, side, device=device).to(KINDS[dtype])
    # A copy larger than the caches.
    host = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=cuda)
    there = torch.empty_like(host, device=device)
    product = _best(lambda: a @ a, cuda)
    copy = _best(lambda: there.copy_(host, non_blocking=True), cuda)
    return Machine(flops=2 * side**3 / product, link=host.numel() / copy)


def _best(job: Callable[[], object], cuda: bool) -> float:
    job()
    found = []
    for _ in range(REPEATS):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        job()
        if cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)
