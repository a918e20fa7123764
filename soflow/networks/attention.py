"""Attention and GELU of the backbones: equal functions, computed as is fastest eager, compiled and in forward mode."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soflow.config_base import ConfigError

FEW_TOKENS = 4
"""Tokens up to which compiled attention is sums of products: so few of them take less time than a kernel's call."""
GELU_SLOPE, GELU_CUBE = 2 * math.sqrt(2 / math.pi), 0.044715
FLASH_HEADS, FLASH_TOKENS = (16, 32, 64, 128, 256), 32
"""Head sizes of the fused kernel with a forward-mode derivative, and the divisor of its numbers of tokens."""

_flash = False


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute softmax(q kᵀ / √D) v for queries, keys and values [B, heads, N, D]."""
    if _flash and q.is_cuda:
        return _flash_attention(q, k, v)
    if torch.compiler.is_compiling() and q.shape[2] <= FEW_TOKENS:
        # The compiler fuses these products with their sums, and with what surrounds them.
        scores = (q[:, :, :, None] * k[:, :, None]).sum(-1) / math.sqrt(q.shape[3])
        return (scores.softmax(-1)[..., None] * v[:, :, None]).sum(-2)
    if q.device.type == "meta" and torch.backends.cuda.flash_sdp_enabled():
        # torch itself has no fused kernel for tensors without content, by which memory and time are predicted.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    return F.scaled_dot_product_attention(q, k, v)


@contextmanager
def flash_attention() -> Iterator[None]:
    """Use, on CUDA, a fused attention kernel that has a forward-mode derivative inside the block."""
    global _flash
    before, _flash = _flash, True
    try:
        yield
    finally:
        _flash = before


def _flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from jvp_flash_attention.jvp_attention import JVPAttn

    padded = [pad_heads(value) for value in (q, k, v)]
    return JVPAttn.fwd_dual(*padded, sm_scale=q.shape[3] ** -0.5)[..., : q.shape[3]]


def pad_heads(values: Tensor) -> Tensor:
    """Append zeros to heads [B, heads, N, D] up to a size that the fused kernel has; they change no product.

    Raises:
        ConfigError: if the kernel has no such size, or does not have this number of tokens.
    """
    tokens, head = values.shape[2:]
    size = next((size for size in FLASH_HEADS if size >= head), None)
    if size is None or tokens % FLASH_TOKENS:
        raise ConfigError(
            f"objective.jvp_attention = flash: takes heads of at most {FLASH_HEADS[-1]} features and a multiple of "
            f"{FLASH_TOKENS} tokens, not {head} and {tokens}; set it to math"
        )
    return F.pad(values, (0, size - head))


class TanhGELU(nn.Module):
    """GELU in its approximation by tanh."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # As (1 + tanh a) / 2 = σ(2a). Vectorized, the exponential takes less time than tanh.
            return x * torch.sigmoid(GELU_SLOPE * (x + GELU_CUBE * x**3))
        return F.gelu(x, approximate="tanh")
