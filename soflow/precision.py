"""In which precision networks compute: float32, TensorFloat-32 or bfloat16.

Lower precision is harmless in most calls, but SoFlow's quotient divides the difference of two network outputs by t − l
and so amplifies their rounding by 1 / r(k, K), 500 times at r = 0.002. Each objective therefore holds two precisions,
one for the calls of a quotient and one for all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from soflow.config_base import PrecisionName


class Precision:
    """Calls networks in one precision; outputs come back in their input's dtype.

    float64 inputs, as tests use them, stay float64 except under bf16.
    """

    def __init__(self, name: PrecisionName = "fp32"):
        self.name = name

    def __call__(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """F_θ(x, t, s, labels), shaped as x."""
        with self.context(x.device):
            return network(x, t, s, labels).to(x.dtype)

    @contextmanager
    def context(self, device: torch.device) -> Iterator[None]:
        """Inside, matrix products and convolutions run in this precision."""
        if device.type == "meta":  # has no precision
            yield
            return
        with _tensor_float_32(self.name == "tf32"), torch.autocast(device.type, torch.bfloat16, self.name == "bf16"):
            yield


@contextmanager
def _tensor_float_32(allowed: bool) -> Iterator[None]:
    """TensorFloat-32 on CUDA tensor cores, which torch allows in convolutions unless told otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
