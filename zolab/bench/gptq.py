"""GPTQ's column update, as a reference: no library of it runs on this project's CPU.

Column by column, the error of rounding one weight is spread over the columns that are
not rounded yet, so that the layer's output on calibration inputs changes least:

    H = 2 X'X + damp mean(diag) I,  U'U = H^-1 with U upper triangular
    e = (w_j - Q(w_j)) / U_jj,      w_k -= e U_jk  for k > j

A group's scale is fitted on its updated weights when its first column comes up.
(gptqmodel asks for a newer torch, llmcompressor for an older transformers, torchao's
prototype for CUDA.) E. Frantar et al., GPTQ, arXiv:2210.17323.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zolab.quantized.clip import searched
from zolab.space import canonical
from zolab.storage.codecs import Codec, fit, grouped_codes
from zolab.storage.packed import Packed, pack_tensor


class GPTQ:
    """A quantizer: `zolab.pack(model, "uint2", by=GPTQ(model, run))`.

    `run` passes calibration data through the model once; inputs of all linears are
    those of the unrounded model. `clip` searches each group's range.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[], Any],
        *,
        damp: float = 0.01,
        clip: bool = False,
    ) -> None:
        self.damp, self.clip = damp, clip
        self.squares: dict[str, Tensor] = {}
        hooks = [
            m.register_forward_pre_hook(self._see(canonical(f"{n}.weight")))
            for n, m in model.named_modules()
            if isinstance(m, nn.Linear)
        ]
        with torch.no_grad():
            run()
        for h in hooks:
            h.remove()

    def _see(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            self.squares[name] = self.squares.get(name, 0) + x.T @ x

        return hook

    def __call__(self, name: str, w: Tensor, codec: Codec) -> Packed:
        h = 2 * self.squares[name]
        h = h + self.damp * h.diagonal().mean() * torch.eye(len(h))
        u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
        w, rounded = w.detach().double().clone(), torch.empty_like(w)
        _, columns, group = codec.layout(w.shape)
        scales, zeros = [], []
        zero: Tensor | None
        for j in range(columns):
            if j % group == 0:
                scale, zero = self._fit(w[:, j : j + group].float(), codec)
                scales.append(scale)
                zeros += [] if zero is None else [zero]
            q = _rounded(w[:, j : j + 1].float(), codec, scale, zero)
            rounded[:, j : j + 1] = q
            error = (w[:, j] - q[:, 0]) / u[j, j]
            w[:, j + 1 :] -= error[:, None] * u[j, None, j + 1 :]
        zero = torch.cat(zeros, 1) if zeros else None
        return pack_tensor(rounded, codec, scale=torch.cat(scales, 1), zero=zero)

    def _fit(self, w: Tensor, codec: Codec) -> tuple[Tensor, Tensor | None]:
        if not self.clip:
            return fit(w, codec)
        found = searched(w, codec)[0]
        return found.scale.detach(), found.zero


def _rounded(w: Tensor, codec: Codec, scale: Tensor, zero: Tensor | None) -> Tensor:
    """A column (rows, 1) at its nearest levels."""
    code = grouped_codes(w[:, None], codec, scale, zero)[:, 0]
    level = codec.levels()[code.long()]
    return scale * (level if zero is None else level - zero)
