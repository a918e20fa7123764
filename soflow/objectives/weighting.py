"""Weights of samples in a loss: the adaptive weight, and the shares of the two parts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def adaptive_weight(error: Tensor, config) -> Tensor:
    """(error + ε)^−p without gradient, for errors [B]."""
    return (error.detach() + config.weight_eps) ** -config.weight_power


def part_size(fraction: float, batch: int) -> int:
    """⌊λB⌋, for a λ that binary fractions may put just below: 0.57 of 100 is 57."""
    return int(fraction * batch + 1e-9)


def part_weights(batch: int, leading: int, leading_share: float) -> Tensor:
    """[B] weights: the first `leading` samples share `leading_share`, the others the rest, each part evenly.

    An empty part's share is lost, as its mean is taken for 0.
    """
    weight = torch.empty(batch, dtype=torch.float64)
    weight[:leading] = leading_share / max(leading, 1)
    weight[leading:] = (1 - leading_share) / max(batch - leading, 1)
    return weight.float()
