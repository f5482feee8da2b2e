"""How good a policy is on prompts it never trained on: greedy, pass@1 and pass@k.

    pass@k = mean over prompts of 1 - C(n - c, k) / C(n, k),    c right of n samples

(M. Chen et al., Evaluating large language models trained on code, arXiv:2107.03374,
equation 1.) It is unbiased; 1 - (1 - c/n)^k is not. Report pass@k beside pass@1, and
both before the first step: rewards often move one against the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from statistics import stdev
from typing import Any

import torch

from zolab.errors import ZolabError
from zolab.rl.passk import pass_at_k
from zolab.rl.rewards import Judged, Reward, Rewards
from zolab.rl.rollout import greedy, rollout

ROWS = 512  # at once: more do not make a core faster, and cost memory


@dataclass(frozen=True)
class Evaluation:
    """Shares of right answers; the standard errors are over the prompts."""

    greedy: float
    passes: Mapping[int, float]  # k: pass@k
    errors: Mapping[int, float]  # k: its standard error; 0: that of greedy
    prompts: int
    samples: int
    tokens: float  # mean length of a sampled answer
    entropy: float  # nats a sampled token

    @property
    def pass1(self) -> float:
        """The mean reward of a sample."""
        return self.passes[1]

    def metrics(self) -> dict[str, float]:
        """As one flat line of a log."""
        found = {"greedy": self.greedy, "tokens": self.tokens, "entropy": self.entropy}
        return found | {f"pass@{k}": v for k, v in self.passes.items()}


def evaluate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    reward: Reward,
    *,
    max_new_tokens: int,
    samples: int = 8,
    ks: Sequence[int] = (1, 8),
    temperature: float = 1.0,
    generator: torch.Generator | int = 0,
    backend: str = "own",
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Evaluation:
    """One greedy answer and `samples` drawn ones of every prompt; 1 or more is right.

    With the default generator every evaluation of a run draws the same uniforms, so
    that two of them differ by the policy. `columns` has one value a prompt. Raises
    ZolabError where a k asks for more than `samples`.
    """
    ks = sorted({1, *ks})
    if ks[-1] > samples:
        raise ZolabError(f"pass@{ks[-1]} needs {ks[-1]} samples or more, not {samples}")
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    right: list[list[bool]] = []
    best: list[bool] = []
    tokens, nats = 0, 0.0
    judge = Rewards({"right": reward})
    size = max(1, ROWS // samples)
    for start in range(0, len(prompts), size):
        part = list(prompts[start : start + size])
        given = {k: v[start : start + size] for k, v in (columns or {}).items()}
        likely = greedy(
            model, tokenizer, part, max_new_tokens=max_new_tokens, backend=backend
        )
        drawn = rollout(
            model,
            tokenizer,
            part,
            group_size=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            generator=generator,
            backend=backend,
        )
        best += solved(judge(likely, **given))
        flags = solved(judge(drawn, **given))
        right += [flags[i : i + samples] for i in range(0, len(flags), samples)]
        tokens += int(drawn.mask.sum())
        nats += float(drawn.entropy.sum())
    shares = {k: [pass_at_k(samples, sum(r), k) for r in right] for k in ks}
    return Evaluation(
        mean(best),
        {k: mean(v) for k, v in shares.items()},
        {0: error(best)} | {k: error(v) for k, v in shares.items()},
        len(prompts),
        samples,
        tokens / (len(prompts) * samples),
        nats / tokens,
    )


def solved(judged: Judged) -> list[bool]:
    """Whether each row is right; a row that cannot be judged is not."""
    return [t is not None and t >= 1 for t in judged.totals]


def error(x: Sequence[float]) -> float:
    """The standard error of the mean; NaN of one."""
    return stdev(x) / math.sqrt(len(x)) if len(x) > 1 else math.nan
