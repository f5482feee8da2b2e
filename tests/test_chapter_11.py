"""Chapter 11: its claims' controls fail, and the machinery that it leans on works."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import zolab
from zolab import direction, lab, make_key
from zolab.lab import claims, exercises
from zolab.tasks import Sentiment, loss, splits

# the controls: each must not get the verdict that the claim gets

H = torch.linspace(1, 3, 100, dtype=torch.float64)
N = 2000


def bowl(x):
    return (H * x**2 / 2 + x**4 / 4).sum(-1)


def rms_score(estimates: torch.Tensor) -> float:
    scores = (estimates.mean(0) - (H + 1)) / (estimates.std(0) / math.sqrt(N))
    return float(scores.square().mean().sqrt())


def slopes_and_z():
    x, eps = torch.ones(100, dtype=torch.float64), 1e-3
    z = direction(make_key(0, 1, 0), "x", (N, 100)).double()
    return (bowl(x + eps * z) - bowl(x - eps * z)) / (2 * eps), z


def judge(name: str, measured: float, se: float | None = None) -> str:
    return claims.ledger()[name].judge(measured, se)


def test_another_z_at_the_update_is_not_unbiased():
    slopes, z = slopes_and_z()
    other = direction(make_key(0, 1, 1), "x", (N, 100)).double()
    assert judge("spsa-unbiased", rms_score(slopes[:, None] * z)) == claims.HOLDS
    for wrong in (slopes[:, None] * other, 2 * slopes[:, None] * z):
        assert judge("spsa-unbiased", rms_score(wrong)) == claims.NOT_SEEN


def test_random_coefficients_break_the_cosine_law():
    q, d = 100, 100
    up = F.normalize(torch.linspace(1, 2, d), dim=0)
    ratios: dict[str, list[float]] = {"ours": [], "random": []}
    for draw in range(40):
        z = direction(make_key(draw, 0, 0), "x", (q, d))
        noise = direction(make_key(draw, 1, 0), "c", q, family="near_normal")
        for name, coefficients in (("ours", z @ up), ("random", noise)):
            mean = coefficients @ z / q
            cosine = float(mean @ up / mean.norm())
            ratios[name].append(cosine**2 * (q + d - 1) / q)
    assert judge("cosine-law", *lab.mean_se(ratios["ours"])) == claims.HOLDS
    assert judge("cosine-law", *lab.mean_se(ratios["random"])) == claims.NOT_SEEN


def test_with_every_axis_alive_steps_grow_with_d():
    def steps(d: int) -> int:
        x, k = torch.full((d,), d**-0.5), 0
        while x.square().sum() > 0.1:
            z = direction(make_key(0, k, d), "x", d)
            x, k = x - (z @ x) * z / d, k + 1
        return k

    power = math.log(steps(300) / steps(10)) / math.log(30)
    assert judge("rank-not-d", power) == claims.NOT_SEEN
    # and a rank that is d, of a model of any size, is not a tiny part of d
    assert judge("low-rank-model", math.log10(1)) == claims.OPPOSITE


@pytest.fixture(scope="module")
def pretrained():
    model, tokenizer = zolab.load_model("tiny")
    data = splits(train=400, dev=0, test=400)
    task = Sentiment(tokenizer, words=("down", "up"))
    return model, task, data


def test_shuffled_labels_teach_nothing(pretrained):
    model, task, data = pretrained
    x, y = lab.states(model, task, data.train)
    held_x, held_y = lab.states(model, task, data.test)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    gains = {}
    for name, labels in (("true", y), ("shuffled", y[order])):
        m = lab.ReadOut(model, task)
        g = torch.Generator().manual_seed(0)
        some = torch.randint(len(x), (200, 64), generator=g)

        def ask(m, i, labels=labels):
            return F.binary_cross_entropy_with_logits(m(x[i]), labels[i])

        lab.train(m, ask, some.__getitem__, steps=200, lr=1.5e-3)
        with torch.no_grad():
            gains[name] = float(((m(held_x) > 0) == held_y).float().mean()) - 0.53
    for name in ("beats-bias", "pretrained-vs-random"):
        assert judge(name, gains["true"]) == claims.SAME
        assert judge(name, gains["shuffled"]) != claims.SAME


def test_back_propagation_needs_more_memory(pretrained):
    """The tensors kept for the backward pass, in units of the weights: over the bar."""
    model, task, data = pretrained
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    batch = task.batch(data.train[:32])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss(model, batch).backward()
    model.zero_grad()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    ratio = (weights + sum(kept.values())) / weights
    assert judge("mezo-memory", ratio) != claims.SAME


# the machinery that the chapter leans on


def test_the_read_out_of_frozen_states_is_the_model(pretrained):
    from zolab.tasks.sentiment import margins

    model, task, data = pretrained
    x, y = lab.states(model, task, data.train[:40])
    rows = sorted(data.train[:40], key=lambda s: len(s.text))
    with torch.no_grad():
        lab.same(
            lab.ReadOut(model, task)(x), margins(model, task.batch(rows)), tol=1e-4
        )
    assert y.tolist() == [r.label for r in rows]


def test_sharpest_finds_the_largest_curvature_and_puts_the_weights_back():
    h = torch.tensor([5.0, 1.0, 0.5])
    model = torch.nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    top = lab.sharpest(lambda: (h * model.weight**2).sum() / 2, model, rounds=20)
    assert top == pytest.approx(5.0, rel=1e-3)
    assert torch.equal(model.weight, before)


def test_the_recording_runs_every_method_at_a_small_size(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOLAB_CACHE", str(tmp_path / "cache"))
    data = splits(train=64, dev=0, test=32)
    methods = {
        "MeZO": {"lr": 1e-3, "steps": 4},
        "AdamW": {"method": "adamw", "lr": 1e-4, "steps": 2},
    }
    words = ("terrible", "great")
    found = lab.sentiment_runs(
        "tiny", data, words=words, methods=methods, seeds=range(2), every=2
    )
    assert found["curves"]["MeZO"]["steps"] == [0, 2, 4]
    assert [len(c) for c in found["curves"]["AdamW"]["scores"]] == [2, 2]
    assert {"start", "bias_only", "majority"} <= found.keys()
    lab.record("11_small", found, command="zolab run 11", folder=tmp_path)
    assert lab.recorded("11_small", folder=tmp_path)["data"] == found


def test_an_interrupted_recording_goes_on_with_the_next_curve(tmp_path):
    made = []

    def run(stop_at):
        def make(seed):
            if seed == stop_at:
                raise KeyboardInterrupt
            made.append(seed)
            torch.manual_seed(seed)
            return torch.nn.Linear(4, 1)

        return lab.compare(
            make,
            lambda model, x: model(x).square().mean(),
            lambda seed, step: torch.ones(2, 4),
            lambda model: float(model.weight.detach().sum()),
            methods={"MeZO": {"lr": 1e-2, "steps": 3}},
            seeds=range(3),
            kept=tmp_path / "runs" / "kept.json",
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop_at=2)
    found = run(stop_at=None)
    assert made == [0, 1, 2], "the first two curves are not trained again"
    (tmp_path / "runs" / "kept.json").unlink()
    assert run(stop_at=None) == json.loads(json.dumps(found))


def test_live_says_why_there_is_no_model(capsys):
    assert lab.live("no-such-model", [], steps=1, seconds=1) == []
    assert "cannot be had here" in capsys.readouterr().out


def test_within_stops_at_the_first_of_two_limits():
    assert lab.within(float, steps=3, seconds=60) == [0.0, 1.0, 2.0]
    assert lab.within(float, steps=3, seconds=0) == []


# exercises


@pytest.mark.parametrize("seed", range(3))
def test_an_spsa_of_other_seeds_agrees(seed):
    solution = exercises.answers("11.spsa").right
    x = torch.arange(1.0, 6.0)
    z = direction(make_key(seed, 0, 0), "x", 5)
    slope = (torch.arange(1, 6) * x) @ z  # of the bowl, by hand
    torch.testing.assert_close(
        solution(lambda x: (torch.arange(1, 6) * x**2).sum() / 2, x, seed, 0.5),
        slope * z,
    )
