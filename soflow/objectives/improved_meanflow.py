"""Improved MeanFlow: MeanFlow as a regression onto the velocity, the v-loss (iMF, arXiv 2512.02012).

The paper's r is s here. The MeanFlow identity, solved for the velocity, turns the average velocity u = F_θ(x_t, t, s)
into a prediction of the velocity, the compound function

    V_θ(x_t, t, s) = u + (t − s) sg[du/dt],    du/dt = v_θ(x_t, t) · ∂_x u + ∂_t u    (paper: equation 12),

which is regressed onto the conditional velocity v_t. The tangent is the network's marginal velocity, that is the
boundary value v_θ(x_t, t) = F_θ(x_t, t, t) without gradient. V_θ then depends on x_t alone, and the target on no
network, as in flow matching. MeanFlow's tangent is a single sample's v_t; du/dt amplifies its variance by t − s.

Two features of the paper are not implemented, because the backbones do not support them: the auxiliary head that
predicts v_θ, and guidance as a network input (a strength ω and a time interval drawn for each sample). Guidance is
MeanFlow's, fixed for a run. The paper's guided target v_t + (1 − 1/ω)(v_θ(label) − v_θ(null)) equals MeanFlow's with
guidance_omega = 1 and guidance_kappa = 1 − 1/ω. v_θ learns this target too, and so does the tangent. Where a label is
dropped, the tangent has the null label, too; in the authors' code it has the sample's (docs/deviations.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.objectives.base import Draws
from soflow.objectives.meanflow import MeanFlow
from soflow.profiling.phases import phase


class ImprovedMeanFlow(MeanFlow):
    """Adaptively weighted squared distance of V_θ to v_t (v_g for guided samples).

    MeanFlow minimizes the square of the same difference V_θ − v_g = u − (v_g − (t − s) sg[du/dt]). Only the tangent
    differs, so loss, gradient and errors are computed as in MeanFlow.
    """

    def tangent(self, network: nn.Module, x_t: Tensor, v_g: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Return v_θ(x_t, t) [B, ...] in place of v_g."""
        return self.marginal_velocity(network, x_t, labels, draws)

    @torch.no_grad()
    def marginal_velocity(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Compute v_θ(x_t, t) [B, ...], with zeros for the flow-matching samples.

        Args:
            labels: network input [B], after label drop.
        """
        n_fm = draws.num_flow_matching  # t − s = 0 for these samples, so their tangent has no effect
        v = torch.zeros_like(x_t)
        if n_fm < len(x_t):
            with phase("guidance"), self.same_dropout(draws):
                v[n_fm:] = self.velocity(network, x_t[n_fm:], draws.t[n_fm:], labels[n_fm:])
        return v
