"""Pretrain the base models of the tasks that are learnt from rewards, on one core.

    python scripts/pretrain_skills.py sorting --out zolab/data/sorting
    python scripts/pretrain_skills.py countdown --out zolab/data/countdown

Demonstrations are made up by zolab.tasks; no held-out prompt is among them. Writes
model.safetensors, config.json, the tokenizer and card.json.
"""

import argparse
import hashlib
import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tqdm import tqdm

from zolab.rl.evaluate import evaluate
from zolab.tasks import countdown, sorting
from zolab.tasks.characters import tokenizer
from zolab.tasks.pretraining import blank, pretrain

RECIPES: dict[str, dict[str, Any]] = {
    "sorting": {
        "task": sorting.Sorting(),
        "alphabet": sorting.ALPHABET,
        "reward": sorting.sorted_exactly,
        "shape": {"hidden": 64, "layers": 2, "heads": 4, "inner": 192},
        "train": {"steps": 250, "batch": 128, "lr": 3e-3, "warmup": 50},
        "dtype": torch.float32,
    },
    "countdown": {
        "task": countdown.Countdown(),
        "alphabet": countdown.ALPHABET,
        "reward": countdown.solved,
        "shape": {"hidden": 128, "layers": 3, "heads": 4, "inner": 384},
        "train": {"steps": 400, "batch": 256, "lr": 2e-3, "warmup": 50},
        "dtype": torch.bfloat16,
    },
}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("task", choices=[*RECIPES])
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--steps", type=int, help="default: the recipe's")
    args = ap.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[args.task]
    if args.steps:
        recipe["train"]["steps"] = args.steps
    tok = tokenizer(recipe["alphabet"])
    model = blank(tok, **recipe["shape"], seed=args.seed)
    began = time.process_time()
    losses = []
    bar = tqdm(total=recipe["train"]["steps"], file=sys.stderr, mininterval=5)
    for loss in pretrain(model, tok, recipe["task"], **recipe["train"], seed=args.seed):
        losses.append(loss)
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
    seconds = time.process_time() - began
    finish(args, recipe, model, tok, losses, seconds)


def finish(args, recipe, model, tok, losses, seconds) -> None:
    """Round, measure the rounded model, write what a loader reads."""
    dtype = recipe["dtype"]
    model = model.to(dtype).float()
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()}
    path = args.out / "model.safetensors"
    save_file(weights, str(path), {"format": "pt"})
    model.config.dtype = dtype
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(args.out)
    tok.save_pretrained(args.out)
    task = recipe["task"]
    found = evaluate(
        model,
        tok,
        task.prompts(500, seed=0, held_out=True),
        recipe["reward"],
        max_new_tokens=task.max_new_tokens,
    )
    size = path.stat().st_size
    card = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "command": f"python scripts/pretrain_skills.py {args.task} --out DIR"
        + f" --seed {args.seed}" * bool(args.seed),
        "source": "demonstrations made up by zolab.tasks: no data of anybody",
        "licence": "Apache-2.0",
        "task": asdict(task),
        "recipe": recipe["shape"] | recipe["train"] | {"seed": args.seed},
        "last_loss": sum(losses[-20:]) / 20,
        "held_out": found.metrics()
        | {"prompts": found.prompts, "samples": found.samples},
        "cpu_seconds_one_core": round(seconds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card["held_out"]), f"{size:,} bytes, {seconds:.0f} CPU s")


if __name__ == "__main__":
    main()
