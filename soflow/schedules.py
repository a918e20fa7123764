"""Schedules over training progress k/K: SoFlow's gap ratio r(k, K), α-Flow's step ratio α(k), ESC's chance of s = 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from soflow.plugins import PluginError, Registry

GapSchedule = Callable[[float, float, float], float]
"""Function (k/K, r_init, r_end) → gap ratio r."""


def _constant(progress: float, r_init: float, r_end: float) -> float:
    return r_end


def _linear(progress: float, r_init: float, r_end: float) -> float:
    return r_init + (r_end - r_init) * progress


def _cosine(progress: float, r_init: float, r_end: float) -> float:
    return r_end + (r_init - r_end) * (1 + math.cos(math.pi * progress)) / 2


def _exponential(progress: float, r_init: float, r_end: float) -> float:
    return r_init * (r_end / r_init) ** progress


def _plugin(reference: str, schedule: Any) -> GapSchedule:
    if not callable(schedule):
        raise PluginError(f"is {schedule!r:.60}, not a function of k/K, r_init and r_end")
    return schedule


GAP_SCHEDULES = Registry[GapSchedule](
    "schedules", {"constant": _constant, "linear": _linear, "cosine": _cosine, "exponential": _exponential}, _plugin
)


def gap_ratio(schedule: str, progress: float, r_init: float, r_end: float) -> float:
    """Compute the gap ratio r(k, K) = (t − l) / (t − s), in (0, 1].

    Args:
        schedule: a key of GAP_SCHEDULES: "constant", "linear", "cosine", "exponential" or a plug-in's reference.
        progress: k / K in [0, 1].

    Raises:
        ValueError: if the schedule is unknown, or a plug-in's ratio is outside (0, 1].
    """
    if schedule not in GAP_SCHEDULES:
        raise ValueError(f"gap_schedule = {schedule}: must be one of {', '.join(sorted(GAP_SCHEDULES))}")
    ratio = GAP_SCHEDULES[schedule](progress, r_init, r_end)
    if not 0 < ratio < 1 + 1e-9:  # the included ones may exceed 1 by rounding
        raise ValueError(f"objective.gap_schedule = {schedule}: r is {ratio:g} at k/K = {progress:g}, outside (0, 1]")
    return ratio


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


def zero_probability(progress: float, end: float) -> float:
    """Compute ESC's probability of s = 0 (arXiv 2512.11831): (2 / π) arccos(progress / end), and 0 from `end` on."""
    return 0.0 if progress >= end else 2 / math.pi * math.acos(progress / end)
