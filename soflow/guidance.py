"""Classifier-free guidance: the velocity target v_mix in training (SoFlow, arXiv 2512.15657), and at inference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.conditioning import with_null
from soflow.interpolants import per_sample

DECAY_RATE = 0.025
"""k in the decay of guidance. The paper gives no value; this one is from the authors' published code."""


def decay(t: Tensor, decay_time: float, rate: float = DECAY_RATE) -> Tensor:
    """Compute c(t) in [0, 1]: 1 up to T = decay_time, then a steep decay to 0 at t = 1 (0.38 at t = 0.81 for T = 0.8).

    c(t) = 1 − exp(−k d / (1 − d)), d = (1 − t) / (1 − T) clamped to [0, 1 − 1e-6]. T = 1 switches the decay off.
    """
    if decay_time >= 1:
        return torch.ones_like(t)
    d = ((1 - t) / (1 - decay_time)).clamp(0, 1 - 1e-6)
    return torch.where(t <= decay_time, 1.0, 1 - torch.exp(-rate * d / (1 - d)))


def mixed_velocity(
    v_t: Tensor,
    v_null: Tensor | float,
    v_label: Tensor | float,
    t: Tensor,
    strength: float,
    mix: float,
    decay_time: float,
) -> Tensor:
    """Compute v_mix = m (v_t + c(t)(w − 1)(v_t − v_θ(x_t, t, null))) + (1 − m) v_θ(x_t, t, label).

    Args:
        v_t: conditional velocity [B, ...].
        v_null, v_label: network velocities [B, ...] for the null label and for the sample's label; any where the
            weight is 0.
        t: times [B].
        strength, mix, decay_time: w ≥ 1, m in [0, 1], T in [0, 1].
    """
    excess = per_sample(decay(t, decay_time) * (strength - 1), v_t)
    guided = v_t + excess * (v_t - v_null)
    return mix * guided + (1 - mix) * v_label


class GuidedNetwork(nn.Module):
    """Network with inference-time guidance, F_θ(null) + w (F_θ(label) − F_θ(null)): two evaluations in one call.

    Args:
        strength: w ≥ 0; 1 is the network itself, 0 the network without labels.
        null: index of the null label.
        interval: least and greatest t of guided samples (arXiv 2404.07724); the others are the network's.
    """

    def __init__(self, network: nn.Module, strength: float, null: int, interval: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        self.network, self.strength, self.null, self.interval = network, strength, null, interval

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        low, high = self.interval
        if (low, high) != (0.0, 1.0):
            guided = (t >= low) & (t <= high)
            if not guided.any():
                return self.network(x, t, s, labels)
        else:
            guided = torch.ones_like(t, dtype=torch.bool)
        both = torch.cat([labels, with_null(labels, self.null)])
        of_label, of_null = self.network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([s, s]), both).chunk(2)
        strength = torch.ones_like(t).masked_fill(guided, self.strength)
        return of_null + per_sample(strength, x) * (of_label - of_null)
