"""Right and wrong answers to the exercises of chapter 22."""

import math

from zolab.lab.exercises import Solution, Wrong


def layer(w, h):
    return math.tanh(w * h)


def clean(weights, x):
    """The inputs of all layers."""
    inputs = [x]
    for w in weights[:-1]:
        inputs.append(layer(w, inputs[-1]))
    return inputs


def through(weights, h):
    for w in weights:
        h = layer(w, h)
    return h


def moved_outputs(steps, x, eps):
    out, size = [], len(steps[0])
    for weights in steps:
        inputs = clean(weights, x)
        for i, w in enumerate(weights):
            out.append(through([w + eps, *weights[i + 1 :]], inputs[i]))
    ran = size + size * (size + 1) / 2
    return [*out, ran / (size + size * size)]


def stale(steps, x, eps):
    out, size, inputs = [], len(steps[0]), clean(steps[0], x)
    for weights in steps:
        for i, w in enumerate(weights):
            out.append(through([w + eps, *weights[i + 1 :]], inputs[i]))
    ran = size + len(steps) * size * (size + 1) / 2
    return [*out, ran / (len(steps) * (size + size * size))]


def stale_but_counted(steps, x, eps):
    return [*stale(steps, x, eps)[:-1], moved_outputs(steps, x, eps)[-1]]


def full(steps, x, eps):
    return [*moved_outputs(steps, x, eps)[:-1], 1.0]


def no_clean(steps, x, eps):
    return [
        *moved_outputs(steps, x, eps)[:-1],
        0.5,
    ]  # size (size + 1) / 2 of size (size + 1)


def after(steps, x, eps):
    """Starts behind the layer that was moved: nothing ever moves."""
    out, size = [], len(steps[0])
    for weights in steps:
        out += [through(weights, x)] * size
    return [*out, (size + size * (size - 1) / 2) / (size + size * size)]


def dirty(steps, x, eps):
    """Writes a probe's outputs into the list that the next one starts from."""
    out = []
    for weights in steps:
        inputs = [*clean(weights, x), 0.0]
        for i, w in enumerate(weights):
            inputs[i + 1] = layer(w + eps, inputs[i])
            for k in range(i + 1, len(weights)):
                inputs[k + 1] = layer(weights[k], inputs[k])
            out.append(inputs[-1])
    return [*out, moved_outputs(steps, x, eps)[-1]]


def saved_and_kept(gradient, chosen):
    saved = 1 - (len(chosen) + 1) / (len(gradient) + 1)
    kept = sum(gradient[i] ** 2 for i in chosen) / sum(g**2 for g in gradient)
    return saved, kept


def factors_of(sizes, how):
    if how == "signs":
        return [1.0 for _ in sizes]
    if how == "whole":
        return [float(sum(sizes)) for _ in sizes]
    return [float(n) for n in sizes]


SOLUTIONS = {
    "reuse": Solution(
        right=moved_outputs,
        wrong={
            "stale": Wrong(
                stale,
                "your cache is from the first step: after an update the layers before "
                "l give other outputs. A cache lives as long as the weights before it",
            ),
            "stale, all counted": Wrong(
                stale_but_counted,
                "you counted a clean pass a step, and used the first one's outputs: "
                "after an update the layers before l give others",
            ),
            "no reuse": Wrong(
                full,
                "the outputs are right, but every pass ran all layers: pass l needs "
                "those from l on",
            ),
            "clean pass forgotten": Wrong(
                no_clean,
                "the outputs are right; the clean pass that fills the cache ran, too",
            ),
            "starts behind l": Wrong(
                after,
                "you started behind the layer that moved, so nothing moved: begin with "
                "the input of layer l, not with its output",
            ),
            "written over": Wrong(
                dirty,
                "a probe's outputs got into the cache: the next pass must start from "
                "the clean ones",
            ),
        },
    ),
    "share": Solution(
        right=saved_and_kept,
        wrong={
            "saved is lost": Wrong(
                lambda g, chosen: (
                    saved_and_kept(g, chosen)[0],
                    1 - saved_and_kept(g, chosen)[0],
                ),
                "what is saved in passes is not what is lost: the cosine depends on "
                "how much of the gradient lies on the chosen ones, not on how many "
                "they are",
            ),
            "count": Wrong(
                lambda g, chosen: (saved_and_kept(g, chosen)[0], len(chosen) / len(g)),
                "that is the mean over random choices; these coordinates have slopes "
                "of their own",
            ),
            "not squared": Wrong(
                lambda g, chosen: (
                    saved_and_kept(g, chosen)[0],
                    saved_and_kept(g, chosen)[1] ** 0.5,
                ),
                "that is the cosine; the question is for its square",
            ),
            "sizes": Wrong(
                lambda g, chosen: (
                    saved_and_kept(g, chosen)[0],
                    sum(g[i] for i in chosen) / sum(g),
                ),
                "lengths add in squares: take the squared slopes",
            ),
            "no clean loss": Wrong(
                lambda g, chosen: (
                    1 - len(chosen) / len(g),
                    saved_and_kept(g, chosen)[1],
                ),
                "the clean loss is one more pass, with all coordinates and with some",
            ),
        },
    ),
    "sphere": Solution(
        right=factors_of,
        wrong={
            "no factor": Wrong(
                lambda sizes, how: [1.0 for _ in sizes],
                "a vector of length 1 in d dimensions has elements of variance 1/d: "
                "the mean estimate is too short by d",
            ),
            "one for all": Wrong(
                lambda sizes, how: factors_of(
                    sizes, "signs" if how == "signs" else "whole"
                ),
                "scaled tensor by tensor, each tensor has its own 1/d_l: one factor "
                "for all leaves small tensors moving much farther than large ones",
            ),
            "root": Wrong(
                lambda sizes, how: [f**0.5 for f in factors_of(sizes, how)],
                "u enters twice, in the slope and in the step: the factor is d, not "
                "its root",
            ),
            "always": Wrong(
                lambda sizes, how: factors_of(
                    sizes, "whole" if how == "signs" else how
                ),
                "signs have variance 1 already: they need no factor",
            ),
            "inverse": Wrong(
                lambda sizes, how: [1 / f for f in factors_of(sizes, how)],
                "that is how much too short it is; multiply by the inverse",
            ),
        },
    ),
}
