"""eps and lr by forward passes: known answers, nothing moved, errors that help."""

import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import bits, closure, mlp
from torch import nn

import zolab
from zolab.errors import LossError, SuggestionError, UnseenSlotError
from zolab.suggestion.curve import _first_valley, _realised

pytestmark = pytest.mark.usefixtures("one_thread")


class Bowl(nn.Module):
    """sum of h x^2 / 2 + q x^4 / 4 at x = 1, a gradient and a Hessian we know."""

    def __init__(self, h, q=0.0):
        super().__init__()
        self.x, self.h, self.q = nn.Parameter(torch.ones(len(h))), h, q

    def forward(self):
        return (self.h * self.x**2 / 2 + self.q * self.x**4 / 4).sum()


BOWLS = {
    "every axis": torch.linspace(1, 3, 100),
    "five axes": (torch.arange(100) < 5).float() + 1e-3,
    "steep": torch.logspace(-2, 2, 60),
}


@pytest.mark.parametrize("q", [1.0, 100.0])
def test_eps_is_near_the_bottom_of_equation_1(q):
    """u: the rounding of the sum, about a ulp of it; D3 = sum 6 q x z^3."""
    bowl = Bowl(BOWLS["every axis"], q)
    u = float(np.spacing(np.float32(bowl().item())))
    best = (3 * u / (6 * q * 10)) ** (1 / 3)
    assert best / 10 < zolab.suggest(bowl, bowl).eps < best * 10


def test_eps_of_a_quadratic_is_where_its_loss_has_doubled():
    bowl = Bowl(BOWLS["every axis"])  # L0 = 100, tr H = 200
    assert 0.1 < zolab.suggest(bowl, bowl).eps < 10


def test_eps_follows_the_scale_of_the_weights():
    wide = Bowl(BOWLS["every axis"] / 1e6, 1e-12)
    with torch.no_grad():
        wide.x.fill_(1000.0)
    narrow = Bowl(BOWLS["every axis"], 1.0)
    ratio = zolab.suggest(wide, wide).eps / zolab.suggest(narrow, narrow).eps
    assert 300 < ratio < 3000


def end(h, lr, seed):
    bowl = Bowl(h)
    opt = zolab.MeZO(bowl, lr=lr, eps=0.1, seed=seed)
    for _ in range(60):
        opt.step(bowl)
    return bowl().item()


@pytest.mark.parametrize("name", BOWLS)
def test_lr_is_within_three_of_the_best_of_a_sweep(name):
    bowl = Bowl(BOWLS[name])
    found = zolab.suggest(bowl, bowl)
    h = BOWLS[name]
    assert found.trace[0] == pytest.approx(float(h.sum()), rel=0.02)
    ends = {
        f: np.median([end(h, f * found.lr, seed) for seed in range(5)])
        for f in (1 / 9, 1 / 3, 1, 3, 9)
    }
    assert min(ends, key=ends.get) in (1 / 3, 1, 3), ends


def test_the_noise_of_batches_is_told_from_the_slope():
    """Batch i adds a gradient of its own, as large as the common one: share 1/2."""
    h = BOWLS["every axis"]
    bowl = Bowl(h)
    g = torch.Generator().manual_seed(0)
    own = torch.randn(64, 100, generator=g) * h.norm() / 10
    alone = zolab.suggest(bowl, bowl, directions=64)
    noisy = zolab.suggest(
        bowl, lambda i: bowl() + own[i] @ bowl.x, batches=64, directions=64
    )
    assert alone.share == 1.0
    assert noisy.share == pytest.approx(0.5, abs=0.2)
    assert 0.2 < noisy.lr / alone.lr < 0.8
    with_no_slope = zolab.suggest(
        bowl, lambda i: 0 * bowl() + own[i] @ bowl.x, batches=64, directions=64
    )
    assert with_no_slope.share < 0.3 and "upper bound" in with_no_slope.reason


def test_bf16_asks_for_a_larger_eps():
    wide, low = mlp(), mlp(dtype=torch.bfloat16)
    a = zolab.suggest(wide, closure(wide))
    b = zolab.suggest(low, closure(low))
    assert b.eps > 3 * a.eps
    assert "few bits" in b.reason and "few bits" not in a.reason


def test_a_probe_that_bf16_swallows_is_no_bottom():
    """All weights on the grid of bf16, far apart: below half a step nothing moves."""
    low = mlp(dtype=torch.bfloat16)
    with torch.no_grad():
        for p in low.parameters():
            p.fill_(4.0)
    space = zolab.Space.of(low)
    assert _realised(space, 1e-3) < 0.1 and _realised(space, 0.5) > 0.9


