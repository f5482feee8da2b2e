"""Learning to sort with GRPO: our loop and TRL's trainer, side by side.

    python -m venv trl; trl/bin/pip install trl numba safetensors
    python -m zolab.bench rl [--seeds 5] [--updates 30] [--peers trl/bin/python]

Both start from the same base, see the same prompts in the same order, draw 8 answers to
each of 32 an update at temperature 1, and step with the same AdamW, warm-up, clipping
and loss. A run is a process of its own on one thread, and of the same interpreter: what
else is installed there (hqq makes transformers load torch's compiler, 110 MB) is the
same for both. Measured are the CPU seconds of an update (of that thread: a busy machine
slows both), the peak of the process from the first update on, and, by one evaluator in
this process, the answers to held-out prompts. Runs of the two alternate. `rollouts`
times our sampler and `generate` in turn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from zolab.bench.memory import _cpu_meter
from zolab.bench.record import RESULTS, Line, machine, show
from zolab.bench.shapes import Setting
from zolab.tasks.bases import load_base
from zolab.tasks.sorting import Sorting, sorted_exactly

TASK = Sorting()
PROMPTS, GROUP = 32, 8
LR, BETAS, WARMUP = 3e-4, (0.9, 0.99), 10
SKIP = 3  # updates in which libraries load and kernels compile
SHAPES = {"32 prompts x 8": (32, 8), "1 x 8": (1, 8), "256 x 1": (256, 1)}
CPU, PEAK, FAST = 0.65, 0.9, 2.0  # targets, written down before anything was measured


def prompts(seed: int, update: int) -> list[str]:
    """The prompts of an update, the same for both."""
    return TASK.prompts(PROMPTS, seed=1000 * (seed + 1) + update)


def adam(model: Any) -> tuple[Any, Any]:
    """The optimizer of both, and its warm-up."""
    opt = torch.optim.AdamW(model.parameters(), LR, BETAS, weight_decay=0.0)
    return opt, torch.optim.lr_scheduler.LambdaLR(opt, warmup)


def warmup(update: int) -> float:
    """A tenth of the rate more at every update, up to the whole."""
    return min(1.0, (update + 1) / WARMUP)


class Watch:
    """CPU seconds of updates, and the process's peak from the first one on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        reset, self.peak = _cpu_meter()
        reset()
        self.last = time.process_time()

    def tick(self) -> None:
        """An update is over."""
        now = time.process_time()
        self.seconds.append(now - self.last)
        self.last = now


def ours(seed: int, updates: int) -> tuple[Any, Watch, list[float]]:
    """(trained model, watch, mean rewards) of our loop."""
    from zolab.rl import train
    from zolab.rl.rewards import Rewards
    from zolab.rl.rollout import rollout

    model, tokenizer = load_base("sorting")
    watch = Watch()

    def draw(cursor: int, generator: torch.Generator) -> Any:
        if cursor:
            watch.tick()
        return rollout(
            model,
            tokenizer,
            prompts(seed, cursor),
            group_size=GROUP,
            max_new_tokens=TASK.max_new_tokens,
            generator=generator,
        )

    done = train(
        model,
        draw,
        Rewards({"sorted": sorted_exactly}),
        "grpo",
        optimizer=adam(model)[0],
        schedule=warmup,
        steps=updates,
        seed=seed,
        bar=False,
    )
    watch.tick()
    return model, watch, [row["reward"] for row in done.history]


def theirs(seed: int, updates: int) -> tuple[Any, Watch, list[float]]:
    """The same of TRL's GRPOTrainer, with what it needs to be told on a CPU."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load_base("sorting")
    rows = [p for i in range(updates) for p in prompts(seed, i)]
    means: list[float] = []

    def reward(
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        **columns: Any,
    ) -> list[float | None]:
        eos = tokenizer.eos_token_id
        stop = ["eos" if ids[-1] == eos else "length" for ids in completion_ids]
        found = sorted_exactly(prompts, completions, stop=stop)
        means.append(statistics.fmean(r or 0.0 for r in found))
        return found

    class Tick(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.watch = Watch()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.watch.tick()

    tick = Tick()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            seed=seed,
            max_steps=updates,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=TASK.max_new_tokens,
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
            max_grad_norm=1.0,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=tokenizer,
            callbacks=[tick],
            optimizers=adam(model),
        )
        trainer.train()
    return model, tick.watch, means


LOOPS = {"ours": ours, "trl": theirs}
PACKAGES = {"ours": ("torch", "transformers"), "trl": ("torch", "transformers", "trl")}


def child(name: str, seed: int, updates: int, path: str) -> dict[str, Any]:
    """A run in this process; the weights go to `path`."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    try:
        model, watch, rewards = LOOPS[name](seed, updates)
    except ModuleNotFoundError as why:
        if name == "ours":
            raise
        return {"missing": why.name}
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    seconds = statistics.median(watch.seconds[SKIP:])
    return {
        "cpu_s": seconds,
        "first_s": sum(watch.seconds[:SKIP]),
        "peak_mb": watch.peak(),
        "rewards": rewards,
        "load": round(os.getloadavg()[0], 2),
        "versions": {p: version(p) for p in PACKAGES[name]},
    }


