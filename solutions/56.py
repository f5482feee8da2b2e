"""Right and wrong answers to the exercises of chapter 56."""

from statistics import pstdev, pvariance

from zolab.lab.exercises import Solution, Wrong


def spread(rewards):
    return pstdev([x for row in rewards for x in row])


def lr_of_spsa(rewards, eps, lr):
    return lr * eps / spread(rewards)


def shared(rewards):
    n = len(rewards)
    return [
        (sum(y < x for y in rewards) - sum(y > x for y in rewards)) / (2 * (n - 1))
        for x in rewards
    ]


def by_place(rewards):
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    return [order.index(i) / (len(rewards) - 1) - 0.5 for i in range(len(rewards))]


def both(up, down):
    n = len(up)
    gaps = [a - b for a, b in zip(up, down, strict=True)]
    return [pvariance(gaps) / n, (pvariance(up) + pvariance(down)) / n]


SOLUTIONS = {
    "lr": Solution(
        right=lr_of_spsa,
        wrong={
            "1 / sigma": Wrong(
                lambda r, eps, lr: lr / eps,
                "the lr absorbs 1 / eps the other way round, and the std is missing",
            ),
            "without the std": Wrong(
                lambda r, eps, lr: lr * eps,
                "z-scores divide by the std of the rewards as well",
            ),
            "upside down": Wrong(
                lambda r, eps, lr: lr * spread(r) / eps,
                "that turns SPSA's lr into that of ES; the question asks back",
            ),
        },
    ),
    "ranks": Solution(
        right=shared,
        wrong={
            "by position": Wrong(
                by_place,
                "ties are broken by position: a population of equal rewards would walk",
            ),
            "upside down": Wrong(
                lambda r: [-x for x in shared(r)],
                "the highest reward stands at + 1/2",
            ),
            "not centred": Wrong(
                lambda r: [x + 0.5 for x in shared(r)],
                "from 0 to 1 they do not add up to 0, and all directions pull",
            ),
        },
    ),
    "prompts": Solution(
        right=both,
        wrong={
            "always fresh": Wrong(
                lambda a, b: [both(a, b)[1]] * 2,
                "with common questions what is hard for both cancels",
            ),
            "of one question": Wrong(
                lambda a, b: [x * len(a) for x in both(a, b)],
                "that is one question's; a mean over n has 1 / n of it",
            ),
            "variances subtracted": Wrong(
                lambda a, b: [abs(pvariance(a) - pvariance(b)) / len(a), both(a, b)[1]],
                "variances never subtract: take the variance of the differences",
            ),
        },
    ),
}
