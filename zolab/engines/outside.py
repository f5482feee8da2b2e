"""Calls from outside of a step, at modules whose parameters are not all there is.

Where a parameter alone is not what the model computes with (a base without what a run
added to it, a table that is not on the device), the module that is called first enters
the engine's mode, and leaves it when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from zolab.engines.mode import Materialise
from zolab.errors import SpaceError


def enter(
    modules: Iterable[nn.Module],
    params: set[int],
    visit: Callable[[], Materialise],
    *,
    what: str,
) -> list[Any]:
    """Hooks that let these modules be called alone; `what` the model is, for errors.

    `params` are ids: a mode that knows one of them is already there.
    """
    ours, inside = set(modules), list[tuple[nn.Module, Materialise]]()

    def before(module: nn.Module, args: Any) -> None:
        if any(_knows(m, params) for m in _get_current_function_mode_stack()):
            return
        if module not in ours:
            raise SpaceError(
                f"this is a copy of a model {what}: it lacks what its engine holds. "
                "Copy it after opt.engine.release()"
            )
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            raise SpaceError(
                f"a model {what} computes no gradients: call it under torch.no_grad()"
            )
        inside.append((module, visit()))
        inside[-1][1].__enter__()

    def after(module: nn.Module, args: Any, out: Any) -> None:
        if inside and inside[-1][0] is module:
            inside.pop()[1].__exit__(None, None, None)

    hooks: list[Any] = []
    for m in ours:
        hooks.append(m.register_forward_pre_hook(before))
        hooks.append(m.register_forward_hook(after, always_call=True))
    return hooks


def _knows(mode: Any, params: set[int]) -> bool:
    return isinstance(mode, Materialise) and not params.isdisjoint(mode.slots)
