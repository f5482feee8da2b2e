"""The kernels for packed weights give the bits of their definition, in any slice."""

import copy
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import zolab
from zolab.engines import mode
from zolab.engines.resident import Resident
from zolab.gradient import Direction, Probe, round16, round32
from zolab.noise import ROUNDING, elements, make_key, slot_id, stream
from zolab.storage import Draw, Step, coded, coded_plain, cpu, plain
from zolab.storage.codecs import WHOLE, codec
from zolab.storage.packed import Packed, pack_tensor, unpack_bits, where

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
NAMES = ("int8", "int4", "int2", "uint8", "uint4", "uint2", "nf4", "e4m3")
GROUPS = (0, WHOLE, 32, 3)
SHAPE = (7, 131)  # an odd number, rows that cut 64 in two, one Triton program
SLOT, RIGHT = slot_id("w"), stream(make_key(5, 0), slot_id("w"))
FAMILIES = ("rademacher", "near_normal", "rounded", "low_rank")
MIXES = [(), *((f,) for f in FAMILIES), FAMILIES]


def draws(families, scale=1e-3, rank=4, columns=SHAPE[1]):
    return [
        Draw(
            stream(make_key(3, i), SLOT),
            family,
            round16((-1) ** i * scale * (i + 1)),
            RIGHT,
            rank,
            columns=columns,
        )
        for i, family in enumerate(families)
    ]


def packed(name, group, shape=SHAPE, *, snap=False, device="cpu"):
    """Codes of a random matrix; a scale of one group is 0."""
    z = elements(stream(1, 2), torch.arange(torch.Size(shape).numel()), "near_normal")
    p = pack_tensor(z.view(shape) * 0.1, codec(name, group=group))
    scale = p.scale.data.clone()
    if len(scale) > 1:
        scale[1, 0] = 0.0
    parts = [p.codes, scale, p.zero, torch.full_like(scale, 0.75)]
    codes, scale, zero, unit = (None if t is None else t.to(device) for t in parts)
    scale = nn.Parameter(scale, requires_grad=False)
    return Packed(p.codec, p.shape, codes, scale, zero, unit, snap)


def grid(p, start=0, n=None):
    """The scales and zero points that a kernel gets for elements from `start`."""
    part = slice(*p.span(start, p.shape.numel() - start if n is None else n))
    zero = None if p.zero is None else p.zero.view(-1)[part]
    return p.scales().view(-1)[part], zero


def same(a, b):
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


ALL = tuple(itertools.product(GROUPS, (False, True)))  # group size, snap
N = torch.Size(SHAPE).numel()


KINDS = (torch.float32, torch.bfloat16)
SLICES = ((0, N), (1, 2), (77, N - 3))


def check_materialise(kernels, device, name, cases=ALL, slices=SLICES, kinds=KINDS):
    for group, snap in cases:
        p = packed(name, group, snap=snap, device=device)
        for start, stop in slices:
            mixes = MIXES if start == 77 and group == 32 else MIXES[-1:]
            for mix, kind in itertools.product(mixes, kinds):
                a = torch.empty(stop - start, dtype=kind, device=device)
                b, s = torch.empty_like(a), grid(p, start, stop - start)
                coded_plain.materialise(p, draws(mix), a, start, *s)
                kernels.materialise(p, draws(mix), b, start, *s)
                assert same(a, b), (name, group, snap, start, mix, kind)


def check_rows(kernels, device, name, cases=ALL):
    index = torch.tensor([0, 6, 5, 5, 1], device=device)
    for group, snap in cases:
        p = packed(name, group, snap=snap, device=device)
        at = p.row(index)
        s, zero = p.scales()[at], None if p.zero is None else p.zero[at]
        for kind in KINDS:
            a = torch.empty(5, SHAPE[1], dtype=kind, device=device)
            b = torch.empty_like(a)
            coded_plain.rows(p, draws(FAMILIES), index, a, s, zero)
            kernels.rows(p, draws(FAMILIES), index, b, s, zero)
            assert same(a, b), (name, group, snap, kind)