def test_slopes_that_see_only_the_gains_are_no_bottom():
    """Below half a step of bf16 (0.03 at 4) only the vector moves, and agrees."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            g = torch.Generator().manual_seed(0)
            self.c = torch.randn(24, 24, generator=g)
            self.w = nn.Parameter((4 * self.c.sign()).bfloat16())
            self.v = nn.Parameter(torch.ones(24, dtype=torch.bfloat16))

        def forward(self):
            # v moves with the fp32 of vectors; the cubic bends the right arm up
            return (self.c * self.w.float() + (self.c * self.v).float() ** 3).sum()

    model = Mixed()
    found = zolab.suggest(model, model)
    assert found.eps > 0.03
    assert found.curve[0][1] == float("inf")


def test_far_out_nonsense_may_agree_and_is_not_taken():
    assert _first_valley([1.4, 1.4, 0.3, 0.2, 1.3, 0.1]) == [2, 3]
    assert _first_valley([0.01, 0.1]) == [0, 1] and _first_valley([0.9, 2.0]) == []


def test_nothing_moves_and_the_passes_are_counted():
    model, calls = mlp().train(), []
    ask, before = closure(model), bits(model)
    modes = [m.training for m in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def counted():
        calls.append(torch.rand(1))  # drawn, and not used
        assert not torch.is_grad_enabled()
        return ask()

    found = zolab.suggest(model, counted)
    assert found.forwards == len(calls)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(model), strict=True))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    assert all(p.grad is None for p in model.parameters())
    assert found == zolab.suggest(model, counted), "a function of the seed"


def test_the_generators_come_back_after_an_error_too():
    model, state = mlp(), torch.get_rng_state()
    with pytest.raises(SuggestionError):
        zolab.suggest(model, lambda: closure(model)() + torch.rand(()))
    assert torch.equal(state, torch.get_rng_state())


def refusal(objective, **options):
    with pytest.raises(SuggestionError) as why:
        zolab.suggest(MODEL, objective, **options)
    return str(why.value)


MODEL = mlp()
ASK = closure(MODEL)


def test_errors_say_what_to_change():
    assert "finite" in refusal(lambda: ASK() * float("nan"))
    assert "does not depend" in refusal(lambda: 0 * ASK() + 2.0)
    stream = iter(range(10**6))
    assert "next batch" in refusal(lambda: ASK() + next(stream))
    dropped = refusal(lambda: ASK() * F.dropout(torch.ones(8)).mean())
    assert "dropout" in dropped
    x, y = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(1))
    right = refusal(lambda: (MODEL(x).argmax(-1) == y).float().mean())
    assert "accuracy" in right and ("larger batch" in right)
    with pytest.raises(UnseenSlotError, match="read none|never read"):
        zolab.suggest(mlp(), ASK)
    with pytest.raises(LossError, match="float32"):
        zolab.suggest(MODEL, lambda: ASK().bfloat16())
    with pytest.raises(TypeError, match=r"objective\(i\)"):
        zolab.suggest(MODEL, ASK, batches=3)
    with pytest.raises(TypeError, match=r"objective\(\)"):
        zolab.suggest(MODEL, lambda i: ASK())
    with pytest.raises(ValueError, match="at least 2"):
        zolab.suggest(MODEL, lambda i: ASK(), batches=1)


def test_dropout_modules_rest_as_in_training_with_mezo():
    model = nn.Sequential(mlp(), nn.Dropout(0.5)).train()
    found = zolab.suggest(model, closure(model))
    assert found.lr > 0 and model[1].training


def test_where_no_curvature_shows_the_reach_of_the_slopes_bounds_lr():
    class Line(Bowl):
        def forward(self):
            return torch.tanh(self.x).sum()  # bends down: tr H < 0

    line = Line(BOWLS["every axis"])
    found = zolab.suggest(line, line)
    assert found.trace[0] < 0 < found.lr and "no bowl" in found.reason


def test_plot_says_the_curve_in_words(capsys):
    pytest.importorskip("matplotlib")
    bowl = Bowl(BOWLS["every axis"], 1.0)
    zolab.suggest(bowl, bowl).plot()
    assert "lowest" in capsys.readouterr().out


def test_the_package_does_not_import_lab_for_it():
    import subprocess

    script = "import zolab, sys; zolab.suggest; assert 'zolab.lab' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
