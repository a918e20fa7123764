"""Precision of network calls: float32, TensorFloat-32 or bfloat16.

Lower precision is harmless in most calls. SoFlow's finite difference, however, divides the difference of two network
outputs by t − l, which amplifies rounding by 1 / r(k, K): 500 times at r = 0.002. Each objective therefore has two
precisions, one for the values in a finite difference, and one for all other calls and for all gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from soflow.config_base import PrecisionName

_counted: PrecisionName = "fp32"
"""Precision of the operations on meta tensors, which have none themselves."""


def counted_precision(inputs: Iterable[Tensor]) -> PrecisionName:
    """Return the precision of an operation on meta tensors, for predictions of its time."""
    if any(tensor.dtype == torch.bfloat16 for tensor in inputs):
        return "bf16"
    return "fp32" if _counted == "bf16" else _counted


@contextmanager
def _counted_in(name: PrecisionName) -> Iterator[None]:
    global _counted
    before, _counted = _counted, name
    try:
        yield
    finally:
        _counted = before


EPSILON = {"fp32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}


class _MetaAutocast(TorchFunctionMode):
    """Autocast to bfloat16 for meta tensors, which torch's does not know: the operations that the backbones use."""

    LOWER = (F.linear, F.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention)
    FULL = (F.layer_norm, F.group_norm)

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        dtype = torch.bfloat16 if func in self.LOWER else torch.float32 if func in self.FULL else None
        if dtype:
            args = [
                value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in args
            ]
        return func(*args, **(kwargs or {}))


class Precision:
    """Calls networks in a fixed precision and returns outputs in the dtype of the input.

    float64 inputs, as used in tests, stay float64 except under bf16.
    """

    def __init__(self, name: PrecisionName = "fp32"):
        self.name = name

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next number of this precision."""
        return EPSILON[self.name]

    def __call__(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Compute F_θ(x, t, s, labels), shaped like x."""
        if s is t:  # compiled code is specific to which of its inputs are one tensor
            s = t.clone()
        with self.context(x.device):
            return network(x, t, s, labels).to(x.dtype)

    @contextmanager
    def backward(self, device: torch.device) -> Iterator[None]:
        """Run the backward pass inside the block in this precision; bfloat16 is part of the graph already."""
        with _counted_in(self.name) if device.type == "meta" else _tensor_float_32(self.name == "tf32"):
            yield

    @contextmanager
    def context(self, device: torch.device) -> Iterator[None]:
        """Run matrix products and convolutions inside the block in this precision."""
        if device.type == "meta":
            with _counted_in(self.name), _MetaAutocast() if self.name == "bf16" else nullcontext():
                yield
            return
        with _tensor_float_32(self.name == "tf32"), torch.autocast(device.type, torch.bfloat16, self.name == "bf16"):
            yield


@contextmanager
def _tensor_float_32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TensorFloat-32 on CUDA tensor cores; torch's default allows it in convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
