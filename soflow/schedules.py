"""Schedules over training progress k/K: SoFlow's gap ratio r(k, K) and α-Flow's step ratio α(k)."""

from __future__ import annotations

import math


def gap_ratio(schedule: str, progress: float, r_init: float, r_end: float) -> float:
    """Compute the gap ratio r(k, K) = (t − l) / (t − s), in (0, 1].

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


def step_ratio(progress: float, start: float, end: float, temperature: float, clamp: float) -> float:
    """Compute α(k) = 1 − sigmoid(γ ((k − k_s) / (k_e − k_s) − 1/2)), in [0, 1]; 1 before k_s, 0 from k_e on.

    Values within η of 0 or 1 are set to exactly 0 or 1.

    Args:
        progress: k / K in [0, 1].
        start, end: k_s / K and k_e / K.
        temperature: γ > 0.
        clamp: η in (0, 1/2).
    """
    if progress < start:
        return 1.0
    if progress >= end:
        return 0.0
    alpha = 1 / (1 + math.exp(temperature * ((progress - start) / (end - start) - 0.5)))
    if alpha < clamp:
        return 0.0
    return 1.0 if alpha > 1 - clamp else alpha
