"""Training times: logit-normal draws, the gap schedule r(k, K) and the triple s ≤ l < t (SoFlow, arXiv 2512.15657)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST_GAP = 1e-4
"""t, t − s and t − l are never smaller: below it the finite difference over t − l is rounding noise."""


def logit_normal(mean: float, std: float, normal: Tensor) -> Tensor:
    """sigmoid(mean + std · normal), in (0, 1), for standard normal draws of any shape."""
    return torch.sigmoid(mean + std * normal)


def gap_ratio(schedule: str, progress: float, r_init: float, r_end: float) -> float:
    """r(k, K) in (0, 1]: the gap t − l as a share of t − s.

    Args:
        schedule: "constant", "linear", "cosine" or "exponential".
        progress: k / K in [0, 1].
    """
    if schedule == "constant":
        return r_end
    if schedule == "linear":
        return r_init + (r_end - r_init) * progress
    if schedule == "cosine":
        return r_end + (r_init - r_end) * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "exponential":
        return r_init * (r_end / r_init) ** progress
    raise ValueError(f"gap_schedule = {schedule}: must be one of constant, cosine, exponential, linear")


def middle_time(t: Tensor, s: Tensor, ratio: float) -> Tensor:
    """l = t + (s − t) r, between s and t, before it is kept off t."""
    return t + (s - t) * ratio


def consistency_times(t: Tensor, s: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """(t, l, s) with s ≤ l ≤ t − 1e-4, from free draws of t and s in (0, 1) and the gap ratio r(k, K)."""
    t = t.clamp(min=SMALLEST_GAP)
    s = torch.minimum(s, t - SMALLEST_GAP)
    # At ratio 1, t + (s − t) may round to just below s.
    l = torch.maximum(s, torch.minimum(middle_time(t, s, ratio), t - SMALLEST_GAP))
    return t, l, s
