"""Right and wrong answers to the exercises of chapter 11."""

from zolab import direction, make_key
from zolab.lab.exercises import Solution, Wrong


def spsa(loss, x, seed, eps):
    z = direction(make_key(seed, 0, 0), "x", x.shape)
    slope = (loss(x + eps * z) - loss(x - eps * z)) / (2 * eps)
    return slope * z


def spsa_over_eps(loss, x, seed, eps):
    return 2 * spsa(loss, x, seed, eps)


def slope_only(loss, x, seed, eps):
    z = direction(make_key(seed, 0, 0), "x", x.shape)
    return (loss(x + eps * z) - loss(x - eps * z)) / (2 * eps)


def spsa_new_z(loss, x, seed, eps):
    asked = direction(make_key(seed, 0, 0), "x", x.shape)
    slope = (loss(x + eps * asked) - loss(x - eps * asked)) / (2 * eps)
    return slope * direction(make_key(seed, 0, 1), "x", x.shape)


def spsa_one_sided(loss, x, seed, eps):
    z = direction(make_key(seed, 0, 0), "x", x.shape)
    return (loss(x + eps * z) - loss(x)) / eps * z


def error(q, d):
    return (d - 1) / q


def new_lr(lr, d, new_d):
    # 1 / 10 fits ten axes. On a hundred a step costs ten times what it gains: the loss
    # grows at every step, and steps_needed gives up at 3000.
    return lr * d / new_d


SOLUTIONS = {
    "spsa": Solution(
        right=spsa,
        wrong={
            "over eps": Wrong(
                spsa_over_eps,
                "twice too long: the two points are 2 eps apart, not eps",
            ),
            "new z": Wrong(
                spsa_new_z,
                "you asked along one direction and moved along another: the answer "
                "tells nothing about it. Draw z once, or draw it again from its key",
            ),
            "slope only": Wrong(
                slope_only,
                "that is one number, the slope; the estimate is slope times z",
            ),
            "difference": Wrong(
                lambda loss, x, seed, eps: 2 * eps * spsa(loss, x, seed, eps),
                "the difference of two losses is no slope: divide by their distance",
            ),
            "one-sided": Wrong(
                spsa_one_sided,
                "that is the one-sided difference: it also measures eps z'Hz / 2",
            ),
        },
    ),
    "error": Solution(
        right=error,
        wrong={
            "q squared": Wrong(
                lambda q, d: (d - 1) / q**2,
                "1/q^2 is what dividing ONE sum by q does to its square; but the sum "
                "of q independent errors has q times the variance: q / q^2 = 1 / q",
            ),
            "d over q": Wrong(
                lambda q, d: d / q,
                "that is |estimate|^2 without its cross terms, and the gradient is "
                "still in it: take off both",
            ),
            "root": Wrong(
                lambda q, d: ((d - 1) / q) ** 0.5,
                "that is the size of the error; the question asks for its square",
            ),
            "second moment": Wrong(
                lambda q, d: (q + d - 1) / q,
                "that is |estimate|^2; the error has the gradient itself taken off",
            ),
        },
    ),
    "lr": Solution(
        right=new_lr,
        wrong={
            "none": Wrong(
                lambda lr, d, new_d: lr,
                "with the old lr the step's length, and with it the damage, grows "
                "with d: the loss would rise. The gradient's lr needs no change, "
                "the estimate's does",
            ),
            "upside down": Wrong(
                lambda lr, d, new_d: lr * new_d / d,
                "upside down: more live axes, more noise, shorter steps",
            ),
            "root": Wrong(
                lambda lr, d, new_d: lr * (d / new_d) ** 0.5,
                "that keeps the step's length; but the useful part of the step is "
                "only 1/sqrt(d) of it, so lr must shrink once more",
            ),
        },
    ),
}
