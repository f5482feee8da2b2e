"""Base models that travel in the wheel: pretrained on demonstrations, unrewarded."""

from __future__ import annotations

import json
from typing import Any

from zolab.assets import AssetError, check
from zolab.models import DATA, _folder

BASES = ("sorting",)


def load_base(name: str) -> tuple[Any, Any]:
    """(model, tokenizer) before any reward: fp32, in eval mode; always a fresh copy.

    `scripts/pretrain_skills.py` made it and its card says how. Raises AssetError where
    the name is unknown or the file is not the one that was measured.
    """
    import torch

    if name not in BASES:
        raise AssetError(f"no base is called {name!r}, expected {', '.join(BASES)}")
    check(DATA / name / "model.safetensors", card(name)["sha256"])
    return _folder(DATA / name, torch.float32)


def card(name: str) -> dict[str, Any]:
    """The base's command, recipe, checksum, licence, and scores before any reward."""
    return json.loads((DATA / name / "card.json").read_text("utf-8"))
