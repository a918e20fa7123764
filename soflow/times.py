"""Training times: logit-normal draws and the triple s ≤ l < t (SoFlow, arXiv 2512.15657)."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_GAP = 1e-4
"""Lower bound of t, t − s and t − l: below it, the finite difference over t − l is rounding noise."""


def logit_normal(mean: float, std: float, normal: Tensor) -> Tensor:
    """Compute sigmoid(mean + std · normal), in (0, 1), from standard normal draws of any shape."""
    return torch.sigmoid(mean + std * normal)


def middle_time(t: Tensor, s: Tensor, ratio: float) -> Tensor:
    """Compute l = t + (s − t) r, between s and t, before the lower bound on t − l is applied."""
    return t + (s - t) * ratio


def consistency_times(t: Tensor, s: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (t, l, s) with s ≤ l ≤ t − 1e-4 from independent t and s in (0, 1) and the gap ratio r(k, K)."""
    t = t.clamp(min=SMALLEST_GAP)
    s = torch.minimum(s, t - SMALLEST_GAP)
    # At ratio 1, t + (s − t) may round to just below s.
    l = torch.maximum(s, torch.minimum(middle_time(t, s, ratio), t - SMALLEST_GAP))
    return t, l, s
