"""Improved MeanFlow: MeanFlow as a regression onto the velocity, the v-loss (iMF, arXiv 2512.02012).

The paper's r is written s here. The MeanFlow identity, solved for the velocity, makes of the average velocity
u = F_θ(x_t, t, s) a prediction of the velocity, the compound function

    V_θ(x_t, t, s) = u + (t − s) sg[du/dt],    du/dt = v_θ(x_t, t) · ∂_x u + ∂_t u    (paper: equation 12),

which is regressed onto the conditional velocity v_t. The tangent is the network's own marginal velocity, its boundary
value v_θ(x_t, t) = F_θ(x_t, t, t) without gradient: V_θ then depends on x_t alone and the target on no network, as in
flow matching. MeanFlow's tangent is its target, one sample's v_t, whose scatter du/dt multiplies by t − s.

Two parts of the paper are left out because the backbones lack what they need: the auxiliary head that predicts v_θ,
and guidance as an input, where the network is told a strength ω and an interval of times that are drawn anew for every
sample. Guidance is MeanFlow's here, fixed for a run. The paper's guided target v_t + (1 − 1/ω)(v_θ(label) − v_θ(null))
is MeanFlow's with guidance_omega = 1 and guidance_kappa = 1 − 1/ω; v_θ, and with it the tangent, learns it too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.objectives.base import Draws
from soflow.objectives.meanflow import MeanFlow
from soflow.profiling.phases import phase


class ImprovedMeanFlow(MeanFlow):
    """Squared distance of V_θ to v_t (v_g where guided), adaptively weighted.

    V_θ − v_g = u − (v_g − (t − s) sg[du/dt]) is the difference whose square MeanFlow minimises: with the other tangent
    MeanFlow's loss, gradient and errors are those of the v-loss.
    """

    def tangent(self, network: nn.Module, x_t: Tensor, v_g: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """v_θ(x_t, t) in place of v_g, [B, ...]."""
        return self.marginal_velocity(network, x_t, labels, draws)

    @torch.no_grad()
    def marginal_velocity(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """v_θ(x_t, t) [B, ...] for labels as the network sees them [B]; zeros where it would be multiplied by 0."""
        known = draws.num_flow_matching  # t − s is 0 in this part
        v = torch.zeros_like(x_t)
        if known < len(x_t):
            with phase("guidance"), self.same_dropout(draws):
                v[known:] = self.velocity(network, x_t[known:], draws.t[known:], labels[known:])
        return v
