"""Right and wrong answers to the exercises of chapter 23."""

import math

from zolab.lab.exercises import Solution, Wrong


def kept(slopes, beta, window):
    ages = range(len(slopes) - 1, -1, -1)
    return [
        c * beta**age if age < window else 0.0
        for c, age in zip(slopes, ages, strict=True)
    ]


def mean_sign(grad):
    length = math.sqrt(sum(x * x for x in grad))
    return [math.sqrt(2 / math.pi) * x / length for x in grad]


def arcsine(grad):
    length = math.sqrt(sum(x * x for x in grad))
    return [2 / math.pi * math.asin(x / length) for x in grad]


def best(scores):
    return max(range(len(scores)), key=scores.__getitem__)


def fair(our_dev, our_test, their_dev, their_test):
    return our_test[best(our_dev)] - their_test[best(their_dev)]


SOLUTIONS = {
    "window": Solution(
        right=kept,
        wrong={
            "bias corrected": Wrong(
                lambda s, b, w: [x / (1 - b**w) for x in kept(s, b, w)],
                "dividing by 1 - beta^W mends the length where all slopes are equal, "
                "and nothing else: it makes the kept keys louder, while what was cut "
                "pointed along other z. The window is short by beta^W; leave it so",
            ),
            "averaged": Wrong(
                lambda s, b, w: [(1 - b) * x for x in kept(s, b, w)],
                "that is the average (dampening = beta); a heavy ball adds g whole",
            ),
            "one too many": Wrong(
                lambda s, b, w: kept(s, b, w + 1),
                "that keeps window + 1 keys: the newest has age 0, so age < window",
            ),
            "oldest heaviest": Wrong(
                lambda s, b, w: kept(s[::-1], b, w)[::-1],
                "the newest slope weighs 1 and the oldest least: ages run backwards",
            ),
            "nothing cut": Wrong(
                lambda s, b, w: kept(s, b, len(s)),
                "that is the endless memory; keys older than the window are gone",
            ),
        },
    ),
    "sign": Solution(
        right=mean_sign,
        wrong={
            "sign of g z": Wrong(
                arcsine,
                "that is the mean of sign(g) sign(z_i), signSGD's: it bends each "
                "coordinate by an arcsine. sign(g) z keeps the gradient's direction",
            ),
            "sign of the gradient": Wrong(
                lambda grad: [math.copysign(1.0, x) if x else 0.0 for x in grad],
                "one slope knows the sign of a coordinate only a little more often "
                "than not: small coordinates get small means",
            ),
            "the gradient": Wrong(
                lambda grad: list(grad),
                "that is the mean of g z; the sign has thrown the size of g away, so "
                "ten times the loss gives the same step",
            ),
            "no 2 / pi": Wrong(
                lambda grad: [x / math.sqrt(math.pi / 2) for x in mean_sign(grad)],
                "once too often: E|z| of one normal number is sqrt(2 / pi), once",
            ),
        },
    ),
    "fair": Solution(
        right=fair,
        wrong={
            "ours alone": Wrong(
                lambda od, ot, td, tt: ot[best(od)] - tt[len(tt) // 2],
                "you tuned ours and left theirs at its paper's lr, for another model. "
                "Give both the same grid",
            ),
            "on test": Wrong(
                lambda od, ot, td, tt: max(ot) - max(tt),
                "the lr was chosen on the sentences that judge it: both look better "
                "than they are, the wobblier one more. Choose on dev",
            ),
            "one lr for both": Wrong(
                lambda od, ot, td, tt: ot[best(od)] - tt[best(od)],
                "equal lr is not equal tuning: a momentum step is ten times longer at "
                "the same lr. Each side has its own best",
            ),
            "on dev": Wrong(
                lambda od, ot, td, tt: max(od) - max(td),
                "those are the scores that chose the lr; report the ones that did not",
            ),
        },
    ),
}
