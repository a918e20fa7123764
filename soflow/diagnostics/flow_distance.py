"""How far does one jump land from the flow it stands for? f_θ(x_1, 1, 0) against dx/dt = v_θ(x, t) from 1 to 0.

Both start from the same noise. The flow is integrated with Heun's method at two step sizes; their difference tells
whether the reference is exact enough: a distance near "reference_error" says nothing about the map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soflow.diagnostics.base import Probe, Subject, probes, root_mean_square
from soflow.sampling import heun

REFERENCE_NFE = 128
"""Network evaluations of the finer integration, two a step; the coarser one takes half as many."""


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """Root mean squares per element, in units of the data.

    "rms": of f_θ(x_1, 1, 0) minus the flow's end. "relative": the same over the RMS of the flow's end.
    "reference_error": the finer integration's own error, a third of its difference to the coarser one, as holds for a
    second-order method with half the step.
    """
    distances, ends, differences = [], [], []
    for probe in probes(subject, "flow_distance"):
        fine = flow(subject, probe, REFERENCE_NFE)
        jump = subject.objective.solution(subject.network, probe.noise, probe.times(1), probe.times(0), probe.labels)
        distances.append(jump - fine)
        ends.append(fine)
        differences.append(flow(subject, probe, REFERENCE_NFE // 2) - fine)
    rms = root_mean_square(distances)
    return {
        "rms": rms,
        "relative": rms / root_mean_square(ends),
        "reference_error": root_mean_square(differences) / 3,
    }


def flow(subject: Subject, probe: Probe, nfe: int) -> Tensor:
    """The state at t = 0 of the trajectories through the probe's noise at t = 1, [B, C, H, W]."""
    return heun(lambda x, t: subject.objective.velocity(subject.network, x, t, probe.labels), probe.noise, nfe)
