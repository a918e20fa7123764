"""Derivatives along a direction: exact, and by differences with their order of convergence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import slope
from torch import nn
from torch.func import functional_call, jvp
from torch.utils.flop_counter import FlopCounterMode

from soflow.autodiff import ConstantWeights, difference_quotient, directional_derivative

RANDOM = torch.Generator().manual_seed(0)
X, V = (torch.randn(5, 1, 1, 6, generator=RANDOM, dtype=torch.float64) for _ in range(2))
T = torch.tensor([0.3, 0.5, 0.6, 0.8, 0.9], dtype=torch.float64)
S = torch.tensor([0.0, 0.1, 0.3, 0.2, 0.6], dtype=torch.float64)


def test_the_total_derivative_is_that_along_the_direction():
    def curve(x, t):
        return (x * t[:, None, None, None]).sin()

    u, du_dt = directional_derivative(curve, (X, T), (V, torch.ones_like(T)))
    t = T[:, None, None, None]
    torch.testing.assert_close(u, (X * t).sin(), rtol=1e-14, atol=0)
    torch.testing.assert_close(du_dt, (X * t).cos() * (V * t + X), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("ends", "order"), [("both", 2), ("later", 1), ("earlier", 1)])
def test_differences_converge_with_their_order(ends, order):
    def curve(x, t):
        return (x * t[:, None, None, None]).sin() * (2 * t[:, None, None, None]).exp()

    _, exact = directional_derivative(curve, (X, T), (V, torch.ones_like(T)))
    steps, errors = [0.1 / 2**i for i in range(3, 8)], []
    for h in steps:
        earlier, later = (T if ends == "later" else T - h), (T if ends == "earlier" else T + h)
        errors.append((difference_quotient(curve, X, V, (earlier, T, later)) - exact).norm().item())
    assert slope(steps, errors) == pytest.approx(order, abs=0.1)


LAYERS = {
    "linear": (nn.Linear(6, 4), (3, 5, 6)),
    "linear without bias": (nn.Linear(6, 4, bias=False), (3, 6)),
    "convolution": (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (3, 2, 8, 8)),
    "transposed convolution": (nn.ConvTranspose2d(2, 4, 2, stride=2), (3, 2, 4, 4)),
    "keywords": (lambda x: F.conv2d(x, weight=KERNEL, bias=KERNEL[:, 0, 0, 0], padding=1), (3, 2, 4, 4)),
}
KERNEL = torch.randn(4, 2, 3, 3, generator=RANDOM)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_constant_weights_have_torch_s_derivative_in_fewer_products(name):
    layer, shape = LAYERS[name]
    x, v = (torch.randn(shape, generator=RANDOM) for _ in range(2))
    with torch.no_grad():
        with FlopCounterMode(display=False) as once:
            layer(x)
        with FlopCounterMode(display=False) as theirs:
            expected = jvp(layer, (x,), (v,))
        with FlopCounterMode(display=False) as ours:
            found = directional_derivative(layer, (x,), (v,))
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=0)
    assert ours.get_total_flops() == 2 * once.get_total_flops()
    if name != "keywords":
        assert theirs.get_total_flops() == 3 * once.get_total_flops()  # else this class has become useless


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_torch_s_derivative_in_bfloat16_as_well(name):
    layer, shape = LAYERS[name]
    x, v = (torch.randn(shape, generator=RANDOM) for _ in range(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = jvp(layer, (x,), (v,)), directional_derivative(layer, (x,), (v,))
    for value, other in zip(found, expected, strict=True):
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value, other, rtol=0, atol=0)


def test_gradients_flow_through_the_value_and_the_derivative():
    layer, _ = LAYERS["linear"]
    x, v = (torch.randn(3, 6, generator=RANDOM) for _ in range(2))
    gradients = []
    for product in (jvp, directional_derivative):
        value, derivative = product(lambda x: layer(x).sin(), (x,), (v,))[:2]
        gradients.append(torch.autograd.grad((value + derivative**2).sum(), tuple(layer.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_derivative_along_weights_stays_exact(name):
    layer = nn.Linear(6, 4).double()
    x, v = (torch.randn(3, 6, generator=RANDOM, dtype=torch.float64) for _ in range(2))
    weights = {key: value.detach() for key, value in layer.named_parameters()}
    change = torch.randn(weights[name].shape, generator=RANDOM, dtype=torch.float64)

    def output(x, changed):
        return functional_call(layer, weights | {name: changed}, (x,))

    _, found = directional_derivative(output, (x, weights[name]), (v, change))
    both = torch.nn.functional.linear(v, weights["weight"])
    expected = both + (x @ change.T if name == "weight" else change)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_mode_ends_with_the_derivative():
    directional_derivative(torch.sin, (T,), (T,))
    assert not any(isinstance(mode, ConstantWeights) for mode in torch.overrides._get_current_function_mode_stack())
