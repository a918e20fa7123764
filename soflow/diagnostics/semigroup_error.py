"""Semigroup error of the learned map: ‖f_θ(f_θ(x, t, l), l, s) − f_θ(x, t, s)‖ for s < l < t.

The solution map of any ODE composes exactly, so this error is independent of the velocity that the map was trained for.
Values are RMS per element, in units of the data, over both intermediate times below.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soflow.diagnostics.base import Probe, Subject, over_pairs
from soflow.times import middle_time

GAP_RATIOS = (0.25, 0.5)
"""Intermediate times l as (t − l) / (t − s)."""


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """Compute the RMS error for each pair s < t, e.g. "t1.00_s0.00", and their "mean", at noised data x."""

    def error(probe: Probe, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        def solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return subject.objective.solution(subject.network, x, t, s, probe.labels)

        direct = solution(x, t, s)
        middles = [middle_time(t, s, ratio) for ratio in GAP_RATIOS]
        return torch.stack([solution(solution(x, t, l), l, s) - direct for l in middles], dim=1)

    return over_pairs(subject, "semigroup_error", error)
