"""Distance of the one-step jump f_θ(x_1, 1, 0) from the learned flow dx/dt = v_θ(x, t), integrated from 1 to 0.

Both start from the same noise. The flow is integrated with Heun's method at two step sizes. Their difference estimates
the integration error: a distance close to "reference_error" contains no information about the map.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soflow.diagnostics.base import Probe, Subject, probes, root_mean_square
from soflow.sampling import heun

REFERENCE_NFE = 128
"""NFE of the finer integration, two per step; the coarser integration takes half as many."""


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """Compute RMS distances per element, in units of the data.

    Returns:
        rms: RMS of f_θ(x_1, 1, 0) minus the end point of the flow.
        relative: `rms` divided by the RMS of the end point.
        reference_error: error of the finer integration, estimated for a second-order method as a third of the
            difference to the coarser one.
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
    """Integrate the trajectories through the probe's noise at t = 1 to t = 0, [B, C, H, W]."""
    return heun(lambda x, t: subject.objective.velocity(subject.network, x, t, probe.labels), probe.noise, nfe)
