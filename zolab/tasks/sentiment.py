"""Prompted sentiment: a sentence, "It was", and two words to choose from."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zolab.errors import ZolabError
from zolab.tasks.sentences import Sentence


@dataclass(frozen=True)
class Batch:
    """ids, mask: (B, T) int64, padded right; last: (B,) the prompt's last place;
    label: (B,) 0 or 1; options: the token ids of (blame, praise)."""

    ids: Tensor
    mask: Tensor
    last: Tensor
    label: Tensor
    options: tuple[int, int]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            self.ids.to(device),
            self.mask.to(device),
            self.last.to(device),
            self.label.to(device),
            self.options,
        )


@dataclass(frozen=True)
class Sentiment:
    """Turns sentences into batches for one tokenizer.

    words: (blame, praise), each one token after a space.  MeZO's are ("terrible",
    "great").  On `tiny` these are nearly aligned already, and its pretraining never
    taught ("down", "up"), which leave something to learn: see zolab/data/README.md.
    """

    tokenizer: Any
    words: tuple[str, str] = ("terrible", "great")
    prompt: str = " It was"
    max_tokens: int = 64  # of the sentence; the prompt is never cut

    def options(self) -> tuple[int, int]:
        ids = [self._ids(" " + w) for w in self.words]
        for word, found in zip(self.words, ids, strict=True):
            if len(found) != 1:
                raise ZolabError(f"{word!r} is {len(found)} tokens here, expected 1")
        return ids[0][0], ids[1][0]

    def batch(self, sentences: Sequence[Sentence]) -> Batch:
        tail = self._ids(self.prompt)
        start = self.tokenizer.bos_token_id
        rows = [
            ([] if start is None else [start])
            + self._ids(s.text)[: self.max_tokens]
            + tail
            for s in sentences
        ]
        # Right padding: under a causal mask no real token sees a pad, and positions
        # count from the sentence, so no position ids are needed.
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        last = mask.sum(1) - 1
        label = torch.tensor([s.label for s in sentences])
        return Batch(ids, mask, last, label, self.options())

    def batches(
        self,
        sentences: Sequence[Sentence],
        size: int,
        *,
        seed: int = 0,
        start: int = 0,
    ) -> Iterator[Batch]:
        """Endless: reshuffled every epoch, a pure function of the seed.

        `start` skips that many batches, for a run that goes on.
        """
        if not 0 < size <= len(sentences):
            raise ZolabError(f"a batch of {size} from {len(sentences)} sentences")
        rng = random.Random(seed)
        skipped = 0
        while True:
            order = rng.sample(list(sentences), len(sentences))
            for i in range(0, len(order) - size + 1, size):
                if skipped < start:
                    skipped += 1
                    continue
                yield self.batch(order[i : i + size])

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def margins(model: Any, batch: Batch) -> Tensor:
    """log p(praise) - log p(blame) after the prompt: (B,) fp32; > 0 says praise.

    Only the last place goes through the vocabulary, where the model has `lm_head`.
    The model must be causal: then right padding needs no mask, and none is passed,
    which leaves the attention kernel its fast path.
    """
    rows = torch.arange(len(batch.ids), device=batch.ids.device)
    if hasattr(model, "model") and hasattr(model, "lm_head"):
        out = model.model(input_ids=batch.ids)
        logits = model.lm_head(out.last_hidden_state[rows, batch.last])
    else:
        out = model(input_ids=batch.ids)
        logits = out.logits[rows, batch.last]
    blame, praise = logits[:, batch.options[0]], logits[:, batch.options[1]]
    return praise.float() - blame.float()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy over the two options, an fp32 scalar in nats."""
    return F.binary_cross_entropy_with_logits(
        margins(model, batch), batch.label.float()
    )


def accuracy(model: nn.Module, batch: Batch) -> Tensor:
    """The share of right answers, an fp32 scalar: an objective without a slope."""
    return ((margins(model, batch) > 0).long() == batch.label).float().mean()


def error_rate(model: nn.Module, batch: Batch) -> Tensor:
    """1 - accuracy, to be made small: a black box that moves in steps of 1/B."""
    return 1 - accuracy(model, batch)


