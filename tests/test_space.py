"""What moves: names, ties, groups, and what cannot be a space."""

import pytest
import torch
from helpers import mlp
from torch import nn

from zolab.errors import SpaceError
from zolab.optimizers import decay_groups
from zolab.space import Space, canonical


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.q_proj.weight",
        "module.model.layers.0.q_proj.weight",
        "_orig_mod.model.layers.0.q_proj.weight",
        "base_model.model.model.layers.0.q_proj.weight",
        "base_model.model.model.layers.0.q_proj.base_layer.weight",
        "module._orig_mod.base_model.model.model.layers.0.q_proj.base_layer.weight",
    ],
)
def test_wrappers_leave_the_name_alone(name):
    assert canonical(name) == "model.layers.0.q_proj.weight"


def test_a_module_called_modules_is_not_a_wrapper():
    assert canonical("submodule.weight") == "submodule.weight"
    assert canonical("modules.weight") == "modules.weight"


def test_tied_weight_is_one_slot_with_the_first_name():
    m = mlp()
    m[3] = nn.Linear(16, 11, bias=False)
    m[3].weight = m[0].weight
    assert [s.name for s in Space.of(m)][0] == "0.weight"
    assert "3.weight" not in [s.name for s in Space.of(m)]


def test_tied_by_storage_is_one_slot_too():
    m = mlp()
    m[3] = nn.Linear(16, 11, bias=False)
    m[3].weight = nn.Parameter(m[0].weight.data)
    slot = Space.of(m)["0.weight"]
    assert len(slot.params) == 2


def test_frozen_parameters_do_not_move():
    m = mlp()
    m[0].weight.requires_grad_(False)
    assert "0.weight" not in [s.name for s in Space.of(m)]


def test_select_by_glob_and_regex():
    space = Space.of(mlp())
    assert [s.name for s in space.select("2.*")] == ["2.weight", "2.bias"]
    assert [s.name for s in space.select(r"re:^[13]\.weight")] == [
        "1.weight",
        "3.weight",
    ]
    with pytest.raises(SpaceError, match="no slot matches 'head'; slots are 0.weight"):
        space.select("head")


def test_decay_goes_by_module_type():
    """Names mislead: GPT-2's ln_f and LLaMA's model.norm are norms."""
    m = nn.ModuleDict({"ln_f": nn.LayerNorm(4), "norm": nn.RMSNorm(4)})
    m["layer_norm_fc"] = nn.Linear(4, 4)
    decayed, spared = decay_groups(m, 0.1)
    names = {id(p): n for n, p in m.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["layer_norm_fc.weight"]
    assert len(spared["params"]) == 4 and spared["weight_decay"] == 0.0
    assert len(decay_groups(m, 0.0)) == 1


def overlapping():
    m = nn.Module()
    flat = torch.zeros(10)
    m.a, m.b = nn.Parameter(flat[:6]), nn.Parameter(flat[4:])
    return m


def reshaped_tie():
    m = nn.Module()
    flat = torch.zeros(12)
    m.a, m.b = nn.Parameter(flat.view(3, 4)), nn.Parameter(flat.view(4, 3))
    return m


def transposed():
    m = nn.Linear(3, 4)
    m.weight = nn.Parameter(torch.zeros(3, 4).T)
    return m


def frozen():
    return mlp().requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2).double(), "weight is torch.float64, expected one of"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
        (overlapping, "a and b overlap in memory"),
        (reshaped_tie, "shares storage at another shape"),
        (transposed, "weight is not contiguous"),
        (frozen, "no parameter has requires_grad=True"),
        (lambda: torch.compile(mlp()), "is compiled with torch.compile"),
    ],
)
def test_what_cannot_be_a_space(make, message):
    with pytest.raises(SpaceError, match=message):
        Space.of(make())


def test_tied_weight_in_two_groups_is_refused():
    m = mlp()
    m[3] = nn.Linear(16, 11, bias=False)
    m[3].weight = nn.Parameter(m[0].weight.data)
    groups = [{"params": [m[0].weight]}, {"params": [m[3].weight]}]
    with pytest.raises(SpaceError, match="0.weight is tied but stands in groups"):
        Space.of(m).grouped(groups)
