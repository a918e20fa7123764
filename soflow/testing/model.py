"""The model that checks run on: network and objective with a batch of random data."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from soflow import data
from soflow.config import RunConfig
from soflow.objectives.base import Draws, Losses, Objective, normal
from soflow.training.build import build_network, build_objective
from soflow.training.teacher import attach_teacher

CPU = torch.device("cpu")
BATCH = 16
ROUNDING = 1e-9
"""Largest relative difference of two float64 computations of the same value."""
STEP = 1e-5
FINITE_DIFFERENCE = 1e-4
"""Largest relative error of a central difference with STEP in float64, whose own error is of order 1e-10 to 1e-6."""
DISTURBANCE = 0.05
"""Standard deviation of the change of new weights, many of which may be zero."""


@dataclass(frozen=True)
class Model:
    """Network and objective with a batch."""

    objective: Objective
    network: nn.Module
    data: Tensor
    """Noised data [B, C, H, W]."""
    t: Tensor
    s: Tensor
    labels: Tensor
    draws: Draws

    def call(self, rows: slice = slice(None)) -> Tensor:
        return self.network(self.data[rows], self.t[rows], self.s[rows], self.labels[rows])

    def losses(self, draws: Draws | None = None, rows: slice = slice(None)) -> Losses:
        return self.objective.losses(self.network, self.data[rows], self.labels[rows], draws or self.draws)

    def gradients(self, draws: Draws, rows: slice = slice(None)) -> list[Tensor]:
        """Compute the gradient of the weighted loss by every weight, flat; zero for a weight that is not used."""
        loss = (draws.weight * self.losses(draws, rows).loss).sum()
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        return [gradient.flatten() for gradient in torch.autograd.grad(loss, weights, materialize_grads=True)]


def model_of(config: RunConfig, dtype: torch.dtype = torch.float64) -> Model:
    source, draws = data.open_source(config.dataset), draws_of(config)
    random = torch.Generator().manual_seed(0)
    network = new_network(config).to(dtype).eval()
    for weight in network.parameters():
        weight.data.add_(DISTURBANCE * torch.randn(weight.shape, generator=random))
    in_dtype: dict[str, Any] = {
        field.name: value.to(dtype)
        for field in fields(draws)
        if isinstance(value := getattr(draws, field.name), Tensor) and value.is_floating_point()
    }
    samples = torch.rand((BATCH, *config.dataset.sample_shape), generator=random, dtype=dtype) * 2 - 1
    labels = torch.randint(source.num_classes, (BATCH,), generator=random)
    if not config.dataset.conditional:
        labels = torch.full_like(labels, source.num_classes)
    t = torch.linspace(0.3, 1, BATCH, dtype=dtype)
    objective = build_objective(config, source.num_classes)
    attach_teacher(objective, config, CPU)
    if objective.uses_batch:
        in_dtype["batch"] = samples, labels
    return Model(objective, network, samples, t, t / 2, labels, replace(draws, **in_dtype))


def new_network(config: RunConfig) -> nn.Module:
    return build_network(config, data.open_source(config.dataset).num_classes)


def draws_of(config: RunConfig) -> Draws:
    random = torch.Generator().manual_seed(0)
    objective = build_objective(config, data.open_source(config.dataset).num_classes)
    return objective.draw(normal((BATCH, *config.dataset.sample_shape), random), 0.5, random)


def near(value: Tensor, expected: Tensor, tolerance: float, law: str) -> None:
    error = ((value - expected).abs().max() / expected.abs().max()).item()
    assert error <= tolerance, f"{law}; the relative difference is {error:.2g}, allowed are {tolerance:g}"
