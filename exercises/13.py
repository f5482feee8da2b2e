"""The exercises of chapter 13; their answers are in solutions/13.py."""

import random
import struct
import zlib

from zolab.lab.exercises import Exercise


def packed(rows: list[tuple[int, float, float]]) -> bytes:
    """Records of (step, lr, coefficient); a crc goes on from the one before."""
    out, crc = b"", 0
    for row in rows:
        body = struct.pack("<Iff", *row)
        crc = zlib.crc32(body, crc)
        out += struct.pack("<I", crc) + body
    return out


def logs(rng: random.Random):
    n, torn = rng.choice([5, 6, 7]), rng.choice([3, 6, 9, 13])
    rows = [(k, 1e-3, rng.uniform(1, 9)) for k in range(n)]
    whole = packed(rows)
    damaged = bytearray(whole)
    damaged[16 * (n - 2) + rng.choice([9, 13])] ^= 1 << rng.randrange(7)
    cases = [(whole[:-torn],), (whole,), (bytes(damaged),)]
    return {"n": n, "left": 16 - torn, "cases": cases}


def steps(rng: random.Random, n: int, lrs: list[float]):
    """Records of (z, lr, g) for one weight."""
    return [
        (rng.choice([-1.0, 1.0]), lrs[k * len(lrs) // n], round(rng.uniform(1, 9), 2))
        for k in range(n)
    ]


def schedules(rng: random.Random):
    high = rng.choice([0.01, 0.02, 0.04])
    lrs = [high, high / 2, high / 4]
    cases = [(rng.uniform(1, 2), steps(rng, n, lrs), lrs[-1]) for n in (6, 9, 12)]
    return {"high": high, "low": lrs[-1], "cases": cases}


def decays(rng: random.Random):
    wd, lr = rng.choice([0.5, 1.0, 2.0]), rng.choice([0.02, 0.05])
    cases = [(rng.uniform(5, 9), steps(rng, n, [lr, lr / 2]), wd) for n in (4, 8, 20)]
    return {"wd": wd, "cases": cases}


EXERCISES = {
    "reader": Exercise(
        kind="write",
        minutes=15,
        stars=2,
        question="data holds records of 16 bytes: crc, step, lr, coefficient, as "
        "struct '<IIff', and no header. A crc is zlib.crc32 of the 12 bytes after it, "
        "begun at the crc of the record before (0 for the first). Return, without "
        "raising, the list of coefficients up to the first record that is torn or "
        "fails its checksum. Your first log has {n} records; the last write died after "
        "{left} bytes.",
        variant=logs,
        hints=(
            "How many bytes must be left for a whole record? The rest is no record.",
            "crc = zlib.crc32(data[at + 4 : at + 16], crc), then compare, then unpack.",
        ),
    ),
    "lr": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="A schedule took lr from {high} to {low}. One weight starts at w; a "
        "record is (z, lr, g), there is no weight decay, and the optimizer's lr is "
        "`now`. Return the weight after all records.",
        variant=schedules,
        hints=(
            "Which lr did the live run multiply g by, in step 0?",
            "w = w - lr * g * z for each record, with the record's own lr.",
        ),
    ),
    "decay": Exercise(
        kind="break",
        minutes=12,
        stars=2,
        question="The run had weight_decay = wd = {wd}. A rebuild of one weight from "
        "its records (z, lr, g) says w = w - lr * g * z, and does not end where the "
        "run did. Repair it: return the weight of equation (1) after all records. "
        "Leave its roundings away.",
        variant=decays,
        hints=(
            "Equation (1) multiplies the old weight first, and only that.",
            "w = (1 - lr * wd) * w - lr * g * z",
        ),
        tol=1e-5,
    ),
}
