"""How much of a small update, and of a small probe, bf16 lets through.

The share of a wanted change d that was realised is <realised, d> / <d, d>: 1 when it
arrives on average, 0 when rounding swallows it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zolab import storage
from zolab.bench.record import Line
from zolab.bench.shapes import Setting
from zolab.engines import Resident
from zolab.gradient import Direction, Probe, Update
from zolab.noise import make_key
from zolab.space import Space


def run(setting: Setting) -> list[Line]:
    """Updates of 1e-6 to weights N(0, 0.02), probes of 1e-3 to norm gains of 1."""
    seeds = range(min(3, setting.repeats))
    device = setting.device

    def update(stochastic: bool) -> tuple[float, ...]:
        return tuple(
            update_share(s, stochastic=stochastic, device=device) for s in seeds
        )

    def probe(rounded: bool) -> tuple[float, ...]:
        return tuple(probe_share(s, rounded=rounded, device=device) for s in seeds)

    return [
        Line(
            "share of an update of 1e-6", update(True), 0.95, 1.0, 0.99, at_least=True
        ),
        Line("  rounded to nearest", update(False), expected=0.03),
        Line("share of a probe of 1e-3", probe(False), 0.95, 1.0, 1.0, at_least=True),
        Line("  gains rounded to bf16", probe(True), expected=0.03),
    ]


def share(realised: Tensor, wanted: Tensor) -> float:
    """<realised, wanted> / <wanted, wanted>, in fp64."""
    a, b = realised.double().flatten(), wanted.double().flatten()
    return float(a @ b / (b @ b))


def update_share(
    seed: int, *, stochastic: bool, device: str = "cpu", size: float = 1e-6
) -> float:
    """Of one update of `size` an element, in a 2048 x 2048 bf16 matrix."""
    torch.manual_seed(seed)
    layer = nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16, device=device)
    nn.init.normal_(layer.weight, std=0.02)
    (slot,) = Space.of(layer)
    before = slot.base.float()
    d = Direction(make_key(seed, 0))
    moved = Update(((d, -1.0),), (size,), (1.0,))
    storage.update(slot, [(moved, 0)], seed=seed, stochastic=stochastic)
    return share(slot.base.float() - before, size * slot.direction(d))


def probe_share(
    seed: int, *, rounded: bool, device: str = "cpu", eps: float = 1e-3
) -> float:
    """Of a probe on the gains of a bf16 norm, seen in the norm's outputs."""
    torch.manual_seed(seed)
    norm = nn.LayerNorm(1024, bias=False, dtype=torch.bfloat16, device=device)
    x = torch.randn(256, 1024, dtype=torch.bfloat16, device=device)
    space = Space.of(norm)
    d = Direction(make_key(seed, 0))
    z = space["weight"].direction(d)
    engine = Resident()
    engine.bind(norm, space, seed=seed, rounding="stochastic")

    def at(sign: int) -> Tensor:
        if rounded:
            gains = (norm.weight.detach().float() + sign * eps * z).bfloat16()
            return F.layer_norm(x, (1024,), gains).float()
        with engine.at(Probe(((d, sign * eps),))):
            return norm(x).float()

    wanted = F.layer_norm(x.float(), (1024,)) * (2 * eps * z)
    return share(at(1) - at(-1), wanted)