def steps(scale, decay, rounded=True):
    """Three pending steps; the last one rounds to nearest, or all do."""
    bits = [stream(make_key(3, t, ROUNDING), SLOT) for t in (0, 1)]
    bits = [*bits, None] if rounded else [None] * 3
    mixes = (("rounded",), FAMILIES, ("rademacher", "near_normal"))
    return [
        Step(decay, tuple(draws(m, scale)), r) for m, r in zip(mixes, bits, strict=True)
    ]


SETTINGS = ((3e-3, round32(0.9), True), (1e-5, 1.0, True), (1e-1, 1.0, False))


def check_update(kernels, device, name, cases=ALL, settings=SETTINGS):
    for group, snap in cases:
        for scale, decay, rounded in settings:
            a, b = (packed(name, group, snap=snap, device=device) for _ in range(2))
            before = a.codes.clone()
            pending = steps(scale, decay, rounded)
            coded_plain.update(a, pending, *grid(a))
            kernels.update(b, pending, *grid(b))
            assert torch.equal(a.codes, b.codes), (name, group, snap, scale, decay)
            assert not torch.equal(a.codes, before) or scale == 1e-5


CHECKS = (check_materialise, check_rows, check_update)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_numba_equals_the_definition(check, name):
    from zolab.storage import coded_cpu

    check(coded_cpu, "cpu", name)


FEW = {  # the interpreter takes a second for what numba does in a millisecond
    "int4": ((32, False), (WHOLE, True)),
    "uint2": ((3, False),),
    "nf4": ((0, False),),
    "e4m3": ((32, True),),
}
RUN = """
from zolab.storage import coded_gpu as k
import test_packed_kernels as t
for name, cases in t.FEW.items():
    t.check_materialise(k, "cpu", name, cases, t.SLICES[2:], t.KINDS[1:])
    if name == "int4":
        t.check_rows(k, "cpu", name, cases[-1:])
    t.check_update(k, "cpu", name, cases, t.SETTINGS[:1])
"""


@needs_triton
def test_interpreted_triton_equals_the_definition():
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here)])
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", RUN], check=True, env=env)


