"""Derivatives along a direction: exact, and by differences with their order of convergence."""

from __future__ import annotations

import pytest
import torch
from helpers import slope

from soflow.autodiff import difference_quotient, directional_derivative

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
