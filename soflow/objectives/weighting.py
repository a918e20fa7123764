"""Weights of samples in a loss: the adaptive weight, and the λ-split of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def adaptive_weight(error: Tensor, config) -> Tensor:
    """Compute the adaptive weight (error + ε)^−p without gradient, for errors [B]."""
    return (error.detach() + config.weight_eps) ** -config.weight_power


def split_size(fraction: float, batch: int) -> int:
    """Compute ⌊λB⌋, robust to binary rounding of λ: 0.57 of 100 is 57."""
    return int(fraction * batch + 1e-9)


def split_weights(batch: int, leading: int, leading_share: float) -> Tensor:
    """Compute weights [B]: `leading_share` in equal parts for the first `leading` samples, the rest for the others.

    If one of the two groups is empty, its mean loss counts as 0, so the weights sum to less than 1.
    """
    weight = torch.empty(batch, dtype=torch.float64)
    weight[:leading] = leading_share / max(leading, 1)
    weight[leading:] = (1 - leading_share) / max(batch - leading, 1)
    return weight.float()
