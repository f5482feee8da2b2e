"""A row for every estimator: how its optimizer is made, and what one row is beside.

`passes` of a row is counted, not declared: the losses that a step asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import zolab
from zolab import masks
from zolab.engines.population import Population
from zolab.optimizers import ZOOptimizer
from zolab.space import Space

Step = Callable[[Callable[[], Any]], Any]


@dataclass(frozen=True)
class Row:
    """`make(model)` gives what a ZOOptimizer takes beside model, lr and journal."""

    label: str
    make: Callable[[nn.Module], dict[str, Any]]


def _asks(estimator: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    return lambda model: {"estimator": estimator(**kwargs)}


def _masked(choose: Callable[[Space], Any]) -> Callable[[nn.Module], dict[str, Any]]:
    def make(model: nn.Module) -> dict[str, Any]:
        return {"estimator": zolab.SPSA(), "masks": choose(Space.of(model))}

    return make


def _stored_bits(space: Space) -> Any:
    return masks.top({s.name: s.base.abs() for s in space}, 0.25)


def _coordinates(model: nn.Module) -> dict[str, Any]:
    """Two coordinates of the last block: all d of them would be d passes."""
    sizes = {s.name: s.numel for s in Space.of(model)}
    name = [n for n in sizes if n.endswith("fc2.weight")][-1]
    two = zolab.Coordinates(sizes, {name: 2})
    return {"estimator": zolab.CGE(two)}


def _modules(model: nn.Module) -> dict[str, Any]:
    globs = ["*embed*", "*layer*"]
    return {"estimator": zolab.ModuleWise(globs)}


def _population(model: nn.Module) -> dict[str, Any]:
    return _asks(zolab.EvolutionStrategy, **MEMBERS)(model) | {
        "engine": Population(members=4)
    }


MEMBERS: dict[str, Any] = {
    "num_queries": 2,
    "shaping": "ranks",
    "family": zolab.LowRank(rank=1, every=1),
}
ROWS = {
    "spsa": Row("SPSA (MeZO)", _asks(zolab.SPSA)),
    "spsa2": Row("SPSA, q 2", _asks(zolab.SPSA, num_queries=2)),
    "one_sided2": Row("OneSided, q 2", _asks(zolab.OneSided, num_queries=2)),
    "fzoo": Row("FZOO, N 4", _asks(zolab.FZOO, num_queries=4)),
    "cge": Row("CGE, 2 coordinates", _coordinates),
    "forward": Row("ForwardGradient", _asks(zolab.ForwardGradient)),
    "lozo": Row("SPSA, LowRank(2) (LOZO)", _asks(zolab.SPSA, family=zolab.LowRank())),
    "subzero": Row(
        "SPSA, Subspace(8) (SubZero)", _asks(zolab.SPSA, family=zolab.Subspace())
    ),
    "blocks": Row("ModuleWise, 2 blocks", _modules),
    "svrg": Row("SVRG, inner 1", _asks(zolab.SVRG)),
    "rank": Row("RankSGD, m 3", _asks(zolab.RankSGD, num_queries=3)),
    "es": Row(
        "EvolutionStrategy, q 2",
        _asks(zolab.EvolutionStrategy, num_queries=2, shaping="ranks"),
    ),
    "es_low": Row("  the same, LowRank(1)", _asks(zolab.EvolutionStrategy, **MEMBERS)),
    "population": Row("  the same, Population(4)", _population),
    "hizoo": Row("HiZOO", _asks(zolab.HiZOO)),
    "conservative": Row("Conservative", _asks(zolab.Conservative)),
    "smallest": Row(
        "SPSA, smallest 25 % (Sparse-MeZO)",
        _masked(lambda space: masks.smallest(space, 0.25)),
    ),
    "random": Row(
        "SPSA, a random 25 %", _masked(lambda space: masks.random(space, 0.25))
    ),
    "bits": Row("SPSA, stored bits, 25 %", _masked(_stored_bits)),
}


def stepper(
    name: str, model: nn.Module, journal: Path
) -> tuple[ZOOptimizer, Callable[[Callable[[], Any]], float]]:
    """A row's optimizer and its step; SVRG's full batch is the batch."""
    engine = {"engine": zolab.Resident(scratch="one")}
    kwargs = engine | ROWS[name].make(model)
    opt = ZOOptimizer(model, lr=1e-9, journal=journal, **kwargs)
    if name == "svrg":
        return opt, lambda closure: opt.step(closure, full=closure)
    return opt, opt.step
