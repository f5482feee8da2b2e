"""Other people's programs, read at test time from a checkout that the reader has.

ZOLAB_PEERS names a folder of checkouts (MeZO, ZO-LLM, LOZO, HiZOO, FZOO, SubZero,
DeepZero, ZO-AdaMU, MeZO-SVRG, HyperscaleES, es-at-scale, mezo). Their trainers import a
transformers of 2023, so nothing is imported: the few methods that hold a rule are cut
out of the file by `ast` and bound to a stand-in. No line of theirs is kept here.
"""

import ast
import math
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp

from zolab.families import Keys, directions
from zolab.space import Space

PEERS = os.environ.get("ZOLAB_PEERS")


def checkout(name):
    """Where the checkout is, or None. ZOLAB_MEZO_CHECKOUT alone still finds MeZO."""
    if name == "MeZO" and (alone := os.environ.get("ZOLAB_MEZO_CHECKOUT")):
        return Path(alone)
    found = Path(PEERS) / name if PEERS else None
    return found if found and found.is_dir() else None


def needs(name):
    """Skips a test whose program is not here, and says which one it wants."""
    why = f"ZOLAB_PEERS names no folder with a checkout of {name} in it"
    if name == "MeZO":
        why += ", ZOLAB_MEZO_CHECKOUT none of princeton-nlp/MeZO"
    return pytest.mark.skipif(checkout(name) is None, reason=why)


def _run(nodes, path, names):
    typing = ast.parse("from typing import *").body
    code = compile(ast.Module([*typing, *nodes], []), str(path), "exec")
    space = {
        "torch": torch,
        "np": np,
        "nn": nn,
        "Tensor": torch.Tensor,
        "Generator": torch.Generator,
        "math": math,
        "partial": partial,
        "jvp": jvp,
        "functional_call": functional_call,
        "deepcopy": __import__("copy").deepcopy,
        "logger": SimpleNamespace(info=lambda text: None),
        **names,
    }
    exec(code, space)
    return space


def methods(name, file, cls, wanted, **names):
    """A class with the `wanted` methods of `cls`, and the globals given by name."""
    path = checkout(name) / file
    node = next(
        n
        for n in ast.parse(path.read_text()).body
        if isinstance(n, ast.ClassDef) and n.name == cls
    )
    node.bases, node.decorator_list = [], []
    node.body = [
        f for f in node.body if isinstance(f, ast.FunctionDef) and f.name in wanted
    ]
    assert {f.name for f in node.body} == set(wanted)
    return _run([node], path, names)[cls]


def functions(name, file, *wanted, **names):
    """The functions and constants `wanted` of a file, in this order."""
    path = checkout(name) / file
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node
    space = _run([found[w] for w in wanted], path, names)
    return [space[w] for w in wanted]


class Seeds:
    """numpy, but randint hands out the directions of a zolab run, `queries` a step."""

    sign = staticmethod(np.sign)

    def __init__(self, family="near_normal", seed=0, queries=1):
        self.random, self.family, self.seed, self.queries = self, family, seed, queries
        self.count = 0

    def randint(self, _=0):
        step, query = divmod(self.count, self.queries)
        self.count += 1
        return directions(self.family, Keys(self.seed, step), self.queries)[query]


class Ours:
    """torch, but who seeds with such a direction draws zolab's z, slot by slot."""

    def __init__(self, model):
        self.space = Space.of(model)

    def __getattr__(self, name):
        return getattr(torch, name)

    def manual_seed(self, direction):
        self.direction, self.slots = direction, iter(self.space)

    def normal(self, **_):
        return next(self.slots).direction(self.direction)

    def randint(self, *_, **__):
        return (self.normal() + 1) / 2

    def randn_like(self, _):
        return self.normal()


class Watch:
    """A loss that keeps every point where it was asked; `script` replaces its values.

    `direction(eps)` is what a two-sided program perturbed along, seen from outside.
    """

    def __init__(self, net, loss, script=()):
        self.net, self.loss, self.script = net, loss, list(script)
        self.points: list[torch.Tensor] = []
        self.losses: list[float] = []

    def __call__(self):
        self.points.append(flat(self.net))
        loss = torch.tensor(self.script.pop(0)) if self.script else self.loss()
        self.losses.append(float(loss))
        return loss

    def direction(self, eps, at=0):
        return (self.points[at] - self.points[at + 1]) / (2 * eps)


def flat(net):
    return torch.cat([p.detach().flatten().double() for p in net.parameters()])


def split(net, vector):
    """A flat vector as the net's tensors."""
    sizes = [p.numel() for p in net.parameters()]
    pairs = zip(vector.split(sizes), net.parameters(), strict=True)
    return [v.reshape(p.shape) for v, p in pairs]


def cosine(a, b):
    return F.cosine_similarity(a, b, dim=0).item()


def made(seed=0, dtype=torch.float32, sizes=(64, 96, 10)):
    """A net of two linears and the loss of one batch; 7,210 weights."""
    torch.manual_seed(seed)
    a, b, c = sizes
    net = nn.Sequential(nn.Linear(a, b), nn.GELU(), nn.Linear(b, c)).to(dtype)
    x, y = torch.randn(16, a, dtype=dtype), torch.randint(0, c, (16,))
    return net, lambda: F.cross_entropy(net(x).double(), y)


def stand_in(cls, loss, *, lr=1e-2, eps=1e-3, weight_decay=0.0, optimizer=None, **args):
    """`cls` with what its methods ask of a Trainer; other settings go to `args`."""
    t = cls()
    defaults = {
        "zo_eps": eps,
        "weight_decay": weight_decay,
        "non_diff": False,
        "gradient_accumulation_steps": 1,
        "n_gpu": 1,
        "perturbation_mode": "two_side",
        "q": 1,
        "trainer": "zo_sgd",
    }
    t.args = SimpleNamespace(**(defaults | args))
    t._get_learning_rate = lambda: lr
    t._prepare_inputs = lambda inputs: inputs
    t.compute_loss = lambda model, inputs: loss()
    t.compute_loss_context_manager = nullcontext
    t.lr_scheduler = SimpleNamespace(step=lambda: None)
    t.state = SimpleNamespace(global_step=0, max_steps=args.get("max_steps", 1))
    t.optimizer, t.current_lr, t.update_steps = optimizer, lr, 0
    return t
