"""SmolLM2-135M learns sums of reasoning-gym: by a gradient, by forward passes, by luck.

    pip install 'zolab[gym]'
    python -m zolab.bench gym [--seeds 3] [--only grpo luck] [--folder RUNS]
    python -m zolab.bench gym --device cuda --digits 2 --prompts 32 --updates 100

chain_sum with two terms, asked as reasoning-gym asks it: "... problem: 4 + 3 =". An
answer is right when the number is all of it and the model ended it itself; held-out
questions are not in training. `grpo` back-propagates; `luck` is grpo on coins in place
of rewards, and must not learn; `es` only answers, greedily, once a member. `published`
is ES with the eps of arXiv:2509.24372, at which sixteen members answer eight sums
alike; `es` has three times that eps, at which they differ, and four times the
questions.

A run is written down when it is done, and a second start does what is missing; with
--folder it also goes on where one broke off (2 GB a run). With one digit, 8 questions
an update and 30 updates, as it stands, a run takes 5 to 20 minutes of two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zolab import EvolutionStrategy, Resident, ZOOptimizer, load_model
from zolab.bench.record import RESULTS, machine
from zolab.bench.shapes import Setting
from zolab.rl import train
from zolab.rl.batch import Rollout
from zolab.rl.evaluate import evaluate
from zolab.rl.rollout import greedy, rollout
from zolab.tasks.gym import Gym, Item, load_gym

METHODS = {
    "grpo": "GRPO",
    "luck": "GRPO on coins",
    "published": "ES, eps 1e-3",
    "es": "ES, eps 3e-3",
}
GROUP, MEMBERS = 8, 16
LR, WARMUP = 2e-5, 5
ES = {"published": (1e-3, 5e-4, 1), "es": (3e-3, 1.5e-3, 4)}  # eps, lr, x questions
LONGEST, MICRO = 6, 32  # new tokens; rows of a micro-batch
KEYS = "greedy", "pass@1", "pass@8"


@dataclass(frozen=True)
class Sums:
    """Questions, and what is right: the whole number and then the end."""

    gym: Gym

    def reward(
        self,
        prompts: list[str],
        completions: list[str],
        *,
        entry: list[dict[str, Any]],
        stop: list[str],
        **columns: Any,
    ) -> list[float | None]:
        """1 or 0 a row. White space is the tokenizer's, not the answer's."""
        texts = [x.strip() for x in completions]
        found = self.gym.right(prompts, texts, entry=entry)
        return [r if end == "eos" else 0.0 for r, end in zip(found, stop, strict=True)]

    def asked(self, cursor: int, count: int) -> list[Item]:
        """The questions of an update: in turn, from the first again after the last."""
        items = self.gym.train
        return [items[(cursor * count + i) % len(items)] for i in range(count)]


def sums(digits: int, held_out: int) -> Sums:
    """chain_sum of two terms: 1,000 questions with two digits, 100 with one."""
    gym = load_gym(
        "chain_sum",
        train=1000 if digits > 1 else 100,
        held_out=held_out,
        min_terms=2,
        max_terms=2,
        min_digits=1,
        max_digits=digits,
    )
    return Sums(gym)


def optimizer(
    name: str, model: Any, seed: int, folder: Path | None
) -> torch.optim.Optimizer:
    """AdamW, or evolution strategies, whose checkpoint is a journal."""
    if name in ES:
        eps, lr, _ = ES[name]
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        return ZOOptimizer(
            model,
            estimator=EvolutionStrategy(eps=eps, num_queries=MEMBERS // 2),
            engine=Resident(scratch="all"),  # a member's answer reads a weight often
            lr=lr,
            seed=seed,
            journal=folder and folder / "run.zolab",
        )
    return torch.optim.AdamW(model.parameters(), LR, (0.9, 0.99), weight_decay=0.0)


def asking(
    name: str, seed: int, model: Any, tokenizer: Any, task: Sums, count: int
) -> tuple[Any, Any]:
    """(draw, reward) of a method; its coins are the update's, so that a run resumes."""
    entries = {i.question: i.entry for i in task.gym.train}
    coin = random.Random()

    def draw(cursor: int, generator: torch.Generator) -> Rollout:
        coin.seed(f"{seed} {cursor}")
        times = ES[name][2] if name in ES else 1
        asked = [i.question for i in task.asked(cursor, times * count)]
        if name in ES:
            return greedy(model, tokenizer, asked, max_new_tokens=LONGEST)
        return rollout(
            model,
            tokenizer,
            asked,
            group_size=GROUP,
            max_new_tokens=LONGEST,
            generator=generator,
        )

    def judge(r: Rollout) -> list[float | None]:
        if name == "luck":
            return [float(coin.random() < 0.5) for _ in r.texts]
        entry = [entries[p] for p in r.prompts]
        return task.reward([*r.prompts], [*r.texts], entry=entry, stop=[*r.stop])

    return draw, judge


