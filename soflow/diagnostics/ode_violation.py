"""Does the learned map solve its own velocity's ODE? ‖∂_x f · v + ∂_t f‖ for f_θ(x, t, s) along v_θ(x, t).

Along a trajectory dx/dt = v(x, t) the exact solution map stays where it is, d f(x(t), t, s) / dt = 0: the condition
that consistency losses discretise (SoFlow, arXiv 2512.15657). The figures are absolute, root mean squares per element
in units of the data per unit of time: 0 for a map that agrees with its velocity, whether or not that fits the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soflow.autodiff import directional_derivative
from soflow.diagnostics.base import Probe, Subject, over_pairs


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """ "mean" over the grid of s < t and each pair's own, e.g. "t1.00_s0.00"; x is noised data at time t."""

    def violation(probe: Probe, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        objective, network, labels = subject.objective, subject.network, probe.labels
        v = objective.velocity(network, x, t, labels)
        _, derivative = directional_derivative(
            lambda x, t: objective.solution(network, x, t, s, labels), (x, t), (v, torch.ones_like(t))
        )
        return derivative

    return over_pairs(subject, "ode_violation", violation)
