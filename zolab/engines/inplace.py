"""Published MeZO as it is: the weights themselves are perturbed and restored.

    theta <- theta + eps z       L1
    theta <- theta - 2 eps z     L2
    theta <- theta + eps z       g = (L1 - L2) / (2 eps)
    theta <- theta - lr (g z + weight_decay theta)

S. Malladi et al., Fine-tuning language models with just forward passes,
arXiv:2305.17333. It exists to match the authors' program bit for bit, to be measured
against, and to be broken in a chapter; for training use `zolab.MeZO`. What differs:

- (theta + eps z) - 2 eps z + eps z is not theta. The weights walk at random, by 4e-8
  (fp32), 5e-4 (fp16) or 4e-3 (bf16) of their size a step, lr = 0 included; times
  sqrt(steps). A typical update is 5e-5 to 5e-4.
- In bf16 a probe of 1e-3 moves 3 % of the norm gains, the update assumes all.
- z comes from torch's global generator, which is seeded anew four times a step: z
  depends on the order, shapes, dtype and device of the tensors, and whatever else
  draws random numbers (dropout, sampling) sees the step's seed.
- Which weights decay is decided by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NO_DECAY = ("bias", "layer_norm", "layernorm")


class PublishedMeZO:
    """In-place SPSA with z ~ N(0, 1) in each tensor's dtype, from `seed` on.

    `lr`, `eps` and `weight_decay` may be changed between steps. After a step
    `projected_grad` is g, `step_seed` what named z, `losses` the pair (L1, L2).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model, self.lr, self.eps = model, lr, eps
        self.weight_decay = weight_decay
        self.seeds = np.random.RandomState(seed)
        self.projected_grad, self.step_seed = 0.0, 0
        self.losses = (0.0, 0.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:
        """One step on `closure()`, a number; returns L1, as the published log does.

        Leaves the model in eval mode and the global generator at the step's seed.
        """
        self.step_seed = int(self.seeds.randint(1_000_000_000))
        self.model.eval()
        self.perturb(1)
        up = closure()
        self.perturb(-2)
        down = closure()
        self.perturb(1)
        self.losses = float(up), float(down)
        self.projected_grad = float((up - down) / (2 * self.eps))
        self.update()
        return self.losses[0]

    def replay(
        self,
        log: Sequence[tuple[int, float]],
        *,
        probes: Sequence[float] = (1, -2, 1),
    ) -> None:
        """Play (step_seed, projected_grad) pairs on the base weights, no forward pass.

        The bits are the live run's when the probes, whose rounding the weights have
        kept, are walked as well. The published program has no such reader.
        """
        for self.step_seed, self.projected_grad in log:
            for times in probes:
                self.perturb(times)
            self.update()

    @torch.no_grad()
    def perturb(self, times: float) -> None:
        """theta <- theta + times eps z; not add_(alpha=), which fuses and differs."""
        for _, p, z in self._directions():
            p.data.add_(z.mul_(times * self.eps))

    @torch.no_grad()
    def update(self) -> None:
        """theta <- theta - lr (g z + weight_decay theta), each product rounded."""
        for name, p, z in self._directions():
            z.mul_(self.projected_grad)
            if self.weight_decay and not any(part in name for part in NO_DECAY):
                z.add_(self.weight_decay * p.data)
            p.data.sub_(z.mul_(self.lr))

    def _directions(self) -> Any:
        """(name, parameter, z) of every trainable tensor, z from the step's seed."""
        torch.manual_seed(self.step_seed)
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                z: Tensor = torch.empty_like(p.data).normal_()
                yield name, p, z
