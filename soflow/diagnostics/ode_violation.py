"""ODE residual of the learned map: ‖∂_x f · v + ∂_t f‖ for f_θ(x, t, s) along v_θ(x, t).

The exact solution map is constant along a trajectory dx/dt = v(x, t), that is d f(x(t), t, s) / dt = 0. Consistency
losses discretize this condition (SoFlow, arXiv 2512.15657). Values are RMS per element, in units of the data per unit
of time. They are 0 for a map that is consistent with the learned velocity, even if that does not fit the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soflow.autodiff import directional_derivative
from soflow.diagnostics.base import Probe, Subject, over_pairs


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """Compute the RMS residual for each pair s < t, e.g. "t1.00_s0.00", and their "mean", at noised data x."""

    def violation(probe: Probe, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        objective, network, labels = subject.objective, subject.network, probe.labels
        v = objective.velocity(network, x, t, labels)
        _, derivative = directional_derivative(
            lambda x, t: objective.solution(network, x, t, s, labels), (x, t), (v, torch.ones_like(t))
        )
        return derivative

    return over_pairs(subject, "ode_violation", violation)
