"""Right and wrong answers to the exercises of chapter 12."""

import math

import torch

from zolab.lab.exercises import Solution, Wrong

BF16 = torch.bfloat16


def drift(n, ulp):
    return ulp * math.sqrt(n / 2)  # half the steps move, by one ulp


def moved_share(gains, eps):
    g = torch.tensor(gains).to(BF16)
    return ((g.float() + eps).to(BF16) != g).double().mean()


def rounded_late(gains, eps):
    g = torch.tensor(gains)
    return ((g + eps).to(BF16) != g.to(BF16)).double().mean()


def share_beyond(part):
    """Thresholds that people take instead of half an ulp of each gain."""

    def share(gains, eps):
        g = torch.tensor(gains).to(BF16).double()
        return (eps > part(g)).double().mean()

    return share


def ulp_of(g):
    return 2.0 ** (torch.floor(torch.log2(g)) - 7)


def repaired(w, e):
    return torch.stack([w + e, w - e, w])


def published(w, e):
    up = w + e
    down = up - 2 * e
    return torch.stack([up, down, down + e])


def by_own_rounding(w, e):
    up = w + e
    back = up - e  # the inverse is rounded, too
    down = back - e
    return torch.stack([up, down, down + e])


def what_was_added(w, e):
    up = w + e
    back = up - (up - w)
    down = back - e
    return torch.stack([up, down, down + (back - down)])


def in_fp32(w, e):
    return repaired(w.float(), e.float())


def half_repaired(w, e):
    up = w + e
    return torch.stack([up, up - 2 * e, w])


SOLUTIONS = {
    "drift": Solution(
        right=drift,
        wrong={
            "linear": Wrong(
                lambda n, ulp: n * ulp / 2,
                "that is how far it would go if every step went the same way; the sign "
                "is a coin's, so the squares add: a random walk goes as sqrt(n)",
            ),
            "every step": Wrong(
                lambda n, ulp: ulp * math.sqrt(n),
                "right law, but not every step moves: only those whose e lies further "
                "than a quarter of an ulp from a whole number of ulps, which is half",
            ),
            "in ulps": Wrong(
                lambda n, ulp: math.sqrt(n / 2),
                "right, counted in ulps; an ulp is `ulp` long: multiply by it",
            ),
            "three roundings": Wrong(
                lambda n, ulp: ulp * math.sqrt(n / 4),
                "three independent roundings of ulp^2 / 12 each would give that; but "
                "the first and the third round the same e: their errors are equal",
            ),
            "cancels": Wrong(
                lambda n, ulp: 0.0,
                "+1 - 2 + 1 is 0 for real numbers; here each sum is rounded before "
                "the next one begins",
            ),
        },
    ),
    "gains": Solution(
        right=moved_share,
        wrong={
            "negligible": Wrong(
                lambda gains, eps: 1.0,
                "every gain moves only if you take the rounding for negligible, or "
                "compare with gains that were never stored. Half an ulp of a gain just "
                "above 1 is 2**-8, four times a probe of 1e-3",
            ),
            "rounded late": Wrong(
                rounded_late,
                "the model holds the rounded gain: round the gain first, then add eps",
            ),
            "a whole ulp": Wrong(
                share_beyond(ulp_of),
                "the sum is rounded to the nearest number, so half an ulp is enough",
            ),
            "one ulp for all": Wrong(
                share_beyond(lambda g: torch.full_like(g, 2.0**-8)),
                "2**-8 is half an ulp between 1 and 2 only: below, the numbers lie "
                "closer, and a smaller probe is enough",
            ),
        },
    ),
    "repair": Solution(
        right=repaired,
        wrong={
            "published": Wrong(
                published,
                "that is +e, -2e, +e: down and after stand on what rounding left",
            ),
            "in fp32": Wrong(
                in_fp32,
                "the loss sees bf16: up and down are each rounded once",
            ),
            "half repaired": Wrong(
                half_repaired,
                "after is right; down was rounded twice, for it stands on up",
            ),
            "own rounding": Wrong(
                by_own_rounding,
                "subtracting e again is rounded once more: w + e - e need not be w. "
                "To undo a rounding you must know what it threw away, or never write",
            ),
            "what was added": Wrong(
                what_was_added,
                "clever: subtract what was really added. For a weight much smaller "
                "than e it is not there any more: w + e has forgotten w's last bits",
            ),
        },
    ),
}
