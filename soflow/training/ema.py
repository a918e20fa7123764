"""Moving averages of the weights that training keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from soflow.posthoc_ema import ema_decay, exponent, power_decay
from soflow.training.config import TrainingConfig

Tensors = tuple[Tensor, ...] | list[Tensor]


class MovingAverage(AveragedModel):
    """Moving average of a network's weights, without gradient.

    Args:
        decay_after: decay of the update that follows a number of others; the first update copies the weights.
        dtype: data type of the averages.
    """

    def __init__(self, network: nn.Module, decay_after: Callable[[int], float], dtype: torch.dtype = torch.float32):
        super().__init__(network, multi_avg_fn=self._update)
        self.decay_after = decay_after
        self.module.to(dtype).requires_grad_(False)

    def _update(self, averages: Tensors, weights: Tensors, num_averaged: Tensor | int) -> None:
        """Set average ← d_n · average + (1 − d_n) · weights, computed in the average's dtype."""
        # Not `num_averaged`, which is on the weights' device: reading it would wait for the device in every step.
        in_place = get_ema_multi_avg_fn(self.decay_after(int(self.n_averaged)))
        in_place(averages, [weight.to(averages[0].dtype) for weight in weights], num_averaged)


def evaluated_average(network: nn.Module, training: TrainingConfig) -> MovingAverage:
    """Start the average that is evaluated and sampled."""
    return MovingAverage(network, partial(ema_decay, decay=training.ema_decay), getattr(torch, training.ema_dtype))


def power_averages(network: nn.Module, training: TrainingConfig) -> dict[float, MovingAverage]:
    """Start the averages of which snapshots are saved, by their lengths; none without snapshots."""
    lengths = training.snapshot_lengths if training.snapshot_every else ()
    return {length: MovingAverage(network, partial(power_decay, gamma=exponent(length))) for length in lengths}
