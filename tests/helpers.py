"""Small models and closures that several tests share."""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """An embedding, two linears and a norm: every kind of slot, 1,231 parameters."""
    torch.manual_seed(seed)
    layers = (
        nn.Embedding(11, 16),
        nn.Linear(16, 32),
        nn.LayerNorm(32),
        nn.Linear(32, 14),
    )
    return nn.Sequential(*layers).to(dtype)


def closure(model: nn.Module, seed: int = 1):
    """Cross entropy of eight fixed tokens, fp32."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(0, 11, (8,), generator=g) for _ in range(2))
    return lambda: F.cross_entropy(model(x).float(), y)


def bits(model: nn.Module) -> list[torch.Tensor]:
    """Every parameter and buffer, as bytes that can be compared."""
    tensors = [*model.parameters(), *model.buffers()]
    return [t.detach().clone().reshape(-1).view(torch.uint8) for t in tensors]


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))
