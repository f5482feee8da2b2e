"""Published programs with tensors of state: their code is the formula on our sheet.

The programs run as they are; `Watch` sees from outside where they asked for the loss,
and from that the formula is evaluated again in fp64. `test_published_defects.py` has
what else they do.
"""

import numpy as np
import pytest
import torch
from lifted import Watch, cosine, flat, functions, made, methods, needs, split, stand_in

pytestmark = pytest.mark.usefixtures("one_thread")
EPS, LR = 1e-3, 1e-2
CLOSE = 1e-3  # fp32 points a probe apart give z to 6e-5; losses give g to 1e-4


def hizoo(net, loss, *, torch=torch, np=np, **setting):
    """HiZOO's trainer; its H starts at ones of the weights' dtype, as its loop says."""
    wanted = {"efficient_Hessian_perturb_parameters", "zo_Hessian_step_update"}
    names = {"torch": torch, "np": np}
    cls = methods("HiZOO", "trainer.py", "OurTrainer", {"zo_forward", *wanted}, **names)
    t = stand_in(cls, loss, **setting)
    t.Hessian_matrix = {n: torch.ones_like(p) for n, p in net.named_parameters()}
    return t


def lozo(loss, *, momentum=False, torch=torch, np=np, **setting):
    """LOZO's trainer for large models, or the one with momentum for medium ones."""
    file = (
        "medium_models/src/LOZOtrainer.py"
        if momentum
        else "large_models/LOZOtrainer.py"
    )
    names = ["perturb_parameters", "step", "update"]
    wanted = {f"lowrank_zo_{n}" for n in names + ["update_momentum"] * momentum}
    wanted |= {"zo_forward", "random_gaussian_matrix"}
    cls = methods("LOZO", file, "LowRankTrainer", wanted, torch=torch, np=np)
    t = stand_in(cls, loss, **setting)
    t.args.rank_r = t.args.rank
    return t


def subzero(net, loss, *, torch=torch, np=np, bases=None, **setting):
    file = "large_models/trainer.py"
    names = functions("SubZero", file, "fast_svd_method_v2", "reshape_matrix")
    wanted = {"perturb_parameters", "step", "update"}
    cls = methods(
        "SubZero",
        file,
        "OurTrainer",
        {"zo_forward", *(f"zo_subspace_{w}" for w in wanted)},
        fast_svd_method_v2=bases or names[0],
        reshape_matrix=names[1],
        torch=torch,
        np=np,
    )
    sgd = torch.optim.SGD(net.parameters(), lr=LR)
    t = stand_in(cls, loss, optimizer=sgd, mode="ft", update_interval=2, **setting)
    t.p_state = {}
    return t


def part(got, want):
    """How far `got` is from `want`, over the length of `want`."""
    return float((got - want).norm() / want.norm())


@needs("HiZOO")
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_hizoo(weight_decay):
    """Probe along z / sqrt(H); H takes in |L+ + L- - 2 L0| H z^2; move by the new H."""
    net, loss = made()
    watch = Watch(net, loss)
    t = hizoo(net, watch, weight_decay=weight_decay)
    smooth, h = 0.1, torch.ones(flat(net).numel(), dtype=torch.float64)
    for _ in range(3):
        watch.points.clear(), watch.losses.clear()
        t.zo_Hessian_step_update(net, {}, LR, smooth)
        start, up, down, end = watch.points
        clean, plus, minus, _ = watch.losses
        z = (up - down) / (2 * EPS) * h.sqrt()
        bend = abs(plus + minus - 2 * clean) / (2 * EPS**2)
        h = (1 - smooth) * h + smooth * bend * h * z * z
        g = (plus - minus) / (2 * EPS) * z / h.sqrt()
        assert part(end - start, -LR * (g + weight_decay * start)) < CLOSE
        theirs = torch.cat([t.Hessian_matrix[n].flatten() for n in t.Hessian_matrix])
        assert part(theirs.double(), h) < CLOSE
    assert h.max() > 1.5  # it did something


