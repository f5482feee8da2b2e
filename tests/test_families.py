"""Structured directions: low rank, subspaces, blocks, coordinates; every estimator."""

import copy
import math

import pytest
import torch
from helpers import closure, mlp, same_bits
from test_storage import on_both, slot_of
from torch import nn

import zolab
from zolab import (
    CGE,
    FZOO,
    SPSA,
    SVRG,
    Adam,
    Blocks,
    Conservative,
    Coordinates,
    EvolutionStrategy,
    ForwardGradient,
    HiZOO,
    LowRank,
    ModuleWise,
    RankSGD,
    Space,
    Subspace,
    ZOOptimizer,
    storage,
)
from zolab.families import Keys, directions, family_from
from zolab.gradient import Direction, Update

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = Keys(0, 3)
FAMILIES = {
    "low rank 1": LowRank(rank=1, every=1),
    "low rank 4": LowRank(rank=4),
    "low rank 64": LowRank(rank=64, every=7),
    "subspace": Subspace(rank=4, every=3),
    "blocks": Blocks(("0.*", "1.*", "[23].*")),
}


def z_of(family, shape=(300, 200), step=3, i=0):
    slot = slot_of(shape, torch.float32)
    return slot.direction(directions(family, Keys(0, step), i + 1)[i]).double()


@pytest.mark.parametrize("rank", [1, 2, 5, 64])
def test_low_rank_is_a_product_of_signs(rank):
    z = z_of(LowRank(rank=rank)) * math.sqrt(rank)
    assert torch.linalg.matrix_rank(z, rtol=1e-4) == rank
    whole = z.round()
    assert float((z - whole).abs().max()) < 1e-3 * rank
    assert (whole.long() % 2 == rank % 2).all()
    # by hand: signs from the two streams
    from zolab.noise import stream

    d, slot = (
        directions(LowRank(rank=rank), KEY, 1)[0],
        slot_of((300, 200), torch.float32),
    )
    factors = []
    for key, n in ((d.key, 300), (d.right, 200)):
        k = stream(key, slot.id)
        h = [
            zolab.noise._hash(k, torch.tensor([j])).item() & (2**64 - 1)
            for j in range(n)
        ]
        signs = [[1 if x >> b & 1 else -1 for b in range(rank)] for x in h]
        factors.append(torch.tensor(signs).double())
    assert torch.equal(factors[0] @ factors[1].T, whole)


def test_v_is_kept_and_u_is_not():
    """Row space equal within `every` steps, another one after; columns always new."""

    def spaces(step):
        u, _, vt = torch.linalg.svd(z_of(LowRank(rank=2, every=5), step=step))
        return u[:, :2], vt[:2].T

    (u1, v1), (u2, v2), (_, v5) = spaces(1), spaces(4), spaces(5)
    assert float((v1.T @ v2).norm()) == pytest.approx(math.sqrt(2), abs=1e-4)
    assert float((v1.T @ v5).norm()) < 0.5 and float((u1.T @ u2).norm()) < 0.5


