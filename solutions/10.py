"""Right and wrong answers to the exercises of chapter 10."""

import math

from zolab.lab.exercises import Solution, Wrong


def sixteen(count):
    return 16 * count  # 2 weight, 2 gradient, 4 copy, 4 + 4 means


def all_logits(batch, tokens, vocabulary, width):
    return batch * tokens * vocabulary * (2 + 4 + 4)


def overtaken(width, layers, width_bytes):
    return 16 * width / width_bytes


SOLUTIONS = {
    "sixteen": Solution(
        right=sixteen,
        wrong={
            "no copy": Wrong(
                lambda count: 12 * count,
                "you forgot the master copy: the optimizer keeps each weight once "
                "more, in fp32, or small updates would be rounded away (chapter 12)",
            ),
            "all in bf16": Wrong(
                lambda count: 8 * count,
                "that is AdamW wholly in bf16, two bytes four times: the copy and both "
                "means are in fp32 in mixed precision",
            ),
            "no gradient": Wrong(
                lambda count: 14 * count,
                "the gradient is there too, 2 bytes a weight, when the update is made",
            ),
            "weights": Wrong(
                lambda count: 2 * count,
                "that is the model alone: what a forward pass needs",
            ),
        },
    ),
    "logits": Solution(
        right=all_logits,
        wrong={
            "width": Wrong(
                lambda batch, tokens, vocabulary, width: batch * tokens * width * 10,
                "B x T x d is the hidden states; the head turns each of them into a "
                "number for every word: B x T x V",
            ),
            "one copy": Wrong(
                lambda batch, tokens, vocabulary, width: (
                    batch * tokens * vocabulary * 2
                ),
                "that is the logits themselves; the loss makes an fp32 copy and its "
                "log-softmax, and all three are alive at once",
            ),
            "one fp32 copy": Wrong(
                lambda batch, tokens, vocabulary, width: (
                    batch * tokens * vocabulary * 6
                ),
                "logits and fp32 copy; the log-softmax is a third tensor of that size",
            ),
            "last token": Wrong(
                lambda batch, tokens, vocabulary, width: batch * vocabulary * 10,
                "a loss over a text needs the logits at every token, not at the last",
            ),
        },
    ),
    "overtake": Solution(
        right=overtaken,
        wrong={
            "never": Wrong(
                lambda width, layers, width_bytes: math.inf,
                "activations grow with the tokens and the 16 bytes do not: whatever "
                "the model, a long enough batch overtakes them",
            ),
            "deeper": Wrong(
                lambda width, layers, width_bytes: 16 * width * layers / width_bytes,
                "both grow with the depth alike: each layer brings its weights and its "
                "activations, so the layers cancel",
            ),
            "weights alone": Wrong(
                lambda width, layers, width_bytes: float(width),
                "that is where they overtake the weights; gradient and means are there "
                "too: 16 bytes a weight",
            ),
            "numbers": Wrong(
                lambda width, layers, width_bytes: 16.0 * width,
                "an activation is a number of width_bytes bytes, not of one",
            ),
        },
    ),
}
