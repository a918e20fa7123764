"""Noising schedules α_t, β_t: x_t = α_t x_0 + β_t x_1 (SoFlow, arXiv 2512.15657)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """View `value` [B] as [B, 1, ..., 1] to multiply `x` [B, ...].

    A plain [B] would broadcast against the last axis of x, silently if B equals the image width.
    """
    if value.shape != x.shape[:1]:
        raise ValueError(f"expected one value per sample, shape {tuple(x.shape[:1])}, got {tuple(value.shape)}")
    return value.view(-1, *[1] * (x.dim() - 1))


class Interpolant(ABC):
    """Noising schedule: α, β and their time derivatives, elementwise on times in [0, 1]."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def d_beta(self, t: Tensor) -> Tensor: ...

    def x_t(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Compute α_t x_0 + β_t x_1 from data and noise [B, ...] and t [B]."""
        return per_sample(self.alpha(t), data) * data + per_sample(self.beta(t), data) * noise

    def v_t(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Compute the conditional velocity α'_t x_0 + β'_t x_1 from data and noise [B, ...] and t [B]."""
        return per_sample(self.d_alpha(t), data) * data + per_sample(self.d_beta(t), data) * noise


class Linear(Interpolant):
    """Linear schedule α = 1 − t, β = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def beta(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_beta(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Trigonometric(Interpolant):
    """Trigonometric schedule α = cos(πt/2), β = sin(πt/2)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t)

    def beta(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def d_beta(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.cos(math.pi / 2 * t)


INTERPOLANTS = {"linear": Linear(), "trigonometric": Trigonometric()}
