"""Linears that compute as if they were quantised, from ordinary parameters.

    Y  = Q_A((X - delta) / t) Q_N(W t)' + B + W delta

    Q_N(w) = s (clip(round(w / s + z0), 0, 2^N - 1) - z0),   a group
    s  = (sig(gamma_high) max w - sig(gamma_low) min w) / (2^N - 1)
    z0 = -round(sig(gamma_low) min w / s)

W (out, in) are the latent weights; t and delta (in,) move a difficulty from activations
to weights and change nothing where nothing is rounded; gamma (rows, groups) clip each
group. max and min span 0, so that 0 is a level. Q_A is the same per token, unclipped.
Rounding is real; for who back-propagates its derivative is 1 (straight through).

W. Shao et al., OmniQuant, arXiv:2308.13137 (the parameters). Q. Tan et al., ZeroQAT,
arXiv:2509.00031 (moved by forward passes). Y. Bengio et al., arXiv:1308.3432 (straight
through).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zolab.quantized.clip import searched
from zolab.storage.codecs import Codec, by_group, span, straight


class FakeLinear(nn.Module):
    """A linear's weight and bias, and what is learned beside them.

    `codec` says bits and groups (None: no weight is rounded). Logits of gamma, log t
    and delta are stored in units of `unit`: a probe of eps moves them by unit * eps,
    so that one eps fits them and the weights. Where the weight is packed, gamma is
    gone, and what moves of the clipping is `weight_scale`.
    """

    weight: Tensor
    bias: nn.Parameter | None
    gamma_high: nn.Parameter
    gamma_low: nn.Parameter
    log_t: nn.Parameter
    delta: nn.Parameter

    def __init__(
        self,
        linear: nn.Linear,
        codec: Codec | None,
        *,
        activation_bits: int | None = None,
        transform: bool = True,
        clip: float | str = 0.98,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.codec, self.activation_bits = codec, activation_bits
        self.transform, self.unit = transform, unit
        w, moves = linear.weight.detach(), linear.weight.requires_grad
        kept = () if codec is None else _kept(w, codec, clip)
        for name, share in zip(("gamma_high", "gamma_low"), kept, strict=False):
            logit = torch.logit(share.clamp(max=0.999)) / unit
            self.register_parameter(name, nn.Parameter(logit, moves))
        for name in ("log_t", "delta") if transform else ():
            zeros = torch.zeros(w.shape[1], device=w.device)
            self.register_parameter(name, nn.Parameter(zeros, moves))

    @property
    def coded(self) -> bool:
        """Whether the weight is packed."""
        return hasattr(self.weight, "packed")

    @property
    def learned(self) -> list[nn.Parameter]:
        """Logits of gamma or the packed scales, log t, delta."""
        named = self.named_parameters(recurse=False)
        return [p for n, p in named if n not in ("weight", "bias")]

    def forward(self, x: Tensor) -> Tensor:
        kind = x.dtype
        w: Tensor = self.weight
        bias: Tensor | None = self.bias
        if not self.coded:
            w = w.float()
            bias = self.shifted(w, bias)
            w = self.rounded(w).to(kind)
        if self.transform:
            x = (x - self.unit * self.delta) * torch.exp(-self.unit * self.log_t)
        if self.activation_bits is not None:
            top = 2.0**self.activation_bits - 1
            x = on_grid(x.float(), *span(x.float(), top), top)
        return F.linear(x.to(kind), w, None if bias is None else bias.to(kind))

    def shifted(self, w: Tensor, bias: Tensor | None) -> Tensor | None:
        """B + W delta."""
        if not self.transform:
            return bias
        more = w @ (self.unit * self.delta)
        return more if bias is None else bias + more

    def scaled(self, w: Tensor) -> Tensor:
        """W t."""
        return w * torch.exp(self.unit * self.log_t) if self.transform else w

    def scales(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points (rows, groups) of W t."""
        assert self.codec is not None
        high = torch.sigmoid(self.unit * self.gamma_high)
        low = torch.sigmoid(self.unit * self.gamma_low)
        return span(by_group(scaled, self.codec), self.codec.top, high, low)

    def rounded(self, w: Tensor) -> Tensor:
        """Q_N(W t), fp32."""
        w = self.scaled(w)
        if self.codec is None:
            return w
        x = by_group(w, self.codec)
        x = on_grid(x, *self.scales(w), self.codec.top)
        return x.flatten(-2)[:, : w.shape[1]]

    def extra_repr(self) -> str:
        bits = self.codec.name if self.codec else "fp"
        return f"{tuple(self.weight.shape)}, W {bits}, A {self.activation_bits or 'fp'}"


def on_grid(x: Tensor, scale: Tensor, zero: Tensor, top: float) -> Tensor:
    """x at its nearest levels: (..., n), with a scale and a zero point each (...)."""
    scale, zero = scale[..., None], zero[..., None]
    return scale * (straight(x / scale + zero).clamp(0, top) - zero)


def _kept(w: Tensor, codec: Codec, clip: float | str) -> tuple[Tensor, Tensor]:
    if clip == "search":
        return searched(w, codec)[1:]
    if isinstance(clip, str) or not 0 < clip < 1:
        raise ValueError(f'clip is {clip!r}, expected a share in (0, 1) or "search"')
    whole = torch.full(codec.groups(w.shape), clip, device=w.device)
    return whole, whole
