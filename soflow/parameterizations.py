"""Solution parameterizations f_θ(x, t, s) = a(t, s) x + b(t, s) F_θ(x, t, s), with a(t, t) = 1 and b(t, t) = 0.

They map the backbone's output to the ODE solution (the state at time s of the trajectory through x at time t) and to
the velocity v_θ(x, t) = ∂_s f_θ(x, t, s) at s = t (SoFlow, arXiv 2512.15657).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from soflow.interpolants import per_sample


class Parameterization(ABC):
    """Coefficients a, b and their finite differences in t, elementwise on times in [0, 1] of one shape."""

    velocity_scale: float
    """∂_s b(t, t). As ∂_s a(t, t) = 0 for both parameterizations, v_θ = velocity_scale · F_θ(x, t, t)."""

    @abstractmethod
    def a(self, t: Tensor, s: Tensor) -> Tensor: ...

    @abstractmethod
    def b(self, t: Tensor, s: Tensor) -> Tensor: ...

    @abstractmethod
    def a_finite_difference(self, t: Tensor, l: Tensor, s: Tensor) -> Tensor:
        """Compute (a(t, s) − a(l, s)) / (t − l) without subtracting nearly equal numbers."""

    @abstractmethod
    def b_finite_difference(self, t: Tensor, l: Tensor, s: Tensor) -> Tensor:
        """Compute (b(t, s) − b(l, s)) / (t − l) without subtracting nearly equal numbers."""

    def solution(self, x: Tensor, output: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Compute f_θ(x, t, s) from x [B, ...], output = F_θ(x, t, s) [B, ...] and times [B]."""
        return per_sample(self.a(t, s), x) * x + per_sample(self.b(t, s), x) * output

    def velocity(self, output: Tensor) -> Tensor:
        """Compute v_θ(x, t) from output = F_θ(x, t, t)."""
        return self.velocity_scale * output


class Euler(Parameterization):
    """Euler parameterization a = 1, b = s − t: F_θ is the average velocity from t to s."""

    velocity_scale = 1.0

    def a(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.ones_like(t)

    def b(self, t: Tensor, s: Tensor) -> Tensor:
        return s - t

    def a_finite_difference(self, t: Tensor, l: Tensor, s: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def b_finite_difference(self, t: Tensor, l: Tensor, s: Tensor) -> Tensor:
        return -torch.ones_like(t)


class Trigonometric(Parameterization):
    """Trigonometric parameterization a = cos(π(s − t)/2), b = sin(π(s − t)/2)."""

    velocity_scale = math.pi / 2

    def a(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * (s - t))

    def b(self, t: Tensor, s: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (s - t))

    # With A = π(s − t)/2 and B = π(s − l)/2: cos A − cos B = −2 sin((A+B)/2) sin((A−B)/2), A − B = −π(t − l)/2,
    # and likewise sin A − sin B = 2 cos((A+B)/2) sin((A−B)/2). torch.sinc(x) is sin(πx)/(πx).

    def a_finite_difference(self, t: Tensor, l: Tensor, s: Tensor) -> Tensor:
        middle = math.pi / 2 * (s - (t + l) / 2)
        return math.pi / 2 * torch.sin(middle) * torch.sinc((t - l) / 4)

    def b_finite_difference(self, t: Tensor, l: Tensor, s: Tensor) -> Tensor:
        middle = math.pi / 2 * (s - (t + l) / 2)
        return -math.pi / 2 * torch.cos(middle) * torch.sinc((t - l) / 4)


PARAMETERIZATIONS = {"euler": Euler(), "trigonometric": Trigonometric()}
