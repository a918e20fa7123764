"""Do two jumps land where one does? ‖f_θ(f_θ(x, t, l), l, s) − f_θ(x, t, s)‖ for s < l < t.

Solution maps of any ODE compose exactly, so the error is the map's own, whatever velocity it was trained for. The
figures are root mean squares per element in units of the data, over both ways to divide the jump below.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soflow.diagnostics.base import Probe, Subject, over_pairs
from soflow.times import middle_time

GAP_RATIOS = (0.25, 0.5)
"""(t − l) / (t − s): a quarter and half of the way."""


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """ "mean" over the grid of s < t and each pair's own, e.g. "t1.00_s0.00"; x is noised data at time t."""

    def error(probe: Probe, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        def solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return subject.objective.solution(subject.network, x, t, s, probe.labels)

        direct = solution(x, t, s)
        middles = [middle_time(t, s, ratio) for ratio in GAP_RATIOS]
        return torch.stack([solution(solution(x, t, l), l, s) - direct for l in middles], dim=1)

    return over_pairs(subject, "semigroup_error", error)
