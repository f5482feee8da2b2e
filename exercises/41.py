"""The exercises of chapter 41."""

import random

from zolab.lab.exercises import Exercise


def odd_sizes(rng: random.Random):
    cases = []
    for bits, count in ((4, rng.choice([7, 9])), (2, rng.choice([5, 6])), (4, 8)):
        codes = [rng.randrange(2**bits) for _ in range(count)]
        codes[0], codes[1], codes[-1] = 1, 2, rng.randrange(1, 2**bits)
        cases.append((codes, bits))
    return {"count": len(cases[0][0]), "cases": cases}


def numbers(rng: random.Random):
    low = rng.randint(2, 5)
    cases = [(low + 0.3, 0.2), (low + 0.3, 0.4), (low + 0.3, 0.9), (low + 0.8, 0.9)]
    cases += [(-low - 0.3, 0.2), (-low - 0.3, 0.6), (-low - 0.3, 0.8), (float(low), 0)]
    return {"low": low, "cases": cases}


def ragged(rng: random.Random):
    rows, left = rng.choice([6, 10, 64]), rng.choice([1, 8, 36])
    columns = 3 * 64 + left
    cases = [(rows, columns, 4, 64, False), (rows, columns, 4, 64, True)]
    cases += [(rows, 2 * columns, 2, 32, True), (3, 5, 4, 2, False)]
    return {"rows": rows, "columns": columns, "cases": cases}


EXERCISES = {
    "pack": Exercise(
        kind="write",
        minutes=12,
        stars=2,
        question="codes is a list of whole numbers of `bits` bits each (4 or 2), "
        "{count} of them, say. Return the list of bytes that hold them: low bits "
        "first, bytes filled one after another, the rest of the last one 0.",
        variant=odd_sizes,
        hints=(
            "A byte takes 8 // bits codes. How many bytes do 7 codes of 4 bits need?",
            "Fill the list with zeros up to a whole byte; then code i of a byte is "
            "shifted left by bits * i.",
        ),
        tol=0.0,
    ),
    "unbiased": Exercise(
        kind="break",
        minutes=10,
        stars=2,
        question="A program rounds its codes with math.floor(x + 0.5), and steps of "
        "less than half a level are lost. Mend it: x is a number, as {low}.3 or "
        "-{low}.3, and u is uniform in [0, 1). Return a whole number next to x whose "
        "mean over u is x, the upper one for small u.",
        variant=numbers,
        hints=(
            "Up with which probability, if x is 0.3 above the whole number below?",
            "Below is math.floor(x), for negative x as well.",
        ),
        tol=0.0,
    ),
    "remainder": Exercise(
        kind="derive",
        minutes=10,
        stars=2,
        question="A matrix of rows x columns weights ({rows} x {columns}, say) has "
        "codes of `bits` bits, packed without a gap, and a scale of four bytes for "
        "every `group` weights of a row; with `zeros` a zero point of four bytes "
        "beside each scale. Return its bytes.",
        variant=ragged,
        hints=(
            "How many groups has a row of 200 that is cut into pieces of 64?",
            "-(-columns // group) groups a row; -(-rows * columns * bits // 8) bytes "
            "of codes.",
        ),
        tol=0.0,
    ),
}
