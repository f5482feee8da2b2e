"""What forgoing the gradient costs: one task, one loop, six ways to learn from rewards.

    python -m zolab.bench forward_rl [--seeds 3] [--only grpo es] [--out DIR]

GRPO differentiates; the others ask with forward passes only: evolution strategies on
all weights, along rank-1 directions as one batched population, from the order of the
members alone (RankSGD), on the scales of 4-bit codes, and the policy gradient itself by
SPSA, on norms and head. All start from the sorting base. A step is 256 drawn answers
where log-probabilities are used and 16 members x 64 greedy answers where they are not,
with one lr for all that shape their losses: nothing was tuned for a method.

A run (method, seed) is a process of its own on one thread, written down when it is
done: a second start goes on where the first broke off. Rollouts, tokens and CPU seconds
are the loop's meter's, evaluations left out; megabytes are the peak above the loaded
model. Seeds come in the outer loop, so a record that is not whole is fair to all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zolab import EvolutionStrategy, LowRank, Population, RankSGD, ZOOptimizer, pack
from zolab.bench.record import RESULTS, machine
from zolab.bench.rl import adam, warmup
from zolab.bench.shapes import Setting
from zolab.estimators import SPSA
from zolab.quantized import packed_weights
from zolab.quantized.choose import choose
from zolab.rl import train
from zolab.rl.rollout import encode, greedy, rollout
from zolab.rl.together import Answers, exactly, together
from zolab.tasks.bases import load_base
from zolab.tasks.sorting import Sorting, sorted_exactly

TASK = Sorting()
LONGEST = TASK.max_new_tokens
PROMPTS, MEMBERS = 64, 16  # a member's answers; probes of a step
EPS, LR = 5e-3, 5e-3
RANK_1 = LowRank(rank=1, every=1)
SMALL = ("norm.weight", "layernorm.weight", "lm_head.weight")  # 1,216 weights
HELD_OUT = TASK.prompts(300, seed=0, held_out=True)
NAME = "forward-rl-cpu-sorting.json"


@dataclass(frozen=True)
class Method:
    """`make(model, seed)` gives the optimizer; `recipe` names what a reward becomes."""

    label: str
    recipe: str
    steps: int
    make: Callable[[Any, int], torch.optim.Optimizer]
    every: int = 2
    batched: bool = False  # the population answers together


def ask_by(estimator: Any, **options: Any) -> Callable[[Any, int], ZOOptimizer]:
    """A maker of a forward-only optimizer."""
    return lambda model, seed: ZOOptimizer(
        model, estimator=estimator, lr=LR, seed=seed, **options
    )


def four_bits(model: Any, seed: int) -> ZOOptimizer:
    """Codes stand still; factors of their scales and the norms move, in shares."""
    pack(model, "int4", group=16)
    choose(model, scales=True, rest=True)
    for p in packed_weights(model).values():
        p.relative()
    es = EvolutionStrategy(eps=6 * EPS, num_queries=MEMBERS // 2)
    return ZOOptimizer(model, estimator=es, lr=6 * LR, seed=seed)


def small(model: Any, seed: int) -> ZOOptimizer:
    """SPSA of the surrogate where there are few weights: norms and head."""
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith(SMALL))
    spsa = SPSA(eps=1e-3, num_queries=MEMBERS // 2)
    return ZOOptimizer(model, estimator=spsa, lr=LR, seed=seed)


def population(estimator: Any) -> Callable[[Any, int], ZOOptimizer]:
    """All members of a step in one forward pass."""
    return lambda model, seed: ask_by(estimator, engine=Population(members=MEMBERS))(
        model, seed
    )


PAIRS = MEMBERS // 2
METHODS = {
    "grpo": Method("GRPO", "grpo", 20, lambda model, seed: adam(model)[0]),
    "es": Method("ES", "es", 14, ask_by(EvolutionStrategy(eps=EPS, num_queries=PAIRS))),
    "rank-1": Method(
        "ES, rank 1",
        "es",
        14,
        population(EvolutionStrategy(eps=EPS, num_queries=PAIRS, family=RANK_1)),
        batched=True,
    ),
    "order": Method(
        "order alone",
        "es",
        14,
        population(RankSGD(eps=EPS, num_queries=MEMBERS, family=RANK_1)),
        batched=True,
    ),
    "int4": Method("ES, 4 bits", "es", 14, four_bits),
    "zo-pg": Method("ZO policy gradient", "rloo", 20, small),
}


def prompts(seed: int, cursor: int, count: int) -> list[str]:
    """Of a step, the same for every method that asks for so many."""
    return TASK.prompts(count, seed=1000 * (seed + 1) + cursor)


def asking(name: str, seed: int, model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """(draw, reward) of a method."""

    def judge(r: Any) -> list[float | None]:
        return sorted_exactly(r.prompts, r.texts, stop=r.stop)

    if METHODS[name].batched:
        now: list[str] = []

        def ask(cursor: int) -> Any:
            now[:] = prompts(seed, cursor, PROMPTS)
            return encode(tokenizer, now, pad=tokenizer.pad_token_id)

        def right(answers: Answers) -> torch.Tensor:
            texts = ["".join(sorted(p.removesuffix("="))) for p in now]
            rows = tokenizer(texts)["input_ids"]
            eos = tokenizer.eos_token_id
            ids = torch.tensor([[*row[-TASK.digits :], eos] for row in rows])
            return exactly(answers, ids, torch.ones_like(ids, dtype=torch.bool))

        eos = (tokenizer.eos_token_id,)
        draw = together(model, ask, max_new_tokens=LONGEST, eos=eos, temperature=0)
        return draw, right

    def likeliest(cursor: int, generator: torch.Generator) -> Any:
        asked = prompts(seed, cursor, PROMPTS)
        return greedy(model, tokenizer, asked, max_new_tokens=LONGEST)

    def drawn(cursor: int, generator: torch.Generator) -> Any:
        return rollout(
            model,
            tokenizer,
            prompts(seed, cursor, 32),
            group_size=8,
            max_new_tokens=LONGEST,
            generator=generator,
        )

    return (likeliest if METHODS[name].recipe == "es" else drawn), judge


def run(name: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """One run: `points` are [rollouts, forward tokens, CPU seconds, greedy]."""
    torch.set_num_threads(1)
    method, (model, tokenizer) = METHODS[name], load_base("sorting")
    steps = method.steps if steps is None else steps
    optimizer = method.make(model, seed)
    draw, reward = asking(name, seed, model, tokenizer)

    def accuracy() -> dict[str, float]:
        r = greedy(model, tokenizer, HELD_OUT, max_new_tokens=LONGEST)
        found = sorted_exactly(r.prompts, r.texts, stop=r.stop)
        return {"greedy": sum(x or 0.0 for x in found) / len(found)}

    first = accuracy()["greedy"]
    done = train(
        model,
        draw,
        reward,
        method.recipe,
        optimizer=optimizer,
        steps=steps,
        seed=seed,
        schedule=warmup if name == "grpo" else None,
        evaluate=accuracy,
        every=method.every,
        best_by="greedy",
        bar=False,
    )
    points, at = [[0, 0, 0.0, first]], [0, 0, 0.0]
    for row in done.history:
        if "eval/greedy" not in row:
            at = [row["rollouts"], row["forward_tokens"], round(row["cpu_s"], 3)]
        elif row["step"]:
            points.append([*at, row["eval/greedy"]])
    moves = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    return {
        "points": points,
        "weights": moves,
        "costs": done.costs,
        "load": round(os.getloadavg()[0], 2),
    }


def alone(name: str, seed: int, steps: int | None) -> dict[str, Any]:
    """`run` in a process of its own, which starts with everything imported."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(run, (name, seed, steps))


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print a line a run, write the record after each."""
    parser = argparse.ArgumentParser(prog="python -m zolab.bench forward_rl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every method; default its own")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / NAME
    old = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else {}
    rows: dict[str, dict[str, Any]] = {name: old.get(name, {}) for name in METHODS}
    for seed in range(a.seeds):
        for name in a.only or METHODS:
            if str(seed) in rows[name]:
                continue
            row = rows[name][str(seed)] = alone(name, seed, a.steps)
            record: dict[str, Any] = {"item": "forward_rl"}
            record |= machine("forward_rl", Setting("cpu", "sorting", (1,), a.seeds))
            record["command"] = f"python -m zolab.bench forward_rl --seeds {a.seeds}"
            record |= {"prompts": PROMPTS, "members": MEMBERS, "rows": rows}
            path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
            rollouts, _, seconds, end = row["points"][-1]
            print(
                f"  {METHODS[name].label:18} seed {seed}: {row['points'][0][3]:.3f} -> "
                f"{end:.3f}, {rollouts:,} rollouts, {seconds:.1f} CPU s, "
                f"load {row['load']}",
                flush=True,
            )
    return 0
