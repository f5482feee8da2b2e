"""The Triton kernels equal the reference bit for bit: interpreted, and on a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zolab.gradient import round16, round32
from zolab.noise import FAMILIES, ROUNDING, make_key, slot_id, stream
from zolab.storage import Draw, Step, plain

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SLOT = slot_id("w")


def draws(families, scale=1e-3):
    return [
        Draw(
            stream(make_key(3, i), SLOT),
            f,
            round16((-1) ** i * scale * (i + 1)),
            stream(make_key(5, i), SLOT),
            rank=4,
            columns=53,
        )
        for i, f in enumerate(families)
    ]


def rounding(step):
    return stream(make_key(3, step, ROUNDING), SLOT)


def same(a, b):
    """The same bits; which NaN it is may differ."""
    equal = a.view(torch.uint8) == b.view(torch.uint8)
    equal = equal.view(a.numel(), -1).all(1) | (a.isnan() & b.isnan()).view(-1)
    return bool(equal.all())


def values(n, dtype, device):
    """Ordinary weights, then zeros, subnormals, large ones, infinities and NaN."""
    torch.manual_seed(0)
    w = torch.randn(n) * 0.02
    edge = [0.0, -0.0, 1e-7, -3e-6, 6.1e-5, 1e-38, 65504.0, -3e38, torch.inf, torch.nan]
    w[-len(edge) :] = torch.tensor(edge)
    return w.to(dtype).to(device)


KNOWN = (*FAMILIES, "low_rank", "rounded")
MIXES = [[f] for f in KNOWN] + [[*KNOWN, "rademacher"]]


def check_materialise(gpu, device, n=1500):
    for dtype in DTYPES:
        base = values(n, dtype, device)
        for out in {dtype, torch.float32}:
            for start, stop in [(0, n), (1, 2), (77, n - 3), (640, 640 + 128)]:
                every = start == 77 and dtype == torch.float32
                for mix in ([], *MIXES) if every else MIXES[-1:]:
                    a = torch.empty(stop - start, dtype=out, device=device)
                    b = torch.empty_like(a)
                    plain.materialise(base, draws(mix), a, start)
                    gpu.materialise(base, draws(mix), b, start)
                    assert same(a, b), (dtype, out, start, stop, mix)


def check_rows(gpu, device):
    index = torch.tensor([0, 36, 5, 5, 20], device=device)
    for dtype in DTYPES:
        for columns in (1, 53, 64, 1200):
            base = values(37 * columns, dtype, device).view(37, columns)
            a = torch.empty(5, columns, dtype=dtype, device=device)
            b = torch.empty_like(a)
            plain.rows(base, draws(FAMILIES), index, a)
            gpu.rows(base, draws(FAMILIES), index, b)
            assert same(a, b), (dtype, columns)


def check_update(gpu, device, n=1500):
    settings = [(1e-6, 1.0), (1e-3, round32(0.9)), (2e-8, round32(0.999))]
    for dtype in DTYPES:
        for scale, decay in settings:
            every = [[rounding(0), rounding(1), None], [None, None, None]]
            for bits in every if decay == 1.0 else every[:1]:
                steps = [
                    Step(decay, tuple(draws(m, scale)), r)
                    for m, r in zip(
                        MIXES[:3] if scale == 1e-3 else MIXES[-3:], bits, strict=True
                    )
                ]
                a = values(n, dtype, device)
                b = a.clone()
                plain.update(a, steps)
                gpu.update(b, steps)
                assert same(a, b), (dtype, scale, decay, bits)


def check_far(gpu, device):
    """Elements beyond 2^31: the number of an element is 64 bits wide everywhere."""
    start = 2**31 - 70
    base = torch.empty(start + 140, dtype=torch.bfloat16, device=device)  # 4 GB, unread
    base[start:] = 0.02
    a = torch.empty(140, device=device)
    b = torch.empty_like(a)
    plain.materialise(base, draws(FAMILIES), a, start)
    gpu.materialise(base, draws(FAMILIES), b, start)
    assert same(a, b)
    columns = 2**28
    wide, index = base[: 8 * columns - 128].view(-1, 64), torch.tensor([2**25 - 3])
    a = torch.empty(1, 64, dtype=base.dtype, device=device)
    b = torch.empty_like(a)
    wide[-1] = 0.02
    plain.rows(wide, draws(FAMILIES), index.to(device), a)
    gpu.rows(wide, draws(FAMILIES), index.to(device), b)
    assert same(a, b)


CHECKS = [check_materialise, check_rows, check_update, check_far]
ALL = """
from zolab.storage import gpu
import test_gpu_kernels as t
for check in t.CHECKS:
    check(gpu, "cpu")
"""


@needs_triton
def test_interpreted_kernels_equal_the_reference():
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here)])
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", ALL], check=True, env=env)


@needs_triton
@pytest.mark.parametrize("ones", [(), ("terms", "steps", "n", "start")])
@pytest.mark.parametrize(
    "name, family",
    [("_materialise", 0), ("_rows", 0), ("_update", 0), ("_materialise", 4)],
)
def test_kernels_compile_for_a_gpu_without_contraction(name, family, ones):
    """ptxas accepts them (that needs no GPU), and no product is fused with a sum.

    No shared memory: one layout throughout, so a thread draws a hash for its row and
    not for each element. Arguments that are 1 reach Triton as constants.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from zolab.storage import gpu

    kinds = dict.fromkeys(["n", "terms", "steps"], "i32") | {"start": "i64"}
    kinds |= dict.fromkeys(["words", "table", "index"], "*i64")
    kinds |= dict.fromkeys(["base", "out"], "*bf16")
    kernel = getattr(gpu, name)
    constants = {"R": gpu.ROWS, "FAMILY": family}
    constants |= {a: 1 for a in kernel.arg_names if a in ones}
    signature = {
        a: "constexpr" if a in constants else kinds[a] for a in kernel.arg_names
    }
    by16 = {
        (i,): [["tt.divisibility", 16]]
        for i, a in enumerate(kernel.arg_names)
        if a not in constants and a not in ("terms", "steps")
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=by16)
    target = GPUTarget("cuda", 90, 32)
    made = triton.compile(source, target=target, options=gpu.EXACT)
    assert "mul" in made.asm["ptx"] and "fma.rn.f32" not in made.asm["ptx"]
    assert made.metadata.shared == 0


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("check", CHECKS)
def test_kernels_equal_the_reference_on_cuda(check):
    from zolab.storage import gpu

    check(gpu, "cuda")
