"""Attention and GELU: the compiled forms equal torch's kernels, and padded heads change no attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from soflow.autodiff import directional_derivative
from soflow.config_base import ConfigError
from soflow.networks.attention import FEW_TOKENS, TanhGELU, attend, pad_heads
from soflow.networks.dit import SelfAttention

ROUNDING = 1e-12
"""Far above the rounding of float64 sums of 16 terms, 16 · 2⁻⁵³, far below any error of a formula.

The backend "eager" runs what the compiler gets without compiling it."""


def heads(tokens: int, size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    return tuple(torch.randn(3, 2, tokens, size, dtype=torch.float64, generator=generator) for _ in range(3))


@pytest.mark.parametrize("tokens", [1, FEW_TOKENS, FEW_TOKENS + 1])
def test_compiled_attention_equals_torchs_with_its_derivatives(tokens):
    def all_of(function) -> tuple:
        inputs = [value.requires_grad_() for value in heads(tokens, 16)]
        output = function(*inputs)
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        _, derivative = directional_derivative(function, heads(tokens, 16), heads(tokens, 16)[::-1])
        return output, gradients, derivative

    traced = torch.compile(attend, backend="eager", dynamic=False)
    torch.testing.assert_close(all_of(traced), all_of(attend), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("size", [16, 72])
def test_padded_heads_change_no_attention(size):
    q, k, v = heads(32, size)
    padded = F.scaled_dot_product_attention(*map(pad_heads, (q, k, v)), scale=size**-0.5)
    assert padded.shape[3] == {16: 16, 72: 128}[size]
    torch.testing.assert_close(
        padded[..., :size], F.scaled_dot_product_attention(q, k, v), rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize(("tokens", "size"), [(32, 257), (16, 64), (36, 64)])
def test_heads_that_the_fused_kernel_does_not_have_are_refused(tokens, size):
    with pytest.raises(ConfigError, match=rf"jvp_attention = flash: .*, not {size} and {tokens}; set it to math"):
        pad_heads(torch.zeros(1, 1, tokens, size))


def test_compiled_gelu_equals_torchs_with_its_derivative():
    x = torch.linspace(-12, 12, 1001, dtype=torch.float64, requires_grad=True)
    expected, found = F.gelu(x, approximate="tanh"), torch.compile(TanhGELU(), backend="eager")(x)
    # 1 + tanh a cancels to an error of 2⁻⁵³ times |x|; the sigmoid does not.
    torch.testing.assert_close(found, expected, rtol=0, atol=12 * 2**-52)
    slopes = [torch.autograd.grad(y.sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-13)


def test_self_attention_equals_timms_with_the_same_weights():
    from timm.models.vision_transformer import Attention

    ours, theirs = (kind(32, num_heads=4, qkv_bias=True).double() for kind in (SelfAttention, Attention))
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, 9, 32, dtype=torch.float64)
    assert torch.equal(ours(tokens), theirs(tokens))
