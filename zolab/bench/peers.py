"""The packages that do an estimator's job, as they are used by their own examples.

    python -m venv peers; peers/bin/pip install torch transformers torchzero torchopt \\
        evotorch; peers/bin/pip install --no-deps mezo
    python -m zolab.bench estimators --peers peers/bin/python

They stand in no extra: `mezo` wants transformers below 5, evotorch brings Ray. Each
moves every weight of the model by plain SGD, in fp32, as our row beside it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Closure = Callable[[], Tensor]
Step = Callable[[Closure], Any]
LR, EPS = 1e-9, 1e-3


@dataclass(frozen=True)
class Peer:
    """A package's row; `beside` is the row of ours that asks as much."""

    package: str
    label: str
    beside: str
    make: Callable[[nn.Module], Step]


def _mezo(model: nn.Module) -> Step:
    import mezo

    seeds = count()

    def step(closure: Closure) -> Any:
        return mezo.update(model, None, lambda m, x: closure(), EPS, LR, next(seeds))

    return step


def _torchzero(pick: Callable[[Any], Any]) -> Callable[[nn.Module], Step]:
    def make(model: nn.Module) -> Step:
        import torchzero as tz

        opt = tz.Optimizer(model.parameters(), pick(tz.m), tz.m.LR(LR))
        return lambda closure: opt.step(lambda backward=True: closure())

    return make


def _dual(model: nn.Module) -> Step:
    """Fused attention has no forward derivative, so torchzero's needs the formula."""
    step = _torchzero(lambda m: m.ForwardGradient())(model)

    def plainly(closure: Closure) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return step(closure)

    return plainly


class Loss(nn.Module):
    """A closure as a module, so that its model's parameters can be swapped."""

    def __init__(self, model: nn.Module, closure: Closure) -> None:
        super().__init__()
        self.model, self.closure = model, closure

    def forward(self) -> Tensor:
        return self.closure()


def _torchopt(model: nn.Module) -> Step:
    """Its decorator makes a loss whose backward is the estimate."""
    from torchopt.diff.zero_order import zero_order

    def step(closure: Closure) -> None:
        module = Loss(model, closure)
        names, values = zip(*module.named_parameters(), strict=True)

        def loss(*weights: Tensor) -> Tensor:
            swapped = dict(zip(names, weights, strict=True))
            return torch.func.functional_call(module, swapped, ())

        normal = torch.distributions.Normal(0.0, 1.0)
        every = tuple(range(len(values)))
        asked = zero_order(normal, "antithetic", every, 1, EPS)(loss)
        slopes = torch.autograd.grad(asked(*values), values)
        with torch.no_grad():
            for w, g in zip(values, slopes, strict=True):
                w.sub_(g, alpha=LR)

    return step


def _evotorch(model: nn.Module) -> Step:
    """PGPE: antithetic pairs, centred ranks, one dense vector a member."""
    from evotorch import Problem
    from evotorch.algorithms import PGPE

    now: list[Closure] = []
    start = nn.utils.parameters_to_vector(model.parameters()).detach()

    @torch.no_grad()
    def loss(vector: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(vector, model.parameters())
        return now[0]()

    problem = Problem(
        "min",
        loss,
        solution_length=len(start),
        initial_bounds=(-1, 1),
        dtype=start.dtype,
    )
    search = PGPE(
        problem,
        popsize=4,
        center_init=start,
        center_learning_rate=LR,
        stdev_init=EPS,
        stdev_learning_rate=0.0,
        optimizer="sgd",
    )

    def step(closure: Closure) -> None:
        now[:] = [closure]
        search.step()

    return step


PEERS = {
    "mezo": Peer("mezo", "mezo.update", "spsa", _mezo),
    "tz-mezo": Peer(
        "torchzero", "torchzero MeZO", "spsa", _torchzero(lambda m: m.MeZO(h=EPS))
    ),
    "tz-spsa2": Peer(
        "torchzero",
        "torchzero SPSA, 2 samples",
        "spsa2",
        _torchzero(lambda m: m.SPSA(h=EPS, n_samples=2)),
    ),
    "tz-one2": Peer(
        "torchzero",
        "torchzero RandomizedFDM forward, 2",
        "one_sided2",
        _torchzero(lambda m: m.RandomizedFDM(h=EPS, n_samples=2, formula="forward")),
    ),
    "tz-forward": Peer(
        "torchzero",
        "torchzero ForwardGradient",
        "forward",
        _dual,
    ),
    "torchopt": Peer("torchopt", "torchopt zero_order, antithetic", "spsa", _torchopt),
    "evotorch": Peer("evotorch", "evotorch PGPE, 4 members", "es", _evotorch),
}
