"""Forward-mode differentiation of networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

# torch warns, in the first derivative of a process, of its own use of a deprecated function.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)


def directional_derivative(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], direction: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Compute function(*inputs) and its derivative along `direction` with one Jacobian-vector product.

    Attention uses torch's math kernel, because the fused kernels have no forward-mode derivative.

    Args:
        inputs, direction: tensors of equal shapes, one direction per input.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return jvp(function, inputs, direction)[:2]
