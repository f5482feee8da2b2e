"""Right and wrong answers to the exercises of chapter 41."""

import math

from zolab.lab.exercises import Solution, Wrong


def packed(codes, bits):
    each = 8 // bits
    whole = codes + [0] * (-len(codes) % each)
    return [
        sum(code << bits * i for i, code in enumerate(whole[at : at + each]))
        for at in range(0, len(whole), each)
    ]


def dropped(codes, bits):
    each = 8 // bits
    return packed(codes[: len(codes) // each * each], bits)


def high_first(codes, bits):
    each = 8 // bits
    whole = codes + [0] * (-len(codes) % each)
    turned = [whole[at : at + each][::-1] for at in range(0, len(whole), each)]
    return packed([c for part in turned for c in part], bits)


def a_byte_each(codes, bits):
    return list(codes)


def two_a_byte(codes, bits):
    whole = codes + [0] * (len(codes) % 2)
    pairs = zip(whole[::2], whole[1::2], strict=True)
    return [low | high << bits for low, high in pairs]


def unbiased(x, u):
    return math.floor(x) + (u < x - math.floor(x))


def nearest(x, u):
    return math.floor(x + 0.5)


def a_coin(x, u):
    return math.floor(x) + (u < 0.5)


def toward_zero(x, u):
    return int(x) + (u < x - int(x))


def up_for_large(x, u):
    return math.floor(x + u)


def noisy(x, u):
    return math.floor(x + 0.5 + u)


def remainder(rows, columns, bits, group, zeros):
    rulers = rows * -(-columns // group)
    return -(-rows * columns * bits // 8) + 4 * rulers * (1 + zeros)


def no_remainder(rows, columns, bits, group, zeros):
    rulers = rows * (columns // group)
    return -(-rows * columns * bits // 8) + 4 * rulers * (1 + zeros)


def across_rows(rows, columns, bits, group, zeros):
    rulers = -(-rows * columns // group)
    return -(-rows * columns * bits // 8) + 4 * rulers * (1 + zeros)


def no_zeros(rows, columns, bits, group, zeros):
    return remainder(rows, columns, bits, group, False)


def codes_alone(rows, columns, bits, group, zeros):
    return -(-rows * columns * bits // 8)


def half_a_byte(rows, columns, bits, group, zeros):
    whole = remainder(rows, columns, bits, group, zeros)
    return whole - -(-rows * columns * bits // 8) + rows * columns * bits / 8


SOLUTIONS = {
    "pack": Solution(
        right=packed,
        wrong={
            "drop the last": Wrong(
                dropped,
                "you packed whole bytes only: the last code of an odd count is a "
                "weight too. Its byte is half empty, and it is written",
            ),
            "high first": Wrong(
                high_first,
                "right, in another order: there are formats that put the first code "
                "in the high bits. Here it is low bits first",
            ),
            "a byte each": Wrong(
                a_byte_each,
                "a byte for each code saves nothing: 8 // bits of them share one",
            ),
            "two a byte": Wrong(
                two_a_byte,
                "two codes a byte is right for four bits; of two bits each, four fit",
            ),
        },
    ),
    "unbiased": Solution(
        right=unbiased,
        wrong={
            "floor + 0.5": Wrong(
                nearest,
                "that is the rounding that loses them: 0.3 becomes 0 whatever u is, "
                "and its mean is 0, not 0.3",
            ),
            "a coin": Wrong(
                a_coin,
                "up every other time: 0.3 would be 0.5 on average. The probability "
                "is the distance from the number below",
            ),
            "toward zero": Wrong(
                toward_zero,
                "int() cuts toward zero. Below -2.3 lies -3, and a negative number "
                "must be able to go there",
            ),
            "up for large u": Wrong(
                up_for_large,
                "right on average, and another rounding: it goes up for large u. A "
                "replay needs the same choice from the same bits",
            ),
            "noise and nearest": Wrong(
                noisy,
                "floor(x + 0.5 + u) is half a level too high on average: either the "
                "0.5 or the u, not both",
            ),
        },
    ),
    "remainder": Solution(
        right=remainder,
        wrong={
            "no remainder": Wrong(
                no_remainder,
                "the weights that are left at a row's end have no ruler with you. A "
                "smaller group is a group: round up",
            ),
            "across rows": Wrong(
                across_rows,
                "you cut the whole tensor into groups: yours run over the end of a "
                "row into the next one, which is another output",
            ),
            "no zeros": Wrong(
                no_zeros,
                "you forgot the zero points: where there are, each group has one",
            ),
            "codes alone": Wrong(
                codes_alone,
                "codes without a ruler are whole numbers: count the scales",
            ),
            "half a byte": Wrong(
                half_a_byte,
                "there are no half bytes: an odd count of codes ends in one that is "
                "not full",
            ),
        },
    ),
}