def f1(model: nn.Module, batch: Batch) -> Tensor:
    """2 TP / (2 TP + FP + FN) of praise, an fp32 scalar: 0 when nothing is found.

    Another objective without a slope; unlike an accuracy it is no mean over sentences.
    """
    return f1_of(margins(model, batch), batch.label)


def f1_of(margin: Tensor, label: Tensor) -> Tensor:
    """F1 of praise, from margins and labels."""
    said, true = margin > 0, label > 0.5
    both = 2 * (said & true).sum().float()
    return both / (said.sum() + true.sum()).clamp(min=1)


@dataclass(frozen=True)
class Score:
    """Accuracy with its binomial standard error, and the mean loss in nats."""

    accuracy: float
    se: float
    loss: float
    n: int

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} +- {self.se:.3f} (loss {self.loss:.3f})"


@dataclass(frozen=True)
class Evaluation:
    """The model as it is, and the two rows without which nobody knows what it means.

    majority: always the test set's commoner label.  bias_only: this model plus one
    scalar, fitted on training sentences.  A trained model has *learned* when it beats
    the bias-only row of the model it started from by three standard errors.
    """

    model: Score
    majority: Score
    bias_only: Score
    bias: float  # added to the margin, nats

    def beats(self, other: Score) -> float:
        """By how many standard errors of the difference (taken as independent)."""
        se = math.hypot(self.model.se, other.se)
        return (self.model.accuracy - other.accuracy) / se


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Sentiment,
    test: Sequence[Sentence],
    *,
    train: Sequence[Sentence],
    batch_size: int = 64,
) -> Evaluation:
    """Score `test`; fit the one bias on `train` (never on test) and score it too."""
    found, label = all_margins(model, task, test, batch_size)
    seen, seen_label = all_margins(model, task, train, batch_size)
    bias = fit_bias(seen, seen_label)
    share = float(label.mean())
    guess = torch.full_like(found, math.log(share / (1 - share) + 1e-12))
    return Evaluation(
        model=_score(found, label),
        majority=_score(guess, label),
        bias_only=_score(found + bias, label),
        bias=bias,
    )


@torch.no_grad()
def mistakes(
    model: nn.Module,
    task: Sentiment,
    sentences: Sequence[Sentence],
    *,
    batch_size: int = 64,
) -> list[tuple[float, Sentence]]:
    """(margin in nats, sentence) of the wrong answers, the surest first."""
    margin, label = all_margins(model, task, sentences, batch_size)
    wrong = (margin > 0) != (label > 0.5)
    found = [(float(margin[i]), sentences[i]) for i in wrong.nonzero()[:, 0].tolist()]
    return sorted(found, key=lambda pair: -abs(pair[0]))


def fit_bias(margin: Tensor, label: Tensor) -> float:
    """The b that maximises accuracy of [margin + b > 0]; ties go to the lower loss."""
    cuts = margin.sort().values.double()
    bias = -torch.cat([cuts[:1] - 1, (cuts[1:] + cuts[:-1]) / 2, cuts[-1:] + 1])
    right = ((margin[None] + bias[:, None] > 0) == (label[None] > 0.5)).sum(1)
    best = bias[right == right.max()]
    losses = [
        F.binary_cross_entropy_with_logits(margin + b, label.to(margin)) for b in best
    ]
    return float(best[int(torch.stack(losses).argmin())])


def _score(margin: Tensor, label: Tensor) -> Score:
    n = len(label)
    right = float(((margin > 0) == (label > 0.5)).double().mean())
    nats = float(F.binary_cross_entropy_with_logits(margin, label.to(margin)))
    return Score(right, math.sqrt(right * (1 - right) / n), nats, n)


@torch.no_grad()
def all_margins(
    model: nn.Module, task: Sentiment, sentences: Sequence[Sentence], size: int = 64
) -> tuple[Tensor, Tensor]:
    """Margins and labels, (n,) fp32 on the CPU each, in the order of the sentences.

    Runs batches of similar length.
    """
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].text))
    margin = torch.empty(len(order))
    device = next(model.parameters()).device
    for start in range(0, len(order), size):
        part = order[start : start + size]
        batch = task.batch([sentences[i] for i in part]).to(device)
        margin[part] = margins(model, batch).cpu()
    return margin, torch.tensor([float(s.label) for s in sentences])
