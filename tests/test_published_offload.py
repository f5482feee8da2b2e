"""ZO2's nanoGPT program beside the streamed engine, CUDA's calls replaced.

Its generator state becomes (zolab's direction, how many tensors were drawn), so that
both move along the same z. Its forward pass, its order of uploads and its update run as
they stand. It perturbs in place and we do not: paths may part by `CLOSE` of a length.
"""

from collections import deque
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lifted import Seeds, flat, methods, needs
from torch import nn

import zolab
from zolab import MeZO, Streamed
from zolab.space import Space

pytestmark = [pytest.mark.usefixtures("one_thread"), needs("zo2")]
RULE = "zo2/optimizer/mezo_sgd/zo.py", "MeZOSGD"
SCHEDULE = "zo2/optimizer/mezo_sgd/zo2.py", "MeZO2SGD"
NANOGPT = "zo2/model/nanogpt/mezo_sgd/zo2.py", "Optimizer"
LR, EPS, SEED, CLOSE = 1e-2, 1e-3, 5, 1e-3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln, self.up, self.down = (
            nn.LayerNorm(8),
            nn.Linear(8, 20),
            nn.Linear(20, 8),
        )

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.ln(x))))


class GPT(nn.Module):
    """nanoGPT's names, smaller blocks; the head is not tied, as in their tests."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(30, 8),
                "wpe": nn.Embedding(12, 8),
                "h": nn.ModuleList(Block() for _ in range(4)),
                "ln_f": nn.LayerNorm(8),
            }
        )
        self.lm_head = nn.Linear(8, 30, bias=False)

    def forward(self, idx, pos):
        t = self.transformer
        x = t["wte"](idx) + t["wpe"](pos)
        for block in t["h"]:
            x = block(x)
        return self.lm_head(t["ln_f"](x))


def batch():
    g = torch.Generator().manual_seed(1)
    idx, targets = (torch.randint(0, 30, (2, 12), generator=g) for _ in range(2))
    return idx, torch.arange(12), targets


def loss_of(model):
    idx, pos, targets = batch()
    return lambda: F.cross_entropy(model(idx, pos).flatten(0, 1), targets.flatten())


class Fake:
    """torch without CUDA: a generator's state is (direction, tensors drawn)."""

    def __init__(self, model):
        self.cuda, self.state, self.space = self, None, Space.of(model)
        self.names = [s.name for s in self.space]

    def __getattr__(self, name):
        return getattr(torch, name)

    def manual_seed(self, direction):
        self.state = (direction, 0)

    def set_rng_state(self, state):
        self.state = tuple(state)

    def get_rng_state(self):
        return State(self.state)

    def normal(self, *, size, **_):
        direction, drawn = self.state
        slot = self.space[self.names[drawn]]
        assert slot.shape == size
        self.state = (direction, drawn + 1)
        return slot.direction(direction)

    def synchronize(self):
        pass

    def stream(self, _):
        return nullcontext()

    def current_stream(self):
        return None


class State(tuple):
    def clone(self):
        return self


