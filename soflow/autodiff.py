"""Derivatives of networks along a direction: by forward-mode differentiation, compiled or not, or by differences."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from soflow.networks.attention import flash_attention

# torch warns, in the first derivative of a process, of its own use of a deprecated function.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)

COMPILATIONS = 64
"""Forms of a function (networks, precisions, batch sizes of derivatives) that a process compiles before it computes
further ones eagerly."""


class ConstantWeights(TorchFunctionMode):
    """Forward-mode derivative of linear layers and convolutions without the term of their weights, which is zero.

    torch's own rule computes W ẋ + Ẇ x even if the weights W have no tangent: for Ẇ it makes zeros and multiplies by
    them, so that a Jacobian-vector product costs the matrix products of three network calls instead of two. The
    results are equal. Layers whose weights have a tangent keep torch's rule.
    """

    LAYERS = (F.linear, F.conv2d, F.conv_transpose2d)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.LAYERS or not args:
            return func(*args, **kwargs)
        x, *weights = args
        primal, tangent = unpack_dual(x)
        if tangent is None or any(_has_tangent(value) for value in (*weights, *kwargs.values())):
            return func(*args, **kwargs)
        weights_alone = [*weights[:1], *(None for _ in weights[1:2]), *weights[2:]]  # the bias is constant as well
        derivative = func(tangent, *weights_alone, **{name: value for name, value in kwargs.items() if name != "bias"})
        return make_dual(func(primal, *weights, **kwargs), derivative)


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and unpack_dual(value).tangent is not None


def directional_derivative(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], direction: tuple[Tensor, ...], *, flash: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute function(*inputs) and its derivative along `direction` with one Jacobian-vector product.

    Attention uses torch's math kernel, because torch's fused kernels have no forward-mode derivative. Linear layers and
    convolutions cost two products each, see ConstantWeights.

    Args:
        inputs, direction: tensors of equal shapes, one direction per input.
        flash: use a fused kernel that has one on CUDA.
    """
    with flash_attention() if flash else sdpa_kernel(SDPBackend.MATH), ConstantWeights():
        return jvp(function, inputs, direction)[:2]


def total_derivative(
    network: nn.Module, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor, *, flash: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute u = F_θ(x, t, s) and du/dt = v · ∂_x u + ∂_t u at fixed s, both shaped like x, in one forward-mode pass.

    Args:
        network: not compiled, since a compiled network has no forward-mode derivative.
        v: dx/dt, shaped like x.
        flash: see `directional_derivative`.
    """

    def forward(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t, s, labels)

    u, du_dt = directional_derivative(forward, (x, t), (v, torch.ones_like(t)), flash=flash)
    return u.to(x.dtype), du_dt.to(x.dtype)


@functools.cache
def compiled_total_derivative() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `total_derivative`, compiled as a whole.

    Each batch size is compiled apart: torch cannot compile forward-mode derivatives for sizes that vary, and a failed
    attempt leaves its forward mode unusable in this process.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILATIONS)
    return torch.compile(total_derivative, dynamic=False)


def difference_quotient(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, v: Tensor, ends: tuple) -> Tensor:
    """Compute [F(x + a v, t + a) − F(x − b v, t − b)] / (a + b), an approximation of dF/dt along v.

    Its error is of second order where a = b. Rounding is amplified by 1 / (a + b).

    Args:
        ends: t − b, t and t + a, each [B].
    """
    earlier, t, later = ends
    shape = (-1, *[1] * (x.dim() - 1))
    a, b = (later - t).view(shape), (t - earlier).view(shape)
    return (function(x + a * v, later) - function(x - b * v, earlier)) / (a + b)
