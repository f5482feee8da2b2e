"""Checkpoints: weights, optimizer, generators; safetensors and JSON, no pickle.

    FOLDER/latest.json                    {"checkpoint": "step-12"}
    FOLDER/step-12/weights.safetensors    optimizer.safetensors    state.json
    FOLDER/best.safetensors, best.json    the weights that scored best
    FOLDER/history.jsonl                  a line a step

A checkpoint is written under another name and renamed, and `latest.json` is replaced
last: whenever the process dies, what `latest.json` names is whole. On CPU the step
after a resume has the bits that it would have had.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from zolab.errors import ZolabError


class CheckpointError(ZolabError):
    """A checkpoint is missing, foreign, or holds what no plain file can."""


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> None:
    """Write the checkpoint of `state["step"]` and forget the one before."""
    name = f"step-{state['step']}"
    new = folder / f"{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_model(model, str(new / "weights.safetensors"))
    tensors, plain = flat(optimizer.state_dict())
    random_tensors, random_plain = generators()
    save_file(tensors | random_tensors, new / "optimizer.safetensors")
    whole = {"run": dict(state), "optimizer": plain, "generators": random_plain}
    (new / "state.json").write_text(json.dumps(whole))
    shutil.rmtree(folder / name, ignore_errors=True)
    new.rename(folder / name)
    write(folder / "latest.json", {"checkpoint": name})
    for old in folder.glob("step-*"):
        if old.name != name:
            shutil.rmtree(old)


def load(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Bring the latest checkpoint back; returns its `state`, or None if there is none.

    The process's generators (python, numpy, torch) are set too. CheckpointError where
    the model or the optimizer is another one.
    """
    latest = folder / "latest.json"
    if not latest.exists():
        return None
    at = folder / json.loads(latest.read_text())["checkpoint"]
    try:
        whole = json.loads((at / "state.json").read_text())
        tensors = load_file(at / "optimizer.safetensors")
        load_model(model, str(at / "weights.safetensors"))
        optimizer.load_state_dict(deep(tensors, whole["optimizer"]))
    except (OSError, RuntimeError, ValueError, KeyError) as why:
        raise CheckpointError(
            f"{at} does not fit this model or optimizer: {why}"
        ) from why
    restore(tensors, whole["generators"])
    state: dict[str, Any] = whole["run"]
    return state


def flat(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as (tensors by "state/parameter/name", the rest as JSON)."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"param_groups": [], "state": {}}
    for i, values in state["state"].items():
        rest = {}
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"state/{i}/{key}"] = value.contiguous()
            else:
                rest[key] = jsonable(value, key)
        plain["state"][str(i)] = rest
    for g, group in enumerate(state["param_groups"]):
        rest = {}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group/{g}/{key}"] = value.contiguous()
            else:
                rest[key] = jsonable(value, key)
        plain["param_groups"].append(rest)
    return tensors, plain


def deep(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` took apart."""
    state = {int(i): dict(rest) for i, rest in plain["state"].items()}
    groups = [dict(rest) for rest in plain["param_groups"]]
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind in ("state", "group"):
            i, _, key = rest.partition("/")
            (state[int(i)] if kind == "state" else groups[int(i)])[key] = value
    return {"state": state, "param_groups": groups}


def jsonable(value: Any, key: str) -> Any:
    """The value, if JSON gives it back; CheckpointError otherwise."""
    try:
        json.dumps(value)
    except TypeError:
        raise CheckpointError(
            f"the optimizer's {key} is a {type(value).__name__}: a checkpoint holds "
            "tensors, numbers, texts and lists, since it must not execute anything"
        ) from None
    return value


def generators() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of the process's generators, as tensors and JSON."""
    tensors = {"random/torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for i, one in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"random/cuda/{i}"] = one
    name, keys, *rest = np.random.get_state()
    tensors["random/numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    return tensors, {"python": random.getstate(), "numpy": [name, *rest]}


def restore(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """What `generators` saw is so again."""
    torch.set_rng_state(tensors["random/torch"])
    if cuda := [v for k, v in sorted(tensors.items()) if k.startswith("random/cuda/")]:
        torch.cuda.set_rng_state_all(cuda)
    version, inner, gauss = plain["python"]
    random.setstate((version, tuple(inner), gauss))
    name, *rest = plain["numpy"]
    np.random.set_state(
        (name, tensors["random/numpy"].numpy().astype(np.uint32), *rest)
    )


def write(path: Path, value: Any) -> None:
    """JSON, whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value))
    os.replace(new, path)
