"""Reuse answers with Resident's bits, runs less, and never returns a stale output."""

import contextlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zolab.coordinates import Coordinates
from zolab.engines import Resident
from zolab.engines import reuse as module
from zolab.engines.reuse import Memo, Reuse
from zolab.estimators import CGE, ModuleWise
from zolab.gradient import Direction, Probe
from zolab.models import load_model
from zolab.optimizers.front import ZOOptimizer
from zolab.space import Space
from zolab.tasks import load_digits

DATA = load_digits(train=64).train


def net(seed=0, **options):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(**options),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 6),
        nn.Tanh(),
        nn.Linear(6, 10),
    )


def loss(model, b):
    return F.cross_entropy(model(b.x), b.y)


def square(model, x):
    return model(x).square().mean()


def losses(model, engine, probes, closure=None):
    """The answers of an engine, bound anew."""
    engine.bind(model, Space.of(model), seed=0, rounding="nearest")
    closure = closure or partial(loss, model, DATA)
    return [a.value for a in engine.evaluate(probes, {"loss": closure})]


def probes(model, eps=2.0**-8, *, clean=True):
    """One probe a coordinate of every slot (some, of large ones)."""
    found = [Probe()] if clean else []
    for s in Space.of(model):
        for e in range(0, s.numel, max(1, s.numel // 4)):
            found.append(Probe(((Direction(e, "coordinate", s.name), eps),)))
    return found


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("scratch", ["one", "all"])
def test_every_answer_has_the_bits_of_a_full_pass(clean, scratch):
    model, engine = net(), Reuse(scratch=scratch)
    asked = probes(model, clean=clean)
    asked.append(Probe(((Direction(5), 0.01),)))  # moves everything
    asked = asked[::2] + asked[1::2]
    assert losses(model, engine, asked) == losses(model, Resident(), asked)
    assert engine.ran["0"] < len(asked) / 2 < engine.reused["0"]
    assert engine.kept_bytes > 0
    assert all("forward" not in m.__dict__ for m in model)


def test_a_probe_of_layer_l_runs_the_layers_from_l_on():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 1)
    )
    x, engine, asked = torch.rand(5, 9), Reuse(), probes(model, eps=0.1)
    losses(model, engine, asked, lambda: model(x).sum())
    first = [int(p.terms[0][0].within[0]) for p in asked[1:]]
    for name, m in model.named_children():
        assert engine.ran[name] == 1 + sum(n <= int(name) for n in first), m
        assert engine.ran[name] + engine.reused[name] == len(asked)


def test_a_coordinate_that_no_picture_sees_ends_its_pass_there():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
    dead = int((DATA.x.flatten(1).amax(0) == 0).nonzero()[0])
    probe = Probe(((Direction(dead, "coordinate", "1.weight"), 0.1),))
    engine = Reuse()
    a, b = losses(model, engine, [Probe(), probe])
    assert a == b and (engine.ran["1"], engine.ran["2"], engine.ran["3"]) == (2, 1, 1)


def test_the_clean_pass_goes_first_wherever_it_was_asked():
    model, engine = net(), Reuse()
    asked = [*probes(model, clean=False), Probe()]
    losses(model, engine, asked)
    assert engine.ran["0"] + engine.reused["0"] == len(asked)


def test_training_with_it_is_training_without_it():
    weights = []
    for engine in (Resident(), Reuse()):
        model = net()
        family = Coordinates.of(Space.of(model), 0.2)
        opt = ZOOptimizer(model, estimator=CGE(family), engine=engine, lr=0.1)
        for step in range(3):
            opt.step(partial(loss, model, DATA.batch(step, 16)))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_a_cache_that_outlives_the_step_is_stale(monkeypatch):
    """The control: what `evaluate` throws away, kept for the next step."""

    def two_steps(engine):
        model = net()
        family = Coordinates.of(Space.of(model))
        opt = ZOOptimizer(model, estimator=CGE(family), engine=engine, lr=0.5)
        for _ in range(2):  # the same batch: only the weights differ
            opt.step(partial(loss, model, DATA))
        return opt.last.losses

    right = two_steps(Resident())
    assert two_steps(Reuse()) == right
    first = {}

    def stale(engine):
        memo = first.setdefault("memo", Memo(engine))
        memo._state = lambda name: ()  # and nobody looks at the weights' versions
        return memo

    monkeypatch.setattr(module, "Memo", stale)
    wrong = two_steps(Reuse())
    assert wrong != right
    assert max(abs(a - b) for a, b in zip(wrong, right, strict=True)) > 1e-3
    # The version of the weights alone finds it out.
    monkeypatch.setattr(module, "Memo", lambda e: first.setdefault("honest", Memo(e)))
    assert two_steps(Reuse()) == right


