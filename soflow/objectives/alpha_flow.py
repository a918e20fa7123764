"""α-Flow: from trajectory flow matching to MeanFlow, annealed over training (arXiv 2510.20771).

The paper's r, s, z_t are written s, l, x_t here: s ≤ l ≤ t, and l = α s + (1 − α) t is the middle time of `Draws`.
u = F_θ(x_t, t, s) is MeanFlow's average velocity and x_l = x_t − (t − l) v_g. The paper's loss

    L_α = α⁻¹ ‖δ‖²,    δ = u − (α v_g + (1 − α) u_l),    u_l = F_θ(x_l, l, s) without gradient,

has the gradient 2 q ∂u/∂θ with q = δ / α. As (1 − α) / α = (l − s) / (t − l),

    q = u − (v_g − (l − s) (u − u_l) / (t − l)),

which is MeanFlow's difference between u and its target, with a finite difference in place of du/dt: at α = 1 the target
is v_g, towards α = 0 it becomes MeanFlow's. Both losses are then ‖q‖² with the target held fixed. The only nearly equal
numbers that are subtracted are two network outputs; the division amplifies their rounding up to (1 − α) / α times, 199
at α = 0.005.

Differences from the authors' public code: it weights a sample by α / (mean δ² + c), here by 1 / (Σ q² + ε)^p as in
MeanFlow. For p = 1 the gradients differ by the floor alone, c / α² beside mean q² in theirs, which fades samples out as
α falls to 0; here the floor does not depend on α, and the gradient goes over into MeanFlow's. Their runs with guidance
also clamp the target to [−4, 4], which is left out. As in SoFlow, t − l is never below 1e-4, so that α is larger than
scheduled where t − s is small.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from soflow.interpolants import per_sample
from soflow.objectives.base import Draws
from soflow.objectives.meanflow import MeanFlow
from soflow.times import consistency_times


class AlphaFlow(MeanFlow):
    """MeanFlow whose du/dt is, until the schedule reaches α = 0, a difference over the gap t − l = α (t − s)."""

    def draw(self, shape: tuple[int, ...], progress: float, generator: torch.Generator) -> Draws:
        draws, config = super().draw(shape, progress, generator), self.config
        alpha = step_ratio(
            progress, config.anneal_start, config.anneal_end, config.anneal_temperature, config.alpha_clamp
        )
        if alpha == 0:
            return draws  # l = t
        t, l, s = consistency_times(draws.t, draws.s, alpha)
        l = s if alpha == 1 else l  # which rounding may miss
        equal, known = draws.t, draws.num_flow_matching
        t, l, s = (torch.cat([equal[:known], time[known:]]) for time in (t, l, s))
        return replace(draws, t=t, l=l, s=s)

    def average_velocity(
        self, network: nn.Module, x_t: Tensor, v_g: Tensor, labels: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """u with gradient and, without, what stands for du/dt in MeanFlow's target; each [B, ...].

        The latter is (1 − α) (u − u_l) / (t − l) with α = (t − l) / (t − s), and du/dt itself where l = t.

        Args:
            v_g: guided velocity [B, ...], along which x_l is reached.
            labels: as the network sees them [B].
        """
        known = draws.num_flow_matching
        rest = slice(known, None)
        t, l, s = (time[rest] for time in (draws.t, draws.l, draws.s))
        # The limits need fewer calls; all samples have the same α, and one look at the device tells both.
        at_zero, at_one = torch.stack([(l == t).all(), (l == s).all()]).tolist()
        if at_zero:
            return super().average_velocity(network, x_t, v_g, labels, draws)
        slope = torch.zeros_like(x_t)
        if at_one:
            return self.output(network, x_t, labels, draws, known if self.dropout else 0), slope
        u = self.precise_output(network, x_t, labels, draws)
        with torch.no_grad(), self.same_dropout(draws):
            x_l = x_t[rest] - per_sample(t - l, x_t[rest]) * v_g[rest]
            u_l = self.call_precisely(network, x_l, l, s, labels[rest])
            slope[rest] = per_sample((l - s) / ((t - s) * (t - l)), u_l) * (u[rest] - u_l)
        return u, slope

    def precise_output(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """u = F_θ(x_t, t, s, label) [B, ...], in the quotient's precision and with its dropout masks where s < t."""
        known, t, s = draws.num_flow_matching, draws.t, draws.s
        if known == 0 or (self.call.name == self.call_precisely.name and not self.dropout):
            with self.same_dropout(draws):
                return self.call_precisely(network, x_t, t, s, labels)
        velocity = self.call(network, x_t[:known], t[:known], s[:known], labels[:known])
        with self.same_dropout(draws):
            average = self.call_precisely(network, x_t[known:], t[known:], s[known:], labels[known:])
        return torch.cat([velocity, average])


def step_ratio(progress: float, start: float, end: float, temperature: float, clamp: float) -> float:
    """α(k) in [0, 1]: 1 − sigmoid(γ ((k − k_s) / (k_e − k_s) − 1/2)), 1 before k_s, 0 from k_e on.

    Within η of 0 or 1 it is 0 or 1.

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
