"""Samplers: from noise at t = 1 to images at t = 0 with a fixed number of function evaluations (NFE)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from soflow.interpolants import Interpolant, per_sample
from soflow.objectives.base import Objective

Solution = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [B, ...], t [B], s [B]) → the state at s."""
Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], t [B]) → dx/dt."""


def renoise(solution: Solution, interpolant: Interpolant, noise: Tensor, nfe: int, fresh: Iterator[Tensor]) -> Tensor:
    """Sample with the SoFlow authors' n-NFE sampler: jump to data, re-noise to the next time t = 1 − 1/n, 1 − 2/n, ….

    Args:
        noise: x at t = 1, [B, ...].
        nfe: n ≥ 1; 1 is the one-step sample f_θ(x_1, 1, 0).
        fresh: yields n − 1 standard normal tensors shaped like noise.
    """
    zero = torch.zeros_like(noise[:, 0, 0, 0])
    x = solution(noise, zero + 1, zero)
    for i in range(1, nfe):
        t = zero + (1 - i / nfe)
        x = interpolant.x_t(x, next(fresh), t)
        x = solution(x, t, zero)
    return x


def compose(solution: Solution, noise: Tensor, nfe: int) -> Tensor:
    """Compose f_θ(x, t_i, t_{i+1}) over n equal steps, deterministically; for flow matching this is Euler's method."""
    x, zero = noise, torch.zeros_like(noise[:, 0, 0, 0])
    for i in range(nfe):
        x = solution(x, zero + (1 - i / nfe), zero + (1 - (i + 1) / nfe))
    return x


def heun(velocity: Velocity, noise: Tensor, nfe: int) -> Tensor:
    """Integrate with Heun's second-order method: n/2 equal steps of two evaluations each.

    Raises:
        ValueError: if nfe is odd.
    """
    if nfe % 2:
        raise ValueError(f"nfe = {nfe}: must be even for the heun sampler (two evaluations per step)")
    steps = nfe // 2
    x, zero = noise, torch.zeros_like(noise[:, 0, 0, 0])
    for i in range(steps):
        t, s = zero + (1 - i / steps), zero + (1 - (i + 1) / steps)
        first = velocity(x, t)
        second = velocity(x + per_sample(s - t, x) * first, s)
        x = x + per_sample(s - t, x) * (first + second) / 2
    return x


@torch.no_grad()
def sample(
    objective: Objective,
    network: nn.Module,
    noise: Tensor,
    labels: Tensor,
    nfe: int,
    sampler: str,
    fresh: Iterator[Tensor],
) -> Tensor:
    """Generate samples [B, C, H, W], roughly in [−1, 1], from noise [B, C, H, W] and labels [B].

    Args:
        labels: classes; num_classes is the null label.
        nfe: number of function evaluations.
        sampler: "renoise", "compose" or "heun".
        fresh: yields the standard normal tensors, shaped like noise, of "renoise".
    """

    def solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return objective.solution(network, x, t, s, labels)

    if sampler == "renoise":
        return renoise(solution, objective.interpolant, noise, nfe, fresh)
    if sampler == "compose":
        return compose(solution, noise, nfe)
    if sampler == "heun":
        return heun(lambda x, t: objective.velocity(network, x, t, labels), noise, nfe)
    raise ValueError(f"sampler = {sampler}: must be compose, heun or renoise")