def run(name: str, seed: int, task: Sums, a: argparse.Namespace) -> dict[str, Any]:
    """One run: its evaluations by update, its rewards, its costs."""
    model, tokenizer = load_model("smollm2-135m")
    model.to(a.device)
    folder = a.folder and a.folder / f"{name}-{seed}"
    draw, judge = asking(name, seed, model, tokenizer, task, a.prompts)

    def held_out() -> dict[str, float]:
        items = task.gym.held_out
        return evaluate(
            model,
            tokenizer,
            [i.question for i in items],
            task.reward,
            max_new_tokens=LONGEST,
            columns={"entry": [i.entry for i in items]},
        ).metrics()

    def warm(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP)

    done = train(
        model,
        draw,
        judge,
        "es" if name in ES else "grpo",
        optimizer=optimizer(name, model, seed, folder),
        steps=a.updates,
        seed=seed,
        micro=MICRO,
        schedule=None if name in ES else warm,
        evaluate=held_out,
        folder=folder,
    )
    evals = [r for r in done.history if "eval/greedy" in r]
    return {
        "points": [[r["step"], *(r[f"eval/{k}"] for k in KEYS)] for r in evals],
        "rewards": [r["reward"] for r in done.history if "reward" in r],
        "costs": done.costs,
        "load": round(os.getloadavg()[0], 2),
    }


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print a line a run, write the record after each."""
    parser = argparse.ArgumentParser(prog="python -m zolab.bench gym")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=8, help="questions an update")
    parser.add_argument("--digits", type=int, default=1, choices=[1, 2])
    parser.add_argument("--held-out", type=int, default=90)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=[*METHODS])
    parser.add_argument("--folder", type=Path, help="checkpoints: a run resumes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    torch.set_num_threads(a.threads)
    task = sums(a.digits, a.held_out)
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"bench-gym-{a.device}-smollm2-135m.json"
    asked = {k: getattr(a, k) for k in ("updates", "prompts", "digits", "held_out")}
    rows: dict[str, dict[str, Any]] = {name: {} for name in METHODS}
    if path.exists() and (old := json.loads(path.read_text("utf-8")))["asked"] == asked:
        rows |= old["rows"]
    for seed in range(a.seeds):
        for name in [n for n in a.only if str(seed) not in rows[n]]:
            row = rows[name][str(seed)] = run(name, seed, task, a)
            setting = Setting(a.device, "smollm2-135m", (a.threads,), a.seeds)
            record = {"item": "gym", "asked": asked, **machine("gym", setting)}
            words = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in asked.items())
            record["command"] = (
                f"python -m zolab.bench gym --device {a.device} {words}"
                f" --seeds {a.seeds}"
            )
            record |= {"rows": rows}
            path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
            first, last = row["points"][0], row["points"][-1]
            print(
                f"  {METHODS[name]:14} seed {seed}: greedy {first[1]:.2f} -> "
                f"{last[1]:.2f}, pass@1 {first[2]:.3f} -> {last[2]:.3f}, pass@8 "
                f"{first[3]:.2f} -> {last[3]:.2f}, {row['costs']}",
                flush=True,
            )
    return 0
