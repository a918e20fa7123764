"""Common parts of the diagnostics: probe samples, pairs of times, and root mean squares (RMS) over them."""

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
"""Samples per network call, to limit memory."""

TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
PAIRS = {f"t{t:.2f}_s{s:.2f}": (t, s) for t in TIMES for s in TIMES if s < t}


@dataclass(frozen=True)
class Subject:
    """Trained model and data that a diagnostic examines."""

    objective: Objective
    network: nn.Module
    """Network with averaged weights, in evaluation mode."""
    data: Tensor
    """Encoded training samples [N, C, H, W]."""
    labels: Tensor
    """Labels [N], the network's input for these samples."""
    seed: int
    """Seed of the run; diagnostics draw from soflow.randomness.generator(device, seed, name)."""
    fid: Callable[..., float]
    """Function (steps, sampler, network) → FID as in the run's evaluation; default network: this one."""
    components: Components | None = None
    """Gaussian components of the data distribution, if known."""


@dataclass(frozen=True)
class Probe:
    """Batch of samples with noise."""

    data: Tensor
    noise: Tensor
    """Data and noise [B, C, H, W]."""
    labels: Tensor
    """Labels [B], the network's input."""

    def times(self, value: float) -> Tensor:
        """Return the same time for every sample, [B]."""
        return self.data.new_full((len(self.data),), value)


def probes(subject: Subject, name: str) -> list[Probe]:
    """Draw up to 512 of the subject's samples with noise, in chunks; the choice depends on seed and name only."""
    data = subject.data
    random = generator(data.device, subject.seed, "diagnostics", name)
    chosen = torch.randperm(len(data), generator=random, device=data.device)[:MAX_SAMPLES]
    noise = normal((len(chosen), *data.shape[1:]), random).to(data.dtype)
    return [
        Probe(data[rows], chunk_noise, subject.labels[rows])
        for rows, chunk_noise in zip(chosen.split(CHUNK), noise.split(CHUNK), strict=True)
    ]


def root_mean_square(errors: list[Tensor]) -> float:
    """Compute the RMS over the elements of all tensors [B, ...]."""
    return torch.cat([mean_square(error) for error in errors]).mean().sqrt().item()


def over_pairs(
    subject: Subject, name: str, error: Callable[[Probe, Tensor, Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """Compute the RMS error for every pair (t, s) at x_t, the data noised to time t, and the mean over pairs as "mean".

    Args:
        error: function (probe, x_t, t, s) → errors [B, ...].
    """
    chosen = probes(subject, name)
    figures = {}
    for key, pair in PAIRS.items():
        errors = []
        for probe in chosen:
            t, s = (probe.times(value) for value in pair)
            errors.append(error(probe, subject.objective.interpolant.x_t(probe.data, probe.noise, t), t, s))
        figures[key] = root_mean_square(errors)
    return {"mean": sum(figures.values()) / len(figures), **figures}
