"""The exercises of chapter 22; their answers are in solutions/22.py."""

from zolab.lab.exercises import Exercise


def nets(rng):
    def weights(size):
        return [round(rng.uniform(0.5, 1.5), 2) for _ in range(size)]

    return {
        "cases": [
            ([weights(3)], 0.7, 0.5),
            ([weights(4), weights(4)], 0.4, 0.25),
            ([weights(2), weights(2), weights(2)], 1.1, 0.5),
        ]
    }


def gradients(rng):
    g = [round(rng.uniform(0.1, 2.0), 1) for _ in range(10)]
    return {"cases": [(g, [0, 3, 7]), (g, [1]), ([3.0, 1.0, 1.0, 1.0], [0])]}


def layers(rng):
    sizes = [rng.choice([12, 40, 100]), rng.choice([3, 5, 10]), 2]
    cases = [(sizes, how) for how in ("signs", "whole", "tensor")]
    return {"cases": [*cases, ([7, 9], "whole"), ([7, 9], "tensor")]}


EXERCISES = {
    "reuse": Exercise(
        kind="write",
        minutes=15,
        stars=2,
        question="Layer l computes tanh(w_l * h). `steps` holds the weights at each "
        "training step. For every step and every l find the output at `x` with w_l "
        "moved by `eps`, starting at layer l. Return one list: all outputs in order, "
        "then the share of layers you ran, of those that whole passes would run; a "
        "clean pass a step counts in both.",
        variant=nets,
        hints=(
            "A clean pass leaves a list of inputs, one a layer; pass l begins with "
            "the l-th.",
            "The clean pass runs all L layers and pass l, from 0 on, L - l of L; the "
            "next step has other weights.",
        ),
    ),
    "share": Exercise(
        kind="derive",
        minutes=8,
        stars=1,
        question="One-sided CGE asks only the `chosen` coordinates of a loss with this "
        "`gradient`. Return (the share of passes saved against asking all, the squared "
        "cosine of the estimate with the gradient).",
        variant=gradients,
        hints=(
            "The clean loss is a pass in both cases.",
            "The estimate is the gradient with zeros: its product with the gradient is "
            "its own squared length.",
        ),
    ),
    "sphere": Exercise(
        kind="derive",
        minutes=10,
        stars=2,
        question="(u'g) u is averaged over random u. By what must the estimate of each "
        'tensor of these `sizes` be multiplied to be right? `how`: "signs" (u of +-1), '
        '"whole" (u scaled to length 1), "tensor" (each tensor\'s part scaled to 1). '
        "Return a list, one factor a tensor.",
        variant=layers,
        hints=(
            "E[(u'g) u] = E[u u'] g, and the trace of E[u u'] is E|u|^2.",
            "By symmetry all elements of a scaled group share that trace equally.",
        ),
    ),
}
