"""Right and wrong answers to the exercises of chapter 43."""

from zolab.lab.exercises import Solution, Wrong


def to_middle(w, step):
    """How far each weight is from the nearest middle between two levels."""
    return [step / 2 - abs(x - step * round(x / step)) for x in w]


def first_crossing(w, step):
    return min(to_middle(w, step))


def values(w, bits, share):
    low, high, top = share * min(w), share * max(w), 2**bits - 1
    return [low + (high - low) * k / top for k in range(top + 1)]


def errors(w, bits, share):
    grid = values(w, bits, share)
    return [min(abs(x - v) for v in grid) for x in w]


def best_share(w, bits, shares):
    return min(shares, key=lambda a: sum(e * e for e in errors(w, bits, a)))


def inside_only(w, bits, shares):
    def cost(share):
        low, high = share * min(w), share * max(w)
        found = zip(w, errors(w, bits, share), strict=True)
        return sum(e * e for x, e in found if low <= x <= high)

    return min(shares, key=cost)


def credit(held, seen, ours, tuned):
    return held[seen.index(min(seen))] - ours - tuned


SOLUTIONS = {
    "still": Solution(
        right=first_crossing,
        wrong={
            "converged": Wrong(
                lambda w, step: 0.0,
                "a slope of 0 is no minimum here: no weight crossed, so both probes "
                "asked the same rounded model. Between two steps of a staircase every "
                "point looks converged",
            ),
            "half a step": Wrong(
                lambda w, step: step / 2,
                "from half a step on every weight crosses, whatever its place. One "
                "crossing is enough, and the weight nearest to a middle is nearer",
            ),
            "to the level": Wrong(
                lambda w, step: min(abs(x - step * round(x / step)) for x in w),
                "that is how far a weight is from its own level; the value changes at "
                "the middle between two levels, half a step from the level",
            ),
            "the last one": Wrong(
                lambda w, step: max(to_middle(w, step)),
                "from there on all weights cross; the loss changes with the first",
            ),
        },
    ),
    "clip": Solution(
        right=best_share,
        wrong={
            "the inside": Wrong(
                inside_only,
                "what lies outside is rounded too, to the end of the range, and errs "
                "most: leave it out and the narrowest range always looks best",
            ),
            "hold everything": Wrong(
                lambda w, bits, shares: max(shares),
                "a range that holds the farthest weight spends its few values where "
                "nobody is",
            ),
            "the worst weight": Wrong(
                lambda w, bits, shares: min(
                    shares, key=lambda a: max(errors(w, bits, a))
                ),
                "that makes the largest error small, which the farthest weight decides "
                "alone; asked is the sum of the squares",
            ),
        },
    ),
    "fair": Solution(
        right=credit,
        wrong={
            "against nearest": Wrong(
                lambda held, seen, ours, tuned: held[0] - ours - tuned,
                "nearest is where you began, not what a user would have taken: clip "
                "search, HQQ and GPTQ cost next to nothing",
            ),
            "chosen on held": Wrong(
                lambda held, seen, ours, tuned: min(held) - ours - tuned,
                "the baseline was picked by the texts that judge it, which no user "
                "can; pick on the validation texts, as for your own lr",
            ),
            "fine-tuning counted": Wrong(
                lambda held, seen, ours, tuned: credit(held, seen, ours, 0.0),
                "an unrounded model gets better on such texts too; that part is "
                "fine-tuning, and no cure for rounding",
            ),
            "added": Wrong(
                lambda held, seen, ours, tuned: credit(held, seen, ours, -tuned),
                "the sign: fine-tuning is part of your gain, so it is taken away",
            ),
        },
    ),
}
