"""What published programs do that their papers do not say, shown on their own code.

Each line: the code's line, what it does, and after the arrow what zolab does. A bare
number is a line of the program's trainer.py; LOZO's is LOZOtrainer.py.

LOZO 710, 808          a refresh step moves along another U than was probed -> one z
LOZO 716               U V' without 1 / r: r times the gradient -> variance 1
HiZOO 515              a fourth pass, for the log alone -> 3 passes
HiZOO 351              H in fp16 never leaves 1 -> fp32
HiZOO run.py 69        smoothing 0 by default, which is MeZO -> 1e-8
FZOO 222, 744          loss reuse is never switched on -> not there
FZOO 757               the spread over N, not over N - 1 -> N - 1
FZOO 760               equal losses: every weight is NaN -> no move
SubZero 757, 987       a matrix narrower than r: the update fails -> plain z
ZO-LLM 315             weight_decay goes nowhere -> it decays
ZO-LLM pruning_utils   sparsity s masks a share Phi(s) (line 34) -> s
ZO-LLM 1124            q > 1: probes are masked, the update is not -> one z
ZO-LLM 881, 900        blocks of equal shape get equal z -> z by name
ZO-LLM 1327            a tie or a NaN goes uphill -> stays, raises

and in test_published_defects_more.py

ZO-AdaMU 238, 732      TypeError in the first step
ZO-AdaMU 733, 833      the slope that is measured is last step's -> one z
ZO-AdaMU 243           the schedule falls at each call -> at each step
DeepZero 22            (gradient_estimate.py) rge is mu / d_k times the gradient -> 1
DeepZero 6             its f leaves the net where it probed -> never moved
es-at-scale 152        (worker_extension.py) all tensors have one noise -> z by name
mezo 133               (PyPI, mezo.py) the update draws another z, row by row -> one z

Nothing here says that a paper is wrong: what the papers state are other rules.
"""

import ast
import re

import numpy as np
import pytest
import torch
from lifted import (
    Watch,
    checkout,
    cosine,
    flat,
    functions,
    made,
    methods,
    needs,
    stand_in,
)
from test_published_codes import FORWARD, ZO_LLM, zo_llm
from test_published_formulas import hizoo, lozo, subzero
from torch import nn

import zolab
from zolab.gradient import Direction
from zolab.space import Space

pytestmark = pytest.mark.usefixtures("one_thread")
EPS = 1e-3


def moved(net, step):
    before = flat(net)
    step()
    return flat(net) - before


@needs("LOZO")
def test_lozo_refreshes_with_one_u_and_moves_along_another():
    net, loss = made()
    watch = Watch(net, loss)
    t = lozo(watch, step_interval=5, rank=2)
    along = []
    for _ in range(11):
        watch.points.clear()
        t.lowrank_zo_step(net, {})
        move = moved(net, t.lowrank_zo_update)
        along.append(abs(cosine(move, watch.direction(EPS))))
    for step, value in enumerate(along):
        assert value < 0.2 if step % 5 == 0 else value > 0.999
    # 1-D slots have variance 1, matrices r: no 1 / r, no 1 / sqrt(r)
    matrix = watch.direction(EPS)[: 64 * 96]
    assert matrix.square().mean() == pytest.approx(2, rel=0.3)


@needs("HiZOO")
def test_hizoo_asks_four_times_and_its_default_is_mezo():
    net, loss = made()
    watch = Watch(net, loss)
    t = hizoo(net, watch)
    t.zo_Hessian_step_update(net, {}, 1e-2, 0)  # hessian_smooth_type "constant0"
    assert len(watch.points) == 4
    assert torch.equal(watch.points[3], flat(net))  # after the update: for the log
    z = (watch.points[1] - watch.points[2]) / (2 * EPS)
    move = watch.points[3] - watch.points[0]
    assert abs(cosine(move, z)) > 0.999
    assert all((h == 1).all() for h in t.Hessian_matrix.values())


@needs("HiZOO")
def test_hizoo_in_half_precision_never_learns_its_curvature():
    """Smoothing 1e-8 (its README): 1 - 1e-8 and 1 + 1e-6 are 1 in fp16."""
    largest = {}
    for dtype in (torch.float32, torch.float16):
        net, loss = made(dtype=dtype)
        t = hizoo(net, loss)
        for _ in range(5):
            t.zo_Hessian_step_update(net, {}, 1e-4, 1e-8)
        largest[dtype] = max(
            float((h - 1).abs().max()) for h in t.Hessian_matrix.values()
        )
    assert largest[torch.float16] == 0
    assert largest[torch.float32] > 1e-7


