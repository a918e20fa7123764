"""Exponential moving average (EMA) of the weights, whose length grows with a short run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from soflow.training.config import TrainingConfig

Tensors = tuple[Tensor, ...] | list[Tensor]


class MovingAverage(AveragedModel):
    """Moving average of a network's weights, in the configured dtype and without gradient."""

    def __init__(self, network: nn.Module, training: TrainingConfig):
        super().__init__(network, multi_avg_fn=self._update)
        self.decay = training.ema_decay
        self.module.to(getattr(torch, training.ema_dtype)).requires_grad_(False)

    def _update(self, averages: Tensors, weights: Tensors, num_averaged: Tensor | int) -> None:
        """Set average ← d_n · average + (1 − d_n) · weights, computed in the average's dtype."""
        # Not `num_averaged`, which is on the weights' device: reading it would wait for the device in every step.
        in_place = get_ema_multi_avg_fn(decay_after(int(self.n_averaged), self.decay))
        in_place(averages, [weight.to(averages[0].dtype) for weight in weights], num_averaged)


def decay_after(num_averaged: int, decay: float) -> float:
    """Return the decay of the update that follows n others: min(d, (1 + n) / (10 + n)).

    While a run is short, its average thus has a length of about a tenth of the updates so far, as with TensorFlow's
    `num_updates`, and the share of its first weights falls with n⁻⁹. The constant decay d = 0.99 would leave 12 % of
    the nearly random first weights in the average after 209 steps. Removing only these would not suffice: the rest of
    the average would still reach back to weights that are far from the present ones, and be much worse than they are.
    From n = (10 d − 1) / (1 − d) on, 890 updates at d = 0.99, the decay is d.
    """
    return min(decay, (1 + num_averaged) / (10 + num_averaged))
