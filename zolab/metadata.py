"""Torch calls that read no value of a tensor: whatever stands for it may answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PROPERTIES = """
    shape dtype device ndim layout requires_grad grad grad_fn is_leaf is_cuda is_cpu
    is_mps is_xpu is_meta is_sparse is_quantized is_nested is_mkldnn itemsize nbytes
    name output_nr retains_grad _version _base
"""
METHODS = """
    size dim ndimension numel nelement stride storage_offset element_size get_device
    is_contiguous is_floating_point is_complex is_signed is_pinned is_inference
    is_shared data_ptr untyped_storage requires_grad_ __len__ __hash__
"""
METADATA: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in PROPERTIES.split()),
    *(getattr(Tensor, name) for name in METHODS.split()),
    *(torch.is_floating_point, torch.is_complex, torch.numel),
    # zero_grad() and adapters that are switched off set these in a closure.
    *(getattr(Tensor, name).__set__ for name in ("grad", "requires_grad")),
}
