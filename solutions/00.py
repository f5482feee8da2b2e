"""The answers to the exercises of chapter 00, and the usual wrong ones."""

from zolab.lab.exercises import Solution, Wrong


def multiple(up, down, eps, lr):
    return -lr * (up - down) / (2 * eps)


def best_eps(c, u):
    return (u / (2 * c)) ** (1 / 3)


def numbers_sent(d, steps, workers):
    return steps


SOLUTIONS = {
    "sign": Solution(
        right=multiple,
        wrong={
            "sign flipped": Wrong(
                lambda up, down, eps, lr: lr * (up - down) / (2 * eps),
                "that climbs: when it is higher ahead, the step must go back",
            ),
            "over eps": Wrong(
                lambda up, down, eps, lr: -lr * (up - down) / eps,
                "twice too long: the two points are 2 eps apart, not eps",
            ),
            "slope": Wrong(
                lambda up, down, eps, lr: (up - down) / (2 * eps),
                "that is the slope g; the step is -lr times it",
            ),
            "no lr": Wrong(
                lambda up, down, eps, lr: -(up - down) / (2 * eps),
                "the sign is right and lr is missing",
            ),
            "sign only": Wrong(
                lambda up, down, eps, lr: -lr * (1 if up > down else -1),
                "you kept the sign and threw the size away; equation (1) walks "
                "further where it is steeper",
            ),
        },
    ),
    "eps": Solution(
        right=best_eps,
        wrong={
            "smaller for ever": Wrong(
                lambda c, u: 0.0,
                "smaller is better only until rounding wins: u / eps has no bound as "
                "eps goes to 0. Look at the table's last row",
            ),
            "balance": Wrong(
                lambda c, u: (u / c) ** (1 / 3),
                "there the two errors are equal, which is close; the smallest sum is "
                "where their slopes cancel, and eps^2 brings a factor 2",
            ),
            "half a root": Wrong(
                lambda c, u: (u / (2 * c)) ** 0.5,
                "the derivative is 2 c eps - u / eps^2: eps to the third, not squared",
            ),
            "the sum": Wrong(
                lambda c, u: c * best_eps(c, u) ** 2 + u / best_eps(c, u),
                "that is the smallest sum; the question asks at which eps it is",
            ),
            "root": Wrong(
                lambda c, u: (u / c) ** 0.5,
                "a square root belongs to an error that grows as eps, that of a "
                "one-sided difference; here it grows as eps^2",
            ),
        },
    ),
    "count": Solution(
        right=numbers_sent,
        wrong={
            "d a step": Wrong(
                lambda d, steps, workers: d * steps,
                "you sent the arrow. Every machine draws it again from seed and step; "
                "only g is news, one number a step",
            ),
            "the weights": Wrong(
                lambda d, steps, workers: d,
                "that sends the weights at the end. It works, and it costs d numbers; "
                "the steps cost one each",
            ),
            "two losses": Wrong(
                lambda d, steps, workers: 2 * steps,
                "two losses would do, but equation (1) uses only their difference",
            ),
            "all of them": Wrong(
                lambda d, steps, workers: steps * (workers - 1),
                "that is what it sends in all; each of the others gets one a step",
            ),
        },
    ),
}