def test_another_input_in_place_edits_and_noise_are_computed_anew():
    class Doubles(nn.Module):  # edits what it gets: an output that is kept, or not
        def forward(self, x):
            return x.mul_(2) + 0

    def louder():  # the second input is what the first was edited to
        count[0] += 1
        return model(DATA.x.flatten(1) * 2 ** count[0]).square().mean()

    model = nn.Sequential(Doubles(), nn.Linear(64, 4), Doubles(), nn.Linear(4, 10))
    asked, found = probes(model), []
    for engine in (Resident(), Reuse()):
        count = [0]
        found.append(losses(model, engine, asked[:12], louder))
    assert found[0] == found[1]
    flat = DATA.x.flatten(1)
    for part, x in ((model[1:], flat), (net(inplace=True), DATA.x)):
        out, asked = partial(square, part, x), probes(part)
        right = losses(part, Resident(), asked, out)
        assert losses(part, Reuse(), asked, out) == right
    model = net()
    asked = probes(model)

    def fickle():  # another picture each time it is called
        count[0] += 1
        b = DATA.batch(count[0], 8)
        return F.cross_entropy(model(b.x), b.y)

    found = []
    for engine in (Resident(), Reuse()):
        count = [0]
        found.append(losses(model, engine, asked, fickle))
    assert found[0] == found[1]

    class Noise(nn.Module):
        def forward(self, x):
            return x + 0.1 * torch.randn_like(x)

    model = nn.Sequential(nn.Flatten(), Noise(), nn.Linear(64, 4), nn.Linear(4, 10))

    def noisy():
        return F.cross_entropy(model(DATA.x) + torch.randn(10), DATA.y)

    asked = probes(model)
    torch.manual_seed(3)
    right = losses(model, Resident(), asked, noisy)
    torch.manual_seed(3)
    assert losses(model, Reuse(), asked, noisy) == right


def test_a_buffer_or_frozen_weight_that_the_closure_edits_is_seen():
    model = net()
    model[0].requires_grad_(False)
    asked = probes(model)

    def creeping():
        loss = F.cross_entropy(model(DATA.x), DATA.y)
        model[1].running_mean.add_(0.1)
        model[0].bias.add_(0.1)
        return loss

    found = []
    for engine in (Resident(), Reuse()):
        kept = {k: v.clone() for k, v in model.state_dict().items()}
        found.append(losses(model, engine, asked, creeping))
        model.load_state_dict(kept)
    assert found[0] == found[1]
    assert len(set(found[0])) > len(asked) // 2


def test_residuals_ties_and_containers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, pair, *, scale):
            x, names = pair
            return x + scale * torch.tanh(self.inner(x)), [*names, "block"]

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block, self.again = nn.Linear(64, 6), Block(), Block()
            self.last = nn.Linear(6, 64)
            self.last.weight = nn.Parameter(torch.randn(64, 6) / 8)
            self.back = nn.Linear(64, 6)
            self.back.weight = self.first.weight

        def forward(self, x):
            pair = self.first(x), ["first"]
            for block in (self.block, self.again):
                pair = block(pair, scale=0.5)
            assert pair[1] == ["first", "block", "block"]
            return self.back(self.last(pair[0]))

    model, flat = Tied(), DATA.x.flatten(1)
    out = partial(square, model, flat)
    asked = probes(model)
    engine = Reuse()
    assert losses(model, engine, asked, out) == losses(model, Resident(), asked, out)
    assert engine.reused["block"] > engine.ran["block"]
    tied = [p for p in asked if p.terms and "first.weight" in p.terms[0][0].within]
    engine = Reuse(modules="first")
    losses(model, engine, [Probe(), *tied], out)
    assert not engine.reused["first"]  # the tied slot is in both layers


def test_a_call_with_other_arguments_is_another_call():
    class Scaled(nn.Linear):
        def forward(self, x, scale=1.0):
            return super().forward(x) * scale

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = Scaled(64, 4), nn.Linear(4, 10)

        def forward(self, x):
            count[0] += 1
            words = {} if count[0] % 2 else {"scale": 2.0}
            return self.last(self.inner(x, **words))

    model, found, flat = Net(), [], DATA.x.flatten(1)
    for engine in (Resident(), Reuse()):
        count = [0]
        found.append(losses(model, engine, probes(model), partial(square, model, flat)))
        count = [1]
        found[-1] += losses(model, engine, probes(model), partial(square, model, flat))
    assert found[0] == found[1]


def test_blocks_one_after_the_other():
    answers = []
    for engine in (Resident(), Reuse()):
        model = net()
        e = ModuleWise(["0.*", "5.*", "[17].*"])
        opt = ZOOptimizer(model, estimator=e, engine=engine, lr=0.1)
        opt.step(partial(loss, model, DATA))
        answers.append(opt.last.losses)
    assert answers[0] == answers[1]


def test_an_error_leaves_the_model_as_it_was():
    model = net()
    with contextlib.suppress(ZeroDivisionError):
        losses(model, Reuse(), probes(model), lambda: model(DATA.x).sum() / (1 // 0))
    assert all("forward" not in m.__dict__ for m in model)
    with pytest.raises(ValueError, match="no module matches"):
        losses(model, Reuse(modules="layer.*"), probes(model))
    with pytest.raises(ValueError, match="no objective"):
        losses(model, Reuse(), [Probe(objective="other")])


def test_a_language_model_starts_at_the_first_block_that_differs():
    model = load_model("tiny")[0]
    ids = torch.arange(24).view(2, 12) + 5

    def words():
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    asked, engine = probes(model, eps=0.5), Reuse()
    asked = asked[:1] + asked[1::3]
    assert losses(model, engine, asked, words) == losses(
        model, Resident(), asked, words
    )
    ran = [engine.ran[f"model.layers.{i}"] for i in range(4)]
    assert ran == sorted(ran) and ran[0] < ran[3] <= len(asked)
