"""What the diagnostics share: the samples they look at, the pairs of times, and root mean squares over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soflow.data.gaussians import Components
from soflow.objectives.base import Objective, mean_square, normal
from soflow.randomness import generator

MAX_SAMPLES = 512
CHUNK = 256
"""Samples per network call, which bounds memory."""

TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRS = {f"t{t:.2f}_s{s:.2f}": (t, s) for t in TIMES for s in TIMES if s < t}


@dataclass(frozen=True)
class Subject:
    """What a diagnostic looks at."""

    objective: Objective
    network: nn.Module
    """With averaged weights, in evaluation mode."""
    data: Tensor
    """Training samples as the network sees them [N, C, H, W]."""
    labels: Tensor
    """Their labels as the network sees them [N]."""
    seed: int
    """Of the run; diagnostics draw from soflow.randomness.generator(device, seed, name)."""
    fid: Callable[..., float]
    """FID of a number of steps with a sampler, as the run's own evaluation measures it; with another network, if that
    is given as a third argument."""
    components: Components | None = None
    """What the data is drawn from, where that is known."""


@dataclass(frozen=True)
class Probe:
    """Some samples to look at."""

    data: Tensor
    noise: Tensor
    """[B, C, H, W]."""
    labels: Tensor
    """As the network sees them."""

    def times(self, value: float) -> Tensor:
        """The same time for every sample, [B]."""
        return self.data.new_full((len(self.data),), value)


def probes(subject: Subject, name: str) -> list[Probe]:
    """Up to 512 of the subject's samples with noise, in chunks; which ones depends on its seed and the name alone."""
    data = subject.data
    random = generator(data.device, subject.seed, "diagnostics", name)
    chosen = torch.randperm(len(data), generator=random, device=data.device)[:MAX_SAMPLES]
    noise = normal((len(chosen), *data.shape[1:]), random).to(data.dtype)
    return [
        Probe(data[own], own_noise, subject.labels[own])
        for own, own_noise in zip(chosen.split(CHUNK), noise.split(CHUNK), strict=True)
    ]


def root_mean_square(errors: list[Tensor]) -> float:
    """Over the elements of all tensors [B, ...]."""
    return torch.cat([mean_square(error) for error in errors]).mean().sqrt().item()


def over_pairs(
    subject: Subject, name: str, error: Callable[[Probe, Tensor, Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """The error's RMS for every pair of times, and the mean of these as "mean"; x_t is data noised to time t."""
    chosen = probes(subject, name)
    figures = {}
    for key, pair in PAIRS.items():
        errors = []
        for probe in chosen:
            t, s = (probe.times(value) for value in pair)
            errors.append(error(probe, subject.objective.interpolant.x_t(probe.data, probe.noise, t), t, s))
        figures[key] = root_mean_square(errors)
    return {"mean": sum(figures.values()) / len(figures), **figures}