@needs("FZOO")
def test_fzoo_never_reuses_a_loss_and_a_tie_is_nan():
    net, loss = made()
    watch = Watch(net, loss)
    wanted = {"zo_step", "zo_update", "_get_learning_rate", *FORWARD}
    cls = methods("FZOO", "trainer.py", "OurTrainer", wanted)
    t = stand_in(cls, watch)
    t.N, t.losses = 8, None  # as its __init__ leaves them
    for step in range(3):
        t.zo_step(net, {})
        t.zo_update(net)
        assert len(watch.points) == 9 * (step + 1)  # N / 2 + 1 would be 5
    source = (checkout("FZOO") / "trainer.py").read_text()
    assert re.findall(r"self\.losses = (\w+)", source) == ["None"]
    watch.script = [1.0] * 9
    t.zo_step(net, {})
    t.zo_update(net)
    assert flat(net).isnan().all()
    mine, my_loss = made()
    before = flat(mine)
    est = zolab.FZOO(eps=EPS, num_queries=8)
    zolab.ZOOptimizer(mine, estimator=est, lr=1.0).step(lambda: 0 * my_loss())
    assert torch.equal(flat(mine), before)


@needs("SubZero")
def test_subzero_cannot_move_a_matrix_narrower_than_its_rank():
    net, loss = made()
    t = subzero(net, loss, gauss_rank=16)
    t.zo_subspace_step(net, {})  # (10, 96) is probed with rank 10
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        t.zo_subspace_update(net)


@needs("ZO-LLM")
def test_zo_llm_weight_decay_goes_nowhere():
    ends = []
    for weight_decay in (0.0, 100.0):
        net, loss = made()
        np.random.seed(0)
        zo_llm("zo_step", net, loss, weight_decay=weight_decay).zo_step(net, {})
        ends.append(flat(net))
    assert torch.equal(*ends)
    # and none of the SGDs and Adams that its loop makes is given any
    tree = ast.walk(ast.parse((checkout("ZO-LLM") / ZO_LLM).read_text()))
    made_there = [
        n
        for n in tree
        if isinstance(n, ast.Call) and ast.unparse(n.func) in ("SGD", "Adam")
    ]
    assert len(made_there) == 4
    assert all("weight_decay" not in ast.unparse(n) for n in made_there)


@needs("ZO-LLM")
@pytest.mark.parametrize(("sparsity", "masked"), [(0.5, 0.691), (0.9, 0.816)])
def test_zo_llm_masks_phi_of_the_sparsity_and_not_the_update(sparsity, masked):
    file = "zo-bench/gradient_pruning/pruning_utils.py"
    (mask,) = functions("ZO-LLM", file, "fast_random_mask_like")
    for step, queries in (("zo_step", 1), ("zo_step_v1", 2)):
        net, loss = made()
        watch = Watch(net, loss)
        t = zo_llm(step, net, watch, queries=queries, mask=mask, ours=torch)
        t.gradient_sparsity = sparsity
        move = moved(net, lambda t=t, s=step, net=net: getattr(t, s)(net, {}))
        still = float((watch.direction(EPS).abs() < 1e-2).double().mean())
        assert still == pytest.approx(masked, abs=0.02)
        unmoved = float((move.abs() < 1e-6).double().mean())
        assert unmoved == pytest.approx(masked if queries == 1 else 0, abs=0.03)


@needs("ZO-LLM")
def test_zo_llm_gives_equal_blocks_the_same_direction():
    net = nn.Module()
    net.model = nn.Module()
    net.model.decoder = nn.Module()
    net.model.decoder.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
    x = torch.randn(4, 32)
    first, second = net.model.decoder.layers
    watch = Watch(net, lambda: second(first(x).tanh()).square().mean())
    (levels,) = functions(
        "ZO-LLM", "zo-bench/utils.py", "OPT_PERTURBATION_LEVEL_TO_REGEX"
    )
    step = "zo_step_with_module_wise_perturbation"
    args = {"perturbed_module_level": "transformer-block"}
    t = zo_llm(step, net, watch, ours=torch, levels=levels, **args)
    getattr(t, step)(net, {})
    half = flat(net).numel() // 2
    za, zb = watch.direction(EPS)[:half], watch.direction(EPS, at=2)[half:]
    assert cosine(za, zb) > 0.999
    mine = [s.direction(Direction(1)).flatten().double() for s in Space.of(net)]
    assert abs(cosine(mine[0], mine[2])) < 0.1


@needs("ZO-LLM")
@pytest.mark.parametrize(
    ("clean", "down", "up"),
    [
        (1.0, 1.1, 1.0),
        (1.0, 0.9, 0.9),
        (1.0, float("nan"), 2.0),
        (1.0, 0.5, float("nan")),
    ],
)
def test_zo_llm_conservative_ties_and_nan_go_uphill(clean, down, up):
    """theta + s, where the slope says that the loss is higher, wins these."""
    net, loss = made()
    watch = Watch(net, loss, [clean, 1.2, 0.8, down, up])
    zo_llm("zo_conserv_step", net, watch).zo_conserv_step(net, {})
    torch.testing.assert_close(flat(net), watch.points[4])