@needs("LOZO")
@pytest.mark.parametrize("rank", [1, 3])
def test_lozo_between_refreshes(rank):
    """W moves along the U V' that it was probed along; V stays for the interval."""
    net, loss = made()
    watch = Watch(net, loss)
    t = lozo(watch, step_interval=4, rank=rank)
    rows = []
    for step in range(8):
        watch.points.clear(), watch.losses.clear()
        t.lowrank_zo_step(net, {})
        start = flat(net)
        t.lowrank_zo_update()
        d = watch.direction(EPS)
        if step % 4:
            g = (watch.losses[0] - watch.losses[1]) / (2 * EPS)
            assert part(flat(net) - start, -LR * g * d) < CLOSE
        u, s, vh = torch.linalg.svd(split(net, d)[0])
        assert s[rank] < 1e-3 * s[0] < s[rank - 1]
        rows.append(vh[:rank].T @ vh[:rank])
    same = [part(a, b) < 1e-2 for a, b in zip(rows, rows[1:], strict=False)]
    assert same == [True, True, True, False, True, True, True]


@needs("LOZO")
def test_lozo_momentum_lives_in_u_and_is_carried_to_a_new_v():
    """N <- b N V_old' V / n + (1 - b) g U at a refresh, N <- b N + (1 - b) g U else.

    U is here what the update draws, which at a refresh is not what was probed.
    """
    net, loss = made()
    watch = Watch(net, loss)
    b, r = 0.7, 2
    t = lozo(watch, momentum=True, step_interval=3, rank=r, beta1=b)
    m: dict[str, torch.Tensor] = {}
    old: dict[str, torch.Tensor] = {}
    for step in range(7):
        watch.losses.clear()
        t.lowrank_zo_step(net, {})
        start = flat(net)
        t.lowrank_zo_update_momentum()
        g = (watch.losses[0] - watch.losses[1]) / (2 * EPS)
        torch.manual_seed(t.zo_random_seed)
        moves = []
        for name, p in net.named_parameters():
            shape = (len(p), r) if p.ndim == 2 else p.shape
            now = g * torch.randn(shape).double()
            v = t.v[name].double() if p.ndim == 2 else None
            if step == 0:
                m[name] = now
            else:
                if v is not None and step % 3 == 0:
                    m[name] = m[name] @ (old[name].T @ v) / len(v)
                m[name] = b * m[name] + (1 - b) * now
            if v is not None:
                old[name] = v.clone()
            moves.append((m[name] if v is None else m[name] @ v.T).flatten())
        assert part(flat(net) - start, -LR * torch.cat(moves)) < CLOSE


@needs("SubZero")
def test_subzero():
    """d = sqrt(m n) / r U Z V: orthonormal U and V that stay, E |d|^2 = m n; 1-D: z."""
    net, loss = made()
    watch = Watch(net, loss)
    r = 4
    t = subzero(net, watch, gauss_rank=r)
    sizes, kept = [], []
    for step in range(12):
        t.state.global_step = step
        watch.points.clear(), watch.losses.clear()
        t.zo_subspace_step(net, {})
        start = flat(net)
        t.zo_subspace_update(net)
        d = watch.direction(EPS)
        g = (watch.losses[0] - watch.losses[1]) / (2 * EPS)
        assert part(flat(net) - start, -LR * g * d) < CLOSE
        first = split(net, d)[0]
        u, v = (t.p_state["0.weight"][k].double() for k in "UV")
        assert part(u @ (u.T @ first @ v.T) @ v, first) < CLOSE
        assert part(u.T @ u, torch.eye(r)) < 1e-5
        sizes.append(float(first.square().sum()) / first.numel())
        kept.append(u)
    # the mean of 12 x 16 squares of normal numbers
    assert sum(sizes) / len(sizes) == pytest.approx(1, abs=0.35)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])
    assert abs(cosine(kept[1].flatten(), kept[2].flatten())) < 0.3
