"""Right and wrong answers to the exercises of chapter 24."""

from zolab.lab.exercises import Solution, Wrong


def squared_cosine(q, d, moved, kept):
    return kept * q / (q + moved - 1)


def after_three_moves(w, z, h, eps, once=False):
    inside = abs(w) <= h
    for scale in (1, -2, 1):
        if inside if once else abs(w) <= h:
            w = w + scale * eps * z
    return w


def start_of_u(t, every, m, n, r):
    return n * r if t % every == 0 else 0


SOLUTIONS = {
    "cosine": Solution(
        right=squared_cosine,
        wrong={
            "old d": Wrong(
                lambda q, d, moved, kept: kept * q / (q + d - 1),
                "d is in it no more: frozen weights make no noise, so the estimate "
                "has the noise of the `moved` ones only",
            ),
            "masked gradient": Wrong(
                lambda q, d, moved, kept: q / (q + moved - 1),
                "that is with the masked gradient; the whole gradient has a part in "
                "the frozen weights that no step can follow",
            ),
            "twice": Wrong(
                lambda q, d, moved, kept: kept * q / (q + d - 1) * moved / d,
                "fewer weights make the noise smaller, not larger",
            ),
            "share squared": Wrong(
                lambda q, d, moved, kept: kept**2 * q / (q + moved - 1),
                "`kept` is a share of the squared gradient already: it is the squared "
                "cosine of the masked with the whole gradient",
            ),
            "root": Wrong(
                lambda q, d, moved, kept: squared_cosine(q, d, moved, kept) ** 0.5,
                "that is the cosine; its square was asked",
            ),
        },
    ),
    "restore": Solution(
        right=after_three_moves,
        wrong={
            "given back": Wrong(
                lambda w, z, h, eps: w,
                "it comes back only if all three questions have one answer; a weight "
                "that crosses h on the way skips a move",
            ),
            "minus one": Wrong(
                lambda w, z, h, eps: w + eps * z if abs(w) <= h else w,
                "a weight that stays below h makes all three moves, and is back; and "
                "the third question is asked again, too",
            ),
            "asked at +eps": Wrong(
                lambda w, z, h, eps: (
                    after_three_moves(w, z, h, eps, once=True)
                    if abs(w + eps * z) <= h
                    else w + eps * z
                ),
                "the first question is asked of w itself: a weight above h does not "
                "make the first move",
            ),
        },
    ),
    "lazy": Solution(
        right=start_of_u,
        wrong={
            "beginning": Wrong(
                lambda t, every, m, n, r: 0,
                "on a step with a new V the probe drew V first, so U does not lie at "
                "the beginning: this is the published order, and such a step moves "
                "along a direction that was never asked",
            ),
            "always past V": Wrong(
                lambda t, every, m, n, r: n * r,
                "V is kept on most steps: then U is all that the probe drew",
            ),
            "past U": Wrong(
                lambda t, every, m, n, r: m * r if t % every == 0 else 0,
                "V has n x r numbers, not m x r",
            ),
            "swapped": Wrong(
                lambda t, every, m, n, r: 0 if t % every == 0 else n * r,
                "the other way round: V is drawn on the steps that `every` divides",
            ),
        },
    ),
}