@needs_triton
@pytest.mark.parametrize("name", ("_materialise", "_rows", "_update"))
@pytest.mark.parametrize("even", (True, False))
def test_triton_compiles_for_a_gpu_without_contraction(name, even):
    """ptxas accepts them, and no product is fused with a sum."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from zolab.storage import coded_gpu

    kernel = getattr(coded_gpu, name)
    kinds = dict.fromkeys(["words", "index"], "*i64") | {"codes": "*u8", "start": "i64"}
    kinds |= dict.fromkeys(["scale", "zero", "levels"], "*fp32") | {"out": "*bf16"}
    kinds["table"] = "*i64" if name == "_update" else "*fp32"
    size = {"COLUMNS": 4096, "GROUP": 64, "BITS": 4, "R": coded_gpu.ROWS}
    size |= {"ZERO": not even, "EVEN": even, "SNAP": False, "FAMILY": 3 * even}
    constants = {a: size[a] for a in kernel.arg_names if a in size}
    signature = {
        a: "constexpr" if a in constants else kinds.get(a, "i32")
        for a in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constexprs=constants)
    made = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options=coded_gpu.EXACT
    )
    assert "mul" in made.asm["ptx"] and "fma.rn.f32" not in made.asm["ptx"]
    assert made.metadata.shared == 0 or not even


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_triton_equals_the_definition_on_cuda(check, name):
    from zolab.storage import coded_gpu

    check(coded_gpu, "cuda", name)


@pytest.mark.parametrize("threads", (1, 2, 3))
def test_threads_change_no_bit(threads, monkeypatch):
    """Pieces begin where a hash does, and a byte belongs to one thread."""
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "PARALLEL", 0)
    shape, start = (13, 1001), 77
    a, b = packed("int4", 48, shape), packed("int4", 48, shape)
    x, y = (torch.empty(13 * 1001 - start) for _ in range(2))
    s, pending = grid(a, start), steps(3e-3, 1.0)
    try:
        torch.set_num_threads(threads)
        coded.materialise(a, draws(FAMILIES), x, start)
        coded.update(a, pending)
    finally:
        torch.set_num_threads(before)
    coded_plain.materialise(b, draws(FAMILIES), y, start, *s)
    coded_plain.update(b, pending, *grid(b))
    assert same(x, y) and torch.equal(a.codes, b.codes)


@pytest.mark.parametrize("snap", (False, True))
def test_steps_at_once_are_steps_one_by_one(snap):
    a, b = (packed("uint4", 32, snap=snap) for _ in range(2))
    pending = steps(3e-3, round32(0.9))
    coded.update(a, pending)
    for step in pending:
        coded.update(b, [step])
    assert torch.equal(a.codes, b.codes)


@pytest.mark.parametrize("bits", (1, 2, 4, 5, 6, 8))
@pytest.mark.parametrize("start", (0, 1, 62, 250))
def test_rounded_directions_have_the_bits_of_their_definition(bits, start):
    """Also where s z is a zero with a sign, and in place."""
    w = torch.tensor([0.0, -0.0, 0.02, -3e-3]).repeat(200)[: 700 - start]
    moves = draws(("rounded", "rounded"), 0.25, bits)
    a, b = torch.empty_like(w), w.clone()
    base = torch.cat([torch.zeros(start), w])
    plain.materialise(base, moves, a, start)
    cpu.materialise(base, moves, c := torch.empty_like(w), start)
    cpu.add(b, moves, start)
    assert same(a, b) and same(a, c)


def test_random_bits_of_a_slice():
    like, chance = torch.empty(600), stream(7, 8)
    for start in (0, 3, 1025):
        assert torch.equal(
            cpu.bits(chance, start, like).long(), plain.bits(chance, start, like)
        )


def test_a_group_without_a_scale_keeps_its_codes():
    p = packed("int4", 32)
    before = p.codes.clone()
    group = where(torch.arange(p.shape.numel()), SHAPE[1], 32).view(SHAPE)
    there = group == 5  # row 1, whose first scale is 0
    coded.update(p, steps(1.0, 1.0))
    old, new = (unpack_bits(c, 4, there.numel()) for c in (before, p.codes))
    assert torch.equal(old[there.view(-1)], new[there.view(-1)])
    assert not torch.equal(old, new)


@pytest.mark.parametrize("group", (WHOLE, 0, 3))
@pytest.mark.parametrize("moving", ("codes", "scales"))
def test_tiles_and_looked_up_rows_take_their_own_scales(group, moving, monkeypatch):
    """A tall head goes by tiles and an embedding by rows: as if moved as a whole."""
    monkeypatch.setattr(mode, "TILE", 16)
    monkeypatch.setattr(mode.Materialise, "tall", 32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 7), nn.Linear(7, 50))
    zolab.pack(model, "uint4", group=group)
    for n, p in model.named_parameters():
        p.requires_grad_(hasattr(p, "packed") if moving == "codes" else "scale" in n)
        if hasattr(p, "packed"):
            p.packed.unit = torch.full_like(p.packed.scale, 0.75)
    ids, whole = torch.tensor([[9, 0, 9, 4]]), copy.deepcopy(model)
    opt = zolab.MeZO(model, engine=Resident(scratch="one"))
    term = (Direction(make_key(0, 0), "near_normal"), 0.0078125)
    probes = [Probe((term,))]
    got = opt.engine.evaluate(probes, {"loss": lambda: model(ids).square().mean()})
    for p in whole.parameters():
        if moving == "scales" and hasattr(p, "packed"):
            scale = p.packed.scale
            name = next(n for n, q in whole.named_parameters() if q is scale)
            scale.data += 0.0078125 * opt.space[name].direction(term[0])
    for n, p in zolab.unpack(whole).named_parameters():
        if moving == "codes" and n in {s.name for s in opt.space}:
            p.data += 0.0078125 * opt.space[n].direction(term[0])
    assert got[0].value == float(whole(ids).square().mean())
