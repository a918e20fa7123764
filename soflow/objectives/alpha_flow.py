"""α-Flow: annealing from trajectory flow matching to MeanFlow over training (arXiv 2510.20771).

The paper's r, s, z_t are s, l, x_t here: s ≤ l ≤ t, and l = α s + (1 − α) t is the middle time of `Draws`.
u = F_θ(x_t, t, s) is MeanFlow's average velocity and x_l = x_t − (t − l) v_g. The paper's loss

    L_α = α⁻¹ ‖δ‖²,    δ = u − (α v_g + (1 − α) u_l),    u_l = F_θ(x_l, l, s) without gradient,

has the gradient 2 q ∂u/∂θ with q = δ / α. As (1 − α) / α = (l − s) / (t − l),

    q = u − (v_g − (l − s) (u − u_l) / (t − l)).

This is MeanFlow's difference between u and its target, with a finite difference in place of du/dt. The target is v_g at
α = 1 and approaches MeanFlow's target as α → 0. Both losses are ‖q‖² with a detached target. The only nearly equal
numbers that are subtracted are two network outputs. The division amplifies their rounding by up to (1 − α) / α: 199 at
α = 0.005.

Differences from the authors' public code:

- They weight a sample by α / (mean δ² + c); here the weight is 1 / (Σ q² + ε)^p as in MeanFlow. For p = 1 the gradients
  differ only in the constant added to mean q². Theirs is c / α², which suppresses all samples as α → 0. Here it does
  not depend on α, and the gradient converges to MeanFlow's.
- Their runs with guidance clamp the target to [−4, 4]; here it is not clamped.
- Samples with r = t have MeanFlow's times, and labels are dropped as in MeanFlow (docs/deviations.md).
- As in SoFlow, t − l is at least 1e-4, so the effective α exceeds the schedule where t − s is small.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from soflow.interpolants import per_sample
from soflow.objectives.base import Draws
from soflow.objectives.meanflow import MeanFlow
from soflow.profiling.phases import phase
from soflow.schedules import step_ratio
from soflow.times import consistency_times


class AlphaFlow(MeanFlow):
    """MeanFlow with du/dt replaced by a finite difference over the gap t − l = α (t − s) until α reaches 0."""

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        draws, config = super().draw(noise, progress, generator), self.config
        alpha = step_ratio(
            progress, config.anneal_start, config.anneal_end, config.anneal_temperature, config.alpha_clamp
        )
        if alpha == 0:
            return draws  # l = t
        t, l, s = consistency_times(draws.t, draws.s, alpha)
        l = s if alpha == 1 else l  # rounding may give l slightly above s
        t_fm, n_fm = draws.t, draws.num_flow_matching
        t, l, s = (torch.cat([t_fm[:n_fm], time[n_fm:]]) for time in (t, l, s))
        return replace(draws, t=t, l=l, s=s, gap_ratio=alpha)

    def in_one_call(self, draws: Draws) -> bool:
        return draws.gap_ratio == 0 and super().in_one_call(draws)

    def average_velocity(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        if draws.gap_ratio in (0, 1):
            return super().average_velocity(network, x_t, labels, draws)
        return self.network_output(network, x_t, labels, draws, draws.num_flow_matching, self.forward_precise)

    @torch.no_grad()
    def derivative(
        self, network: nn.Module, x_t: Tensor, v_g: Tensor, u: Tensor, labels: Tensor, draws: Draws
    ) -> Tensor:
        """Compute the replacement of du/dt in MeanFlow's target, (1 − α) (u − u_l) / (t − l), or du/dt itself at α = 0.

        Args:
            v_g: guided velocity [B, ...] of the Euler step from x_t to x_l.
            u: u(x_t, t, s, label) [B, ...] without gradient.
            labels: network input [B], after label drop.
        """
        if draws.gap_ratio == 0:
            return super().derivative(network, x_t, v_g, u, labels, draws)
        slope, rest = torch.zeros_like(x_t), slice(draws.num_flow_matching, None)
        if draws.gap_ratio == 1 or len(slope[rest]) == 0:
            return slope
        t, l, s = (time[rest] for time in (draws.t, draws.l, draws.s))
        with phase("target"), self.same_dropout(draws):
            x_l = x_t[rest] - per_sample(t - l, x_t[rest]) * v_g[rest]
            u_l = self.forward_precise(network, x_l, l, s, labels[rest])
        slope[rest] = per_sample((l - s) / ((t - s) * (t - l)), u_l) * (u[rest] - u_l)
        return slope