def test_subspace_is_of_its_rank_and_orthonormal():
    z, later = (z_of(Subspace(rank=4, every=10), step=s) for s in (1, 9))
    assert torch.linalg.matrix_rank(z, rtol=1e-5) == 4
    assert torch.linalg.matrix_rank(torch.cat([z, later], 1), rtol=1e-5) == 4
    from zolab.subspace import factors

    for q in factors(5, 6, 300, 200, 4):
        assert torch.allclose(q.T @ q, torch.eye(4).double(), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["low rank 1", "low rank 4", "low rank 64", "subspace"]
)
@pytest.mark.parametrize("shape", [(40, 30), (40,), (8, 3, 5)])
def test_mean_zero_variance_one_and_no_correlation(name, shape):
    """E[z z'] = I is what makes every estimator unbiased."""
    family = FAMILIES[name]
    # a kept factor is the same in all of `every` steps, so they are spaced
    zs = torch.stack([z_of(family, shape, 70 * s).reshape(-1) for s in range(400)])
    n, d = zs.shape
    assert abs(float(zs.mean())) < 5 / math.sqrt(n * d / 30)
    assert float(zs.square().mean()) == pytest.approx(1, abs=0.1)
    second = zs.T @ zs / n - torch.eye(d)
    off = second - second.diag().diag()
    assert float(off.square().mean().sqrt()) == pytest.approx(1 / math.sqrt(n), rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_slices_rows_and_kernels_have_equal_bits(monkeypatch, name, dtype):
    d = directions(FAMILIES[name], KEY, 1)[0]
    slot = slot_of((300, 511), dtype)
    terms = ((d, 1e-3), (Direction(5), 1e-3))
    whole = storage.materialise(slot, terms, torch.empty_like(slot.base))
    assert not torch.equal(whole, slot.base)

    def parts():
        out = []
        for a, b in ((0, 70), (70, 133_000), (133_000, 153_300)):
            piece = torch.empty(b - a, dtype=dtype)
            out.append(storage.materialise(slot, terms, piece, start=a))
        return torch.cat(out).view_as(whole)

    index = torch.tensor([299, 0, 7, 7])

    def rows():
        return storage.rows(slot, terms, index, torch.empty(4, 511, dtype=dtype))

    def moved():
        other = slot_of((300, 511), dtype)
        u = Update(terms, (0.1,), (0.5,))
        storage.update(other, [(u, 1), (u, 2)], seed=0, stochastic=True)
        return other.base

    for x in on_both(monkeypatch, parts):
        assert torch.equal(x, whole)
    for x in on_both(monkeypatch, rows):
        assert torch.equal(x, whole[index])
    assert torch.equal(*on_both(monkeypatch, moved))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_header_makes_it_again(name):
    family = FAMILIES[name]
    again = family_from(family.settings)
    assert directions(again, KEY, 3) == directions(family, KEY, 3)


def test_blocks_move_their_slots_alone():
    space = Space.of(mlp())
    for i, d in enumerate(directions(FAMILIES["blocks"], KEY, 3)):
        moved = {s.name[0] for s in space if s.direction(d).any()}
        assert moved == set(["0", "1", "23"][i])


# every estimator, every family: live = replayed = resumed

COORDINATES = Coordinates.of(Space.of(mlp()), 0.05, every=2)
ESTIMATORS = {
    "lozo": lambda: SPSA(eps=1e-2, family=LowRank(every=2)),
    "subzero": lambda: SPSA(eps=1e-2, num_queries=2, family=Subspace(rank=3, every=2)),
    "eggroll": lambda: EvolutionStrategy(num_queries=3, family=LowRank(1, 1)),
    "fzoo low rank": lambda: FZOO(eps=1e-2, num_queries=3, family=LowRank()),
    "rank low rank": lambda: RankSGD(num_queries=4, search=2, family=LowRank()),
    "svrg low rank": lambda: SVRG(eps=1e-2, family=LowRank()),
    "forward": lambda: ForwardGradient(num_queries=2),
    "forward low rank": lambda: ForwardGradient(family=LowRank()),
    "cge": lambda: CGE(COORDINATES),
    "central": lambda: CGE(COORDINATES, central=True),
    "blocks": lambda: ModuleWise(["0.*", "1.*", "[23].*"]),
    "blocks at once": lambda: ModuleWise(["0.*", "1.*", "[23].*"], at_once=True),
    "conservative": lambda: Conservative(eps=1e-2),
    "hizoo": lambda: HiZOO(eps=1e-2, smooth=1e-3),
}


def run(model, name, steps, path=None, start=0, **kwargs):
    opt = ZOOptimizer(
        model, estimator=ESTIMATORS[name](), lr=1e-2, journal=path, **kwargs
    )
    assert opt.steps == start
    for _ in range(steps):
        opt.step(closure(model), full=closure(model, 2))
    if path is not None:
        opt.journal.close()
    return opt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_log_determines_the_weights(tmp_path, name, dtype):
    base, live = mlp(0, dtype), mlp(0, dtype)
    opt = run(live, name, 6, tmp_path / "log")
    assert not same_bits(live, base)
    replayed, half, resumed = (copy.deepcopy(base) for _ in range(3))
    assert zolab.replay(replayed, tmp_path / "log") == 6
    assert same_bits(replayed, live)
    run(half, name, 3, tmp_path / "parts")
    again = run(resumed, name, 3, tmp_path / "parts", start=3)
    assert same_bits(resumed, live)
    for a, b in zip(opt.space, again.space, strict=True):
        if a.curvature:
            assert torch.equal(a.curvature.hessian, b.curvature.hessian)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_it_descends(name):
    model = mlp()
    loss, first = closure(model), float(closure(model)().detach())
    few = name in ("cge", "central")  # 5 % of the coordinates a step
    opt = ZOOptimizer(model, estimator=ESTIMATORS[name](), lr=0.5 if few else 1e-2)
    for _ in range(10 if few else 40):
        opt.step(loss, full=loss)
    assert float(loss().detach()) < 0.95 * first


def test_adam_refuses_directions_that_are_not_signs_everywhere():
    for estimator in (SPSA(family=LowRank()), ModuleWise(["*"])):
        model = mlp()
        opt = ZOOptimizer(model, estimator=estimator, rule=Adam())
        with pytest.raises(ValueError, match="expected 1 of rademacher"):
            opt.step(closure(model))


# coordinates


class Quadratic(nn.Module):
    """(w - c)' A (w - c) / 2 in two slots, fp64 arithmetic on fp32 weights."""

    def __init__(self, d=24):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        root = torch.randn(d, d, generator=g).double()
        self.a = nn.Parameter(torch.randn(3, d // 6, generator=g))
        self.b = nn.Parameter(torch.randn(d // 2, generator=g))
        self.register_buffer("hessian", root @ root.T / d)

    def flat(self):
        return torch.cat([self.a.reshape(-1), self.b]).double()

    def forward(self):
        return self.flat() @ self.hessian @ self.flat() / 2

    def grad(self):
        return self.hessian @ self.flat().detach()


def dense(opt):
    g = opt.last.gradient.to_dense(opt.space)
    return torch.cat([g[s.name].reshape(-1) for s in opt.space]).double()


@pytest.mark.parametrize("central", [True, False])
def test_all_coordinates_are_finite_differences(central):
    model = Quadratic()
    eps = 2.0**-10
    cge = CGE(Coordinates.of(Space.of(model)), eps=eps, central=central)
    opt = ZOOptimizer(model, estimator=cge, lr=0.0)
    opt.step(model)
    assert len(opt.last.losses) == (48 if central else 25)
    bias = 0 if central else eps / 2 * model.hessian.diag()
    assert torch.allclose(dense(opt), model.grad() + bias, atol=2e-4)
    assert not torch.allclose(dense(opt), 1.01 * model.grad() + bias, atol=2e-4)


def test_a_share_is_drawn_anew_and_is_not_rescaled():
    model = Quadratic()
    family = Coordinates.of(Space.of(model), {"a": 0.25, "b": 0.5}, every=2)
    opt = ZOOptimizer(model, estimator=CGE(family, central=True), lr=0.0)
    chosen = []
    for _ in range(4):
        opt.step(model)
        g, there = dense(opt), dense(opt) != 0
        assert torch.allclose(g[there], model.grad()[there], atol=1e-3)
        assert (int(there[:12].sum()), int(there[12:].sum())) == (3, 6)
        chosen.append(there)
    assert torch.equal(chosen[0], chosen[1]) and torch.equal(chosen[2], chosen[3])
    assert not torch.equal(chosen[1], chosen[2])


def test_a_coordinate_probe_copies_one_slot_only():
    slot = slot_of((300, 511), torch.float32)
    other = Direction(7, "coordinate", within="v")
    assert storage.draws(slot, [(other, 1.0)]) == ()
    mine = Direction(511, "coordinate", within="w")
    out = storage.materialise(slot, [(mine, 0.5)], torch.empty_like(slot.base))
    assert (out - slot.base).nonzero().tolist() == [[1, 0]]


def test_thousands_of_coordinates_in_one_pass():
    """Equal to one by one, with repeats in the order of the log."""
    slot = slot_of((40, 50), torch.float32)
    index = torch.randint(0, 2000, (300,), generator=torch.Generator().manual_seed(0))
    terms = [
        (Direction(int(e), "coordinate", "w"), zolab.gradient.round16(0.1 * (i + 1)))
        for i, e in enumerate(index)
    ]
    want = slot.base.clone().view(-1)
    for d, s in terms:
        want[d.key] += s
    assert len(set(index.tolist())) < 300
    got = storage.materialise(slot, terms, torch.empty_like(slot.base))
    assert torch.equal(got.view(-1), want)


# forward gradient


def test_the_slope_is_exact():
    model = Quadratic()
    opt = ZOOptimizer(model, estimator=ForwardGradient(), lr=0.0)
    for _ in range(5):
        opt.step(model)
        ((d, c),) = opt.last.gradient.terms
        z = torch.cat([s.direction(d).reshape(-1) for s in opt.space]).double()
        assert c == pytest.approx(float(model.grad() @ z), rel=1e-5)


def test_a_number_without_derivative_is_refused():
    model = mlp()
    before = copy.deepcopy(model)
    loss = closure(model)
    opt = ZOOptimizer(model, estimator=ForwardGradient(), lr=0.1)
    for bad, words in (
        (lambda: float(loss()), "carries no derivative"),
        (lambda: loss().detach(), "no forward derivative"),
        (lambda: (model(torch.arange(3)).argmax(-1) == 1).float().mean(), "no forward"),
    ):
        with pytest.raises(zolab.errors.LossError, match=words):
            opt.step(bad)
    assert same_bits(model, before)


# blocks, conservative


def test_block_slopes_are_the_blocks_own():
    model = Quadratic()
    opt = ZOOptimizer(model, estimator=ModuleWise(["a", "b"]), lr=0.0)
    opt.step(model)
    for (d, c), cut in zip(opt.last.gradient.terms, ([0, 12], [12, 24]), strict=True):
        z = torch.cat([s.direction(d).reshape(-1) for s in opt.space]).double()
        assert not z[: cut[0]].any() and not z[cut[1] :].any()
        assert c == pytest.approx(float(model.grad() @ z), abs=2e-3)
    # blocks of one shape move differently
    first = [d.key for d, _ in opt.last.gradient.terms]
    assert len(set(first)) == 2


def test_at_once_asks_the_second_block_where_the_first_has_gone():
    lr, model = 0.2, Quadratic()
    opt = ZOOptimizer(model, estimator=ModuleWise(["a", "b"], at_once=True), lr=lr)
    w, h = model.flat().detach(), model.hessian
    opt.step(model)
    zs = [
        torch.cat([s.direction(d).reshape(-1) for s in opt.space]).double()
        for d, _ in opt.last.gradient.terms
    ]
    (_, a), (_, b) = opt.last.gradient.terms
    assert a == pytest.approx(float(h @ w @ zs[0]), abs=2e-3)
    assert b == pytest.approx(float(h @ (w - lr * a * zs[0]) @ zs[1]), abs=2e-3)


def test_conservative_takes_the_lowest_of_three():
    """And lands on it to the bit; a huge lr does no harm."""
    model, kinds = mlp(), set()
    opt = ZOOptimizer(model, estimator=Conservative(eps=1e-2), lr=0.3)
    for _ in range(30):
        before = float(closure(model)().detach())
        opt.step(closure(model))
        stay, down, up = opt.last.losses[2:]
        after = float(closure(model)().detach())
        assert stay == before and after == min(stay, down, up)
        kinds.add((stay, down, up).index(after))
    assert len(kinds) > 1
    tie = ZOOptimizer(model, estimator=Conservative(), lr=0.1)
    tie.step(lambda: 0.0 * closure(model)() + 1.0)
    assert tie.last.gradient.terms[0][1] == 0.0


# HiZOO


def test_hizoo_by_hand():
    model, lr, eps, smooth = Quadratic(), 0.05, 2.0**-7, 0.2
    opt = ZOOptimizer(model, estimator=HiZOO(eps=eps, smooth=smooth), lr=lr)
    w, h = model.flat().detach(), torch.ones(24).double()
    for _ in range(6):
        opt.step(model)
        ((d, g),) = opt.last.gradient.terms
        z = torch.cat([s.direction(d).reshape(-1) for s in opt.space]).double()
        at = [
            float((w + e * z / h.sqrt()) @ model.hessian @ (w + e * z / h.sqrt()) / 2)
            for e in (0, eps, -eps)
        ]
        assert opt.last.losses == pytest.approx(at, rel=1e-4)
        bend = abs(at[1] + at[2] - 2 * at[0]) / (2 * eps**2)
        h = (1 - smooth) * h + smooth * bend * h * z * z
        w = w - lr * g * z / h.sqrt()
        mine = torch.cat([s.curvature.hessian.reshape(-1) for s in opt.space]).double()
        assert torch.allclose(mine, h, rtol=0.02)
        h, w = mine, model.flat().detach()  # fp32 from here


def test_hizoo_sees_the_axis_that_is_steep():
    """On (25 x^2 + y^2) / 2, H of x comes out above H of y; signs could not tell."""

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self):
            return (25 * self.w[0].double() ** 2 + self.w[1].double() ** 2) / 2

    model = Bowl()
    opt = ZOOptimizer(model, estimator=HiZOO(eps=1e-2, smooth=0.02), lr=0.0)
    for _ in range(400):
        opt.step(model)
    x, y = opt.space["w"].curvature.hessian.tolist()
    assert x > 2 * y


@pytest.mark.parametrize(
    "make",
    [lambda: HiZOO(eps=1e-2, smooth=0.01), lambda: FZOO(eps=1e-2, reuse=True)],
    ids=["hizoo", "fzoo"],
)
def test_state_dict_holds_what_an_estimator_remembers(make):
    def start():
        model = mlp()
        return model, ZOOptimizer(model, estimator=make(), lr=1e-2)

    (a, opt), (b, other) = start(), start()
    for _ in range(3):
        opt.step(closure(a))
    b.load_state_dict(a.state_dict())
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.step(closure(a)), other.step(closure(b))
    assert same_bits(a, b)


def test_a_snapshot_holds_the_hessian(tmp_path):
    model = mlp()
    opt = ZOOptimizer(
        model, estimator=HiZOO(eps=1e-2, smooth=0.01), lr=1e-2, journal=tmp_path / "log"
    )
    for i in range(6):
        if i == 3:
            opt.snapshot()
        opt.step(closure(model))
    opt.journal.close()
    stranger = mlp(99)
    zolab.replay(stranger, tmp_path / "log")
    assert same_bits(stranger, model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRank(rank=0), "rank is 0"),
        (lambda: LowRank(rank=65), "at most 64"),
        (lambda: LowRank(every=0), "every is 0"),
        (lambda: Blocks(()), "0 patterns"),
        (lambda: SPSA(family="gaussian"), "unknown family 'gaussian'"),
        (lambda: family_from({"name": "Low"}), "unknown family 'Low'"),
        (lambda: Coordinates({"w": 3}, {"w": 4}), "4 coordinates of 'w'"),
        (lambda: Coordinates({"w": 3}, {"v": 1}), "1 coordinates of 'v'"),
        (lambda: Coordinates.of(Space.of(mlp()), 0.0), "more than 0"),
        (lambda: HiZOO(smooth=1.0), "smooth is 1.0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_two_learning_rates_are_refused_where_one_is_needed():
    model = mlp()
    groups = [
        {"params": list(model[i].parameters()), "lr": 0.1 * (i + 1)} for i in range(4)
    ]
    for estimator in (Conservative(), SVRG(), ModuleWise(["*"], at_once=True)):
        opt = ZOOptimizer(model, estimator=estimator, param_groups=copy.copy(groups))
        with pytest.raises(ValueError, match="expected one lr"):
            opt.step(closure(model), full=closure(model))