def zo2(model, lr, decay=0.0):
    """Their optimizer on `model`, which calls `lr(step)` for the rate of each step."""
    fake = Fake(model)
    names = {"torch": fake, "np": Seeds(seed=SEED), "F": F}
    rule = {"zo_perturb_parameters", "zo_update", "zo_perturb_shifts", "compute_grad"}
    schedule = {"zo_update", "module_dual_forward", "function_dual_forward"}
    schedule |= {"zo_forward", "task_upload", "task_offload"}
    schedule |= {"task_compute_module", "task_compute_function"}
    parts = [
        methods("zo2", *NANOGPT, {"inner_zo_forward"}, **names),
        methods("zo2", *SCHEDULE, schedule, **names),
        methods("zo2", *RULE, rule, **names),
    ]
    made = type("ZO2", tuple(parts), {})()
    here = SimpleNamespace(**model.transformer)
    made.model = SimpleNamespace(transformer=here, lm_head=model.lm_head)
    here.h = model.transformer["h"]
    made.zo_eps, made.weight_decay, made.debug_mode = EPS, decay, False
    made.device = made.offloading_device = "cpu"
    made.overlap, made.offloading_blocks = False, list(range(4))
    made.compute_stream = made.upload_stream = made.offload_stream = fake
    made.compute_module_optimize_method = made.compute_function_optimize_method = ""
    made.communicate_optimize_method, made.max_zo_random_seed = "", 10
    made.rstate_queue, made.last_rstate, made.projected_grad = deque(maxlen=2), None, 0
    made.upload_impl = made.offload_impl = lambda module, *a, **k: module
    made.compute_module_impl = lambda f, module, how, **k: f(module, **k)
    made.compute_function_impl = lambda f, fn, how, **k: f(fn, **k)
    made.count = -1

    def next_lr():
        made.count += 1
        made.lr = lr(made.count)

    made._update_lr = next_lr
    return made


def theirs(steps, lr=lambda t: LR, decay=0.0):
    model = GPT()
    opt = zo2(model, lr, decay)
    losses = [float(opt.zo_forward(*batch())) for _ in range(steps)]
    return model, losses


def ours(steps, lr=lambda t: LR, decay=0.0):
    model = GPT()
    opt = MeZO(
        model,
        eps=EPS,
        seed=SEED,
        family="near_normal",
        weight_decay=decay,
        engine=Streamed(),
    )
    losses = []
    for t in range(steps):
        for group in opt.param_groups:
            group["lr"] = lr(t)
        opt.step(loss_of(model))
        losses.append(opt.last.losses[0])
    opt.engine.flush()
    return model, losses


def apart(a, b):
    """How far two models are, over how far the second has come."""
    start = flat(GPT())
    return float((flat(a) - flat(b)).norm() / (flat(b) - start).norm())


def test_the_same_losses_step_by_step():
    _, want = theirs(6)
    _, found = ours(6)
    assert found == pytest.approx(want, abs=2e-5)
    assert len(set(want)) == 6


@pytest.mark.parametrize("steps", [2, 4])
def test_their_weights_lack_the_last_update(steps):
    """What is saved or evaluated after step t is the model of step t - 1."""
    model, _ = theirs(steps)
    assert apart(model, ours(steps - 1)[0]) < CLOSE
    assert apart(model, ours(steps)[0]) > 0.05


def test_their_update_takes_the_next_step_s_lr():
    def lr(t):
        return LR * 0.3**t

    model, _ = theirs(3, lr)
    assert apart(model, ours(2, lambda t: lr(t + 1))[0]) < CLOSE
    assert apart(model, ours(2, lr)[0]) > 0.5


def test_their_decay_waits_for_a_slope():
    model = GPT()
    opt = zo2(model, lambda t: LR, decay=0.5)
    block = model.transformer["h"][0]
    before = block.up.weight.clone()
    opt.lr, opt.rstate = LR, State((zolab.Direction(3), 2))
    opt.module_dual_forward(block, {"x": torch.ones(8)}, {"x": torch.ones(8)}, 0.0)
    assert torch.allclose(block.up.weight, before, atol=1e-6)
    mine = GPT()
    optimizer = MeZO(mine, lr=LR, weight_decay=0.5, engine=Streamed())
    optimizer.step(lambda: 0 * loss_of(mine)() + 1)
    optimizer.engine.flush()
    found = mine.transformer["h"][0].up.weight
    assert torch.allclose(found, before * (1 - LR * 0.5))
    assert not torch.allclose(found, before, atol=1e-6)


def test_their_seed_zero_is_no_seed():
    opt = zo2(GPT(), lambda t: LR)
    opt.zo_forward(*batch(), seed=0)
    assert opt.zo_random_seed != 0