def run(python: str, name: str, seed: int, updates: int) -> dict[str, Any]:
    """A run in a process of `python`, judged here on held-out prompts."""
    from safetensors.torch import load_file

    from zolab.rl.evaluate import evaluate

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.safetensors")
        words = [name, str(seed), str(updates), path]
        root = str(Path(__file__).parents[2])
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        done = subprocess.run(
            [python, "-m", "zolab.bench.rl", *words],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=env,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        if "missing" in row:
            return row
        model, tokenizer = load_base("sorting")
        model.load_state_dict(load_file(path))
    held_out = TASK.prompts(500, seed=0, held_out=True)
    longest = TASK.max_new_tokens
    found = evaluate(model, tokenizer, held_out, sorted_exactly, max_new_tokens=longest)
    return row | found.metrics()


def rollouts(repeats: int) -> list[Line]:
    """CPU seconds of `generate` over those of our sampler, in pairs."""
    from zolab.rl.rollout import rollout

    model, tokenizer = load_base("sorting")
    lines = []
    for name, (count, group) in SHAPES.items():
        asked = TASK.prompts(count, seed=0)

        def once(backend: str, asked: list[str] = asked, group: int = group) -> float:
            began = time.process_time()
            rollout(
                model,
                tokenizer,
                asked,
                group_size=group,
                max_new_tokens=TASK.max_new_tokens,
                generator=0,
                backend=backend,
            )
            return time.process_time() - began

        once("own"), once("generate")
        ratios = tuple(once("generate") / once("own") for _ in range(repeats))
        target = FAST if group > 1 else None
        lines.append(Line(f"generate / own, {name}", ratios, target, at_least=True))
    return lines


def compare(rows: dict[str, list[dict[str, Any]]]) -> list[Line]:
    """Our runs by themselves, and in ratios to TRL's of the same seeds."""

    def of(name: str, key: str) -> tuple[float, ...]:
        return tuple(r[key] for r in rows[name])

    lines = []
    for name in rows:
        lines += [
            Line(f"{name}: {key}", of(name, key), unit=unit)
            for key, unit in (
                *(("greedy", ""), ("pass@1", ""), ("pass@8", "")),
                *(("cpu_s", "s"), ("peak_mb", "MB")),
            )
        ]
    if "trl" in rows:
        for key, target, label in (
            ("cpu_s", CPU, "CPU seconds of an update, ours / trl"),
            ("peak_mb", PEAK, "peak of the process, ours / trl"),
        ):
            pairs = zip(of("ours", key), of("trl", key), strict=True)
            lines.append(Line(label, tuple(a / b for a, b in pairs), target))
        lines += [apart(of("ours", k), of("trl", k), k) for k in ("greedy", "pass@1")]
    return lines


def apart(a: Sequence[float], b: Sequence[float], key: str) -> Line:
    """The distance of two means in standard errors: below 3 is no difference."""
    if len(a) < 2:
        return Line(f"{key}: distance in standard errors", (math.nan,))
    error = math.sqrt((statistics.variance(a) + statistics.variance(b)) / len(a))
    away = abs(statistics.fmean(a) - statistics.fmean(b)) / max(error, 1e-9)
    return Line(f"{key}: distance in standard errors", (away,), 3.0)


def main(argv: list[str] | None = None) -> int:
    """Time the samplers, run the loops in turn, print the lines, write the record."""
    parser = argparse.ArgumentParser(prog="python -m zolab.bench rl")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=15, help="pairs of rollouts")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with trl")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = rollouts(a.repeats)
    show(lines)
    rows: dict[str, list[dict[str, Any]]] = {"ours": []}
    if a.peers:
        rows["trl"] = []
    for seed in range(a.seeds):
        for name in list(rows)[:: -1 if seed % 2 else 1]:
            row = run(a.peers or sys.executable, name, seed, a.updates)
            if "missing" in row:
                print(f"  {a.peers}: no module {row['missing']} there")
                return 1
            rows[name].append(row)
            print(
                f"  {name:5} seed {seed}: greedy {row['greedy']:.3f}, pass@1 "
                f"{row['pass@1']:.3f}, {row['cpu_s']:.3f} CPU s an update, peak "
                f"{row['peak_mb']:.0f} MB, load {row['load']}",
                flush=True,
            )
    lines += compare(rows)
    show(lines)
    setting = Setting("cpu", "sorting", (1,), a.repeats)
    record = {"item": "rl", **machine("rl", setting)}
    record["command"] = (
        f"python -m zolab.bench rl --seeds {a.seeds} --updates {a.updates} "
        f"--repeats {a.repeats}" + " --peers PYTHON" * bool(a.peers)
    )
    record |= {"lines": [x.as_json() for x in lines], "rows": rows}
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "bench-rl-cpu-sorting.json"
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"  -> {path.name}")
    return 0


if __name__ == "__main__":
    word = sys.argv
    print(json.dumps(child(word[1], int(word[2]), int(word[3]), word[4])))
