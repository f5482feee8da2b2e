"""The exercises of chapter 43; their answers are in solutions/43.py."""

from zolab.lab.exercises import Exercise


def still(rng):
    step = rng.choice([0.5, 0.25, 0.125])
    near = rng.choice([0.34, 0.38, 0.41])
    w = [(k + off) * step for k, off in zip((1, -2, 0, 3), (0.1, -near, 0.2, 0.04))]  # noqa: B905
    return {"cases": [(w, step), ([0.3, 1.15, -0.7], 1.0), ([0.02, 0.21], 0.1)]}


def groups(rng):
    far = rng.choice([2.4, 2.5, 2.6])
    many = [k / 40 - 1 for k in range(81)]
    shares = [1.0, 0.8, 0.6, 0.4, 0.2]
    few = [x for x in many if abs(x) < 0.75]
    return {"cases": [([*many, far, -far], 2, shares), ([*few, 3, -2.8], 3, shares)]}


def budgets(rng):
    ours = rng.choice([0.055, 0.058, 0.061])
    held = [0.201, 0.171, 0.159, 0.082]
    seen = [0.196, 0.168, 0.090, 0.093]
    return {
        "cases": [
            (held, seen, ours, 0.012),
            ([0.3, 0.2, 0.1, 0.15], [0.31, 0.18, 0.17, 0.16], ours, 0.03),
        ]
    }


EXERCISES = {
    "still": Exercise(
        kind="break",
        minutes=12,
        stars=2,
        question="A loss sees its weights w rounded to multiples of `step`. A run with "
        "a tiny eps found the slope 0 along a hundred z of signs and stopped: "
        "converged. Return the smallest eps from which on the loss at w + eps z and "
        "at w - eps z could differ.",
        variant=still,
        hints=(
            "The loss changes when one weight passes the middle between two levels.",
            "How far is each weight from its nearest middle? One crossing is enough.",
        ),
    ),
    "clip": Exercise(
        kind="write",
        minutes=15,
        stars=2,
        question="A group w gets 2^bits evenly spaced values from share * min(w) to "
        "share * max(w); each weight takes the nearest, what lies outside the end. "
        "Return the share of `shares` whose square error, summed, is least.",
        variant=groups,
        hints=(
            "A narrower range is finer inside and cuts more outside: count both.",
            "For each share: build the values, take the nearest one of each weight, "
            "add up the squares.",
        ),
    ),
    "fair": Exercise(
        kind="derive",
        minutes=8,
        stars=2,
        question="Nats a token above the unrounded model: of four methods that do "
        "not train (nearest, clip, HQQ, GPTQ) on held-out texts, `held`, and on "
        "validation texts, `seen`; of your trained method on held-out texts, `ours`. "
        "The same training lowers an unrounded model by `tuned`. Return what you may "
        "credit to training with the rounding in.",
        variant=budgets,
        hints=(
            "Which baseline would a careful user have taken, without looking at held?",
            "Part of your gain any model would have had from reading those texts.",
        ),
    ),
}
