"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from soflow.training.config import TrainingConfig


def moving_average(network: nn.Module, training: TrainingConfig) -> AveragedModel:
    """Create the moving average of a network's weights, in the configured dtype and without gradient."""
    average = AveragedModel(network, multi_avg_fn=_update(training.ema_decay))
    average.module.to(getattr(torch, training.ema_dtype)).requires_grad_(False)
    return average


def _update(decay: float):
    """Return the update average ← decay · average + (1 − decay) · weights, computed in the average's dtype."""
    in_place = get_ema_multi_avg_fn(decay)

    def update(averages: list[Tensor], weights: list[Tensor], num_averaged: Tensor) -> None:
        in_place(averages, [weight.to(averages[0].dtype) for weight in weights], num_averaged)

    return update
