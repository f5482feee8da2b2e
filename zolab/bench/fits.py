"""What needs no training: nothing, one scalar, examples in the prompt, a linear probe.

Each is a function (model, task, train, judged, value) -> margins and labels of the
judged sentences; what it fits, it fits on `train`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zolab.tasks import Batch, Sentence, Sentiment, all_margins, f1_of, splits
from zolab.tasks.sentiment import fit_bias


@dataclass(frozen=True)
class InContext(Sentiment):
    """The same task, with answered sentences in front of each."""

    shown: tuple[Sentence, ...] = ()

    def batch(self, sentences: Sequence[Sentence]) -> Batch:
        plain = super().batch(sentences)
        front: list[int] = []
        for s in self.shown:
            front += self._ids(s.text)[: self.max_tokens] + self._ids(self.prompt)
            front += [self.options()[s.label], *self._ids(".\n")]
        begun = 0 if self.tokenizer.bos_token_id is None else 1
        more = torch.tensor(front).expand(len(sentences), -1)
        ids = [plain.ids[:, :begun], more, plain.ids[:, begun:]]
        mask = [torch.ones_like(more), plain.mask]
        last = plain.last + len(front)
        return Batch(
            torch.cat(ids, 1), torch.cat(mask, 1), last, plain.label, plain.options
        )


def _majority(
    model: Any, task: Sentiment, train: Any, judged: Any, value: float
) -> Any:
    label = torch.tensor([float(s.label) for s in judged])
    share = float(label.mean())
    return torch.full_like(label, math.log(share / (1 - share) + 1e-12)), label


def _zero(model: Any, task: Sentiment, train: Any, judged: Any, value: float) -> Any:
    return all_margins(model, task, judged)


def _bias(model: Any, task: Sentiment, train: Any, judged: Any, value: float) -> Any:
    margin, label = all_margins(model, task, judged)
    return margin + fit_bias(*all_margins(model, task, train)), label


def _context(model: Any, task: Sentiment, train: Any, judged: Any, value: float) -> Any:
    shown = InContext(**vars(task), shown=train[: int(value)])
    return all_margins(model, shown, judged, 32)


def _probe(model: Any, task: Sentiment, train: Any, judged: Any, value: float) -> Any:
    x, y = last_states(model, task, train)
    mean, spread = x.mean(0), x.std(0) + 1e-6
    w = torch.zeros(x.shape[1] + 1, dtype=x.dtype, requires_grad=True)
    opt = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def ask(x: Tensor) -> Tensor:
        return (x - mean) / spread @ w[1:] + w[0]

    def closure() -> Tensor:
        opt.zero_grad()
        fit = F.binary_cross_entropy_with_logits(ask(x), y)
        total = fit + value * w[1:].square().sum() / 2
        total.backward()
        return total

    opt.step(closure)
    held, label = last_states(model, task, judged)
    return ask(held).detach().float(), label.float()


FITS = {
    "majority": _majority,
    "zero": _zero,
    "bias": _bias,
    "context": _context,
    "probe": _probe,
}


@torch.no_grad()
def last_states(
    model: Any, task: Sentiment, sentences: Sequence[Sentence], size: int = 64
) -> tuple[Tensor, Tensor]:
    """What the head reads after each prompt: (n, width) and labels (n,), fp64, CPU."""
    device, rows = next(model.parameters()).device, []
    for at in range(0, len(sentences), size):
        batch = task.batch(sentences[at : at + size]).to(device)
        out = model.model(input_ids=batch.ids).last_hidden_state
        rows.append(out[torch.arange(len(out), device=device), batch.last].cpu())
    label = torch.tensor([s.label for s in sentences]).double()
    return torch.cat(rows).double(), label


def held_out(n: int) -> tuple[Sentence, ...]:
    """n held-out snippets, the same for every row and seed."""
    return splits(train=2, dev=0, test=n, seed=0).test


def score(margin: Tensor, label: Tensor) -> dict[str, Any]:
    """Accuracy, F1, loss, and which answers are right: a bit a sentence, in hex."""
    said = (margin > 0) == (label > 0.5)
    bits = "".join("1" if x else "0" for x in said.tolist())
    return {
        "accuracy": float(said.double().mean()),
        "f1": float(f1_of(margin, label)),
        "loss": float(F.binary_cross_entropy_with_logits(margin, label.to(margin))),
        "right": f"{int(bits, 2):0{-(-len(bits) // 4)}x}",
        "n": len(bits),
    }


def right_ones(score: dict[str, Any]) -> Tensor:
    """The bits of a score: (n,) of 0 and 1, in the order of `held_out`."""
    bits = f"{int(score['right'], 16):0{score['n']}b}"
    return torch.tensor([float(x) for x in bits])
