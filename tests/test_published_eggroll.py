"""EGGROLL's program on numpy, fed ours: its step is sigma sqrt(N) times ours."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lifted import functions, methods, needs
from torch import nn

from zolab import EvolutionStrategy, LowRank, ZOOptimizer
from zolab.families import Keys, directions
from zolab.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")
FILE = "src/hyperscalees/noiser/eggroll.py"
SIGMA, Q, SEED, COLUMNS, ROWS = 2.0**-6, 4, 5, 8, 6


def layer():
    torch.manual_seed(0)
    net = nn.Linear(COLUMNS, ROWS)
    return net, torch.randn(16, COLUMNS), torch.randint(0, ROWS, (16,))


class Numpy:
    """jax.numpy, as far as it is used."""

    astype = staticmethod(lambda x, dtype: x.astype(dtype))

    def __getattr__(self, name):
        return getattr(np, name)


def jax(net, rank):
    """jax, but a folded key draws zolab's z; of a matrix as A, with B the identity."""
    space = {s.name: s for s in Space.of(net)}
    ds = directions(LowRank(rank=rank, every=1), Keys(SEED, 0), Q)

    def normal(folded, shape, **_):
        (name, _), member = folded
        z = space[name].direction(ds[int(member)]).double().numpy()
        if z.ndim == 1:
            return z
        return np.concatenate([np.eye(COLUMNS), rank**0.5 * z])

    def vmap(f, **_):
        def mapped(sigma, info, *rest):
            outs = [f(sigma, i, *rest) for i in zip(*info, strict=True)]
            if isinstance(outs[0], tuple):
                return tuple(map(np.stack, zip(*outs, strict=True)))
            return np.stack(outs)

        return mapped

    fold_in = lambda key, data: (key, data)  # noqa: E731
    return SimpleNamespace(
        random=SimpleNamespace(normal=normal, fold_in=fold_in), vmap=vmap
    )


def theirs(rank):
    """Losses of all members and the step of each tensor, by their functions."""
    net, x, y = layer()
    names = {"jax": jax(net, rank), "jnp": Numpy(), "partial": partial}
    names["print"] = lambda *_: None
    wanted = [
        "get_lora_update_params",
        "get_nonlora_update_params",
        "_simple_full_update",
        "_simple_lora_update",
        "_noop_update",
    ]
    names |= dict(
        zip(wanted, functions("HyperscaleES", FILE, *wanted, **names), strict=True)
    )
    wanted = ["do_mm", "get_noisy_standard", "convert_fitnesses", "_do_update"]
    egg = methods("HyperscaleES", FILE, "EggRoll", wanted, **names)
    frozen = {"group_size": 0, "freeze_nonlora": False, "noise_reuse": 0, "rank": rank}
    params = {n: p.detach().double().numpy() for n, p in net.named_parameters()}
    noise, losses = {"sigma": SIGMA}, []
    for member in range(2 * Q):
        out = egg.do_mm(
            frozen, noise, params["weight"], "weight", (0, member), x.double().numpy()
        )
        out = out + egg.get_noisy_standard(
            frozen, noise, params["bias"], "bias", (0, member)
        )
        losses.append(float(F.cross_entropy(torch.tensor(out), y)))
    scores = egg.convert_fitnesses(frozen, noise, -np.array(losses))
    info, steps = (np.zeros(2 * Q, int), np.arange(2 * Q)), {}
    for kind, name in enumerate(("bias", "weight")):
        given = params[name], Key(name), scores, info, kind, SIGMA, frozen
        steps[name] = egg._do_update(*given)
    return losses, {n: torch.tensor(s) for n, s in steps.items()}


class Key(str):
    """A key of one tensor; theirs asks for its shape."""

    shape = ()


def mine(rank, seed=SEED):
    net, x, y = layer()
    family = LowRank(rank=rank, every=1)
    es = EvolutionStrategy(eps=SIGMA, num_queries=Q, family=family)
    opt = ZOOptimizer(net, estimator=es, lr=0.0, seed=seed)
    opt.step(lambda: F.cross_entropy(net(x).double(), y))
    return opt.last.losses, opt.last.gradient.to_dense(opt.space)


@needs("HyperscaleES")
@pytest.mark.parametrize("rank", [1, 3])
def test_eggroll_takes_our_steps_times_a_constant(rank):
    """The rest of the factor is their 1e-5 beside the variance."""
    losses, steps = theirs(rank)
    asked, gradient = mine(rank)
    assert losses == pytest.approx(list(asked), abs=1e-5)
    variance = np.var(losses)
    factor = SIGMA * (2 * Q * variance / (variance + 1e-5)) ** 0.5
    other = mine(rank, SEED + 1)[1]
    for name, step in steps.items():
        want = factor * gradient[name].double()
        size = want.norm()
        assert float((step - want).norm() / size) < 1e-3, name
        assert float((step - factor * other[name].double()).norm() / size) > 0.5
