"""Samplers: from noise at t = 1 to images at t = 0 with a fixed number of function evaluations (NFE)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from soflow.guidance import GuidedNetwork
from soflow.interpolants import Interpolant, per_sample
from soflow.objectives.base import Objective

Solution = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [B, ...], t [B], s [B]) → the state at s."""
Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], t [B]) → dx/dt."""


@dataclass(frozen=True)
class SamplingOptions:
    """Choices at inference besides sampler and number of steps."""

    times: tuple[float, ...] = ()
    """Times between 1 and 0, decreasing, of the samplers "renoise" and "compose"; default: equal steps."""
    temperature: float = 1.0
    """Factor of all noise."""
    guidance: float = 1.0
    """Strength w of classifier-free guidance; 1 is none."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Least and greatest t of guided network calls."""


PLAIN = SamplingOptions()


def even_times(nfe: int) -> tuple[float, ...]:
    """Return the times 1 − 1/n, 1 − 2/n, … between n equal steps."""
    return tuple(1 - i / nfe for i in range(1, nfe))


def renoise(
    solution: Solution, interpolant: Interpolant, noise: Tensor, times: Sequence[float], fresh: Iterator[Tensor]
) -> Tensor:
    """Sample with the SoFlow authors' sampler: jump to data; at each of the times, re-noise to it and jump again.

    Args:
        noise: x at t = 1, [B, ...].
        times: n − 1 for n NFE; none is the one-step sample f_θ(x_1, 1, 0). The authors' are `even_times`.
        fresh: yields standard normal tensors shaped like noise, one for each time.
    """
    zero = torch.zeros_like(noise[:, 0, 0, 0])
    x = solution(noise, zero + 1, zero)
    for time in times:
        x = interpolant.x_t(x, next(fresh), zero + time)
        x = solution(x, zero + time, zero)
    return x


def compose(solution: Solution, noise: Tensor, times: Sequence[float]) -> Tensor:
    """Compose f_θ(x, t_i, t_{i+1}) over 1, the times, and 0, deterministically; for flow matching, Euler's method."""
    x, zero = noise, torch.zeros_like(noise[:, 0, 0, 0])
    for t, s in pairwise((1.0, *times, 0.0)):
        x = solution(x, zero + t, zero + s)
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
    options: SamplingOptions = PLAIN,
) -> Tensor:
    """Generate samples [B, C, H, W], roughly in [−1, 1], from noise [B, C, H, W] and labels [B].

    Args:
        labels: classes; num_classes is the null label.
        nfe: number of steps; each is one function evaluation, or two with guidance.
        sampler: "renoise", "compose" or "heun".
        fresh: yields the standard normal tensors, shaped like noise, of "renoise".
    """
    if options.guidance != 1:
        network = GuidedNetwork(network, options.guidance, objective.num_classes, options.guidance_interval)
    if options.temperature != 1:
        noise, fresh = options.temperature * noise, (options.temperature * values for values in fresh)

    def solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return objective.solution(network, x, t, s, labels)

    times = options.times if len(options.times) == nfe - 1 else even_times(nfe)
    if sampler == "renoise":
        return renoise(solution, objective.interpolant, noise, times, fresh)
    if sampler == "compose":
        return compose(solution, noise, times)
    if sampler == "heun":
        return heun(lambda x, t: objective.velocity(network, x, t, labels), noise, nfe)
    raise ValueError(f"sampler = {sampler}: must be compose, heun or renoise")
