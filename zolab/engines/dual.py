"""Forward-mode differentiation through the same mechanism: parameters as dual numbers.

Inside `Dual` every parameter of the space reads as (w, sum s z), and the loss comes
back as (L, the exact slope along sum s z): no eps, no subtraction, about twice the
arithmetic of a forward pass and no activations kept.

A. G. Baydin et al., Gradients without backpropagation, arXiv:2202.08587.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from zolab import storage
from zolab.engines.mode import Materialise
from zolab.engines.readout import number
from zolab.errors import LossError, SpaceError
from zolab.gradient import Answer
from zolab.space import Slot


class Dual(Materialise):
    """While active, parameters read as dual numbers: the base and `terms` beside it."""

    fused = False

    def __enter__(self) -> Any:
        self.opened = ExitStack()
        self.opened.enter_context(forward_ad.dual_level())
        # Fused attention has no forward derivative; the plain formula has.
        self.opened.enter_context(sdpa_kernel(SDPBackend.MATH))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.opened.close()

    def value(self, slot: Slot, dtype: torch.dtype, *, pooled: bool = False) -> Tensor:
        if slot.packed:
            raise SpaceError(
                f"{slot.name} is packed: a forward gradient through it is not "
                "supported; ask two losses (SPSA)"
            )
        base = slot.base.to(dtype)
        if slot.delta is not None:
            base = storage.materialise(slot, (), torch.empty_like(base))
        if not self.moves[slot.name]:
            return base
        if slot.name in self.kept:
            return forward_ad.make_dual(base, self.kept[slot.name].to(dtype))
        z = storage.tangent(slot, self.terms)
        if self.keep:
            self.kept[slot.name] = z
        return forward_ad.make_dual(base, z.to(dtype))


def with_tangent(closure: Callable[[], Any]) -> Answer:
    """The closure's number and its slope; LossError where the slope was lost."""
    with _explained():
        loss = closure()
    if not isinstance(loss, Tensor):
        kind = type(loss).__name__
        raise LossError(
            f"the closure returned {kind}, expected the loss as a tensor: a number "
            "carries no derivative (a forward gradient needs a differentiable loss)"
        )
    value, slope = forward_ad.unpack_dual(loss)
    if slope is None:
        raise LossError(
            "the loss has no forward derivative: it was detached, rounded to a label "
            "or computed without the parameters"
        )
    return Answer(number(value), number(slope))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if "forward" not in str(error) or "AD" not in str(error):
            raise
        raise LossError(
            f"an op of the model has no forward derivative ({error}); transformers "
            'models often need attn_implementation="eager"'
        ) from error
