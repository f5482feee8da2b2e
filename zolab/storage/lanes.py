"""Sixty-four lanes at once: what numba does not make vectors of by itself.

LLVM turns a vector of 64 into the instructions that the processor has (AVX-512, AVX2,
NEON). Left to itself it hashes one element after another: 2.6 ns each, here 1.1.

numba keeps what it compiled until the file that called is newer: who edits this file
saves `cpu.py` and `coded_cpu.py` again, or sees the old code run.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from zolab.noise import GOLDEN, MASK, MUL1, MUL2

N = 64
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), N), ir.VectorType(_I32, N)
_LONGS = ir.VectorType(_I64, N)
_STREAM = (types.uint64, types.uint64, types.uint64)


@intrinsic
def add_signs(typingctx, dst, src, at, bits, scale):
    """dst[at:at+64] = src[at:at+64] +- scale, bit k of `bits` choosing the sign."""
    sig = types.void(dst, src, types.intp, types.uint64, types.float32)

    def codegen(context, b, sig, args):
        mask = b.bitcast(args[3], ir.VectorType(ir.IntType(1), N))
        z = b.select(mask, _splat(b, args[4]), _splat(b, b.fneg(args[4])))
        x = b.load(_block(context, b, sig, args, 1, _FLOATS, args[2]), align=4)
        to = _block(context, b, sig, args, 0, _FLOATS, args[2])
        b.store(b.fadd(x, z), to, align=4)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def hashes(typingctx, out, at, k, k2, j):
    """out[at:at+64] = h(j) .. h(j + 63), for an array of uint64."""
    sig = types.void(out, types.intp, *_STREAM)

    def codegen(context, b, sig, args):
        to = _block(context, b, sig, args, 0, _LONGS, args[1])
        b.store(_hash(b, *args[2:]), to, align=8)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def ones(typingctx, out, at, k, k2, j):
    """out[at:at+64] = how many bits of h(j) .. h(j + 63) are set, for int32."""
    sig = types.void(out, types.intp, *_STREAM)

    def codegen(context, b, sig, args):
        to = _block(context, b, sig, args, 0, _INTS, args[1])
        kind, name = ir.FunctionType(_LONGS, [_LONGS]), f"llvm.ctpop.v{N}i64"
        count = b.module.globals.get(name) or ir.Function(b.module, kind, name)
        found = b.call(count, [_hash(b, *args[2:])])
        b.store(b.trunc(found, _INTS), to, align=4)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def popcount(typingctx, x):
    """The number of ones, by the instruction that the processor has for it."""
    return types.int64(x), lambda context, b, sig, args: b.ctpop(args[0])


def _block(context, b, sig, args, i, kind, at):
    """The address of 64 elements of the i-th argument, an array, from `at`."""
    data = context.make_array(sig.args[i])(context, b, args[i]).data
    return b.bitcast(b.gep(data, [at]), kind.as_pointer())


def _splat(b, x):
    kind = ir.VectorType(x.type, N)
    one = b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(_I32, 0))
    return b.shuffle_vector(one, one, ir.Constant(_INTS, [0] * N))


def _longs(x):
    return ir.Constant(_LONGS, [x] * N)


def _mix(b, x):
    for by, times in ((30, MUL1), (27, MUL2)):
        x = b.mul(b.xor(x, b.lshr(x, _longs(by))), _longs(times))
    return b.xor(x, b.lshr(x, _longs(31)))


def _hash(b, k, k2, j):
    """`noise`'s h(j) .. h(j + 63)."""
    first = b.add(k, b.mul(j, ir.Constant(_I64, GOLDEN)))
    steps = ir.Constant(_LONGS, [i * GOLDEN & MASK for i in range(N)])
    x = b.add(_splat(b, first), steps)
    return _mix(b, b.xor(_mix(b, x), _splat(b, k2)))
