"""The exercises of chapter 10; their answers are in solutions/10.py."""

from zolab.lab.exercises import Exercise


def counts(rng):
    count = rng.choice([1.3e9, 2.7e9, 6.7e9, 13e9, 30e9])
    return {"count": f"{count:.3g}", "cases": [(count,), (7e9,), (1e6,)]}


def passes(rng):
    batch, tokens = rng.choice([4, 8, 16]), rng.choice([128, 256, 512])
    cases = [(batch, tokens, 50272, 2048), (1, 1000, 32000, 4096), (3, 7, 11, 64)]
    return {"batch": batch, "tokens": tokens, "cases": cases}


def widths(rng):
    width = rng.choice([768, 2048, 5120])
    return {"width": width, "cases": [(width, 12, 4), (4096, 32, 2), (64, 5, 4)]}


EXERCISES = {
    "sixteen": Exercise(
        kind="derive",
        minutes=6,
        stars=1,
        question="How many bytes do weights, gradients and all that AdamW keeps take "
        "in mixed precision (bf16), for count = {count} weights?",
        variant=counts,
        hints=(
            "Per weight: what is multiplied, its gradient, and what the optimizer "
            "remembers between two steps.",
            "Equation (2). An update of 1e-6 does not survive in bf16; what keeps it?",
        ),
    ),
    "logits": Exercise(
        kind="write",
        minutes=10,
        stars=2,
        question="A bf16 model, a forward pass with its ordinary `.loss` and no way "
        "back: how many bytes do the logits take at the fullest moment, for {batch} "
        "sequences of {tokens} tokens, say? There are the logits, their fp32 copy, "
        "and the log-softmax of that.",
        variant=passes,
        hints=(
            "One logit for each token and each word of the vocabulary.",
            "2 bytes, 4 bytes and 4 bytes, and all three are alive at once.",
        ),
    ),
    "overtake": Exercise(
        kind="break",
        minutes=12,
        stars=2,
        question="A colleague plans an AdamW run by 16 bytes a weight alone. From how "
        "many tokens a step on do the blocks' activations (12 vectors of the width a "
        "token and layer, width_bytes bytes a number) take more than those 16 bytes a "
        "weight of the blocks (12 width^2 weights each)? Width {width}, say.",
        variant=widths,
        hints=(
            "Write both for one block: one grows with the tokens, the other does not.",
            "12 w b n = 16 * 12 w^2. What cancels?",
        ),
    ),
}
