"""SoFlow's step written directly from the formulas, one network call per quantity: the baseline of step_speed.py.

It makes six calls where soflow/objectives/soflow.py makes three. Each share of the batch has a forward call, and a call
each for the velocities of the null label and of the label for all samples; the consistency share also has its target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.guidance import decay
from soflow.interpolants import per_sample
from soflow.objectives.base import Draws, Losses, mean_square
from soflow.objectives.soflow import SoFlow


class TwoPassSoFlow(SoFlow):
    """SoFlow's losses, computed one share of the batch and one velocity at a time."""

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        n_fm = draws.num_flow_matching
        flow_matching, consistency = (
            self._share(network, data[rows], labels[rows], draws, rows) for rows in (slice(0, n_fm), slice(n_fm, None))
        )
        return Losses(
            torch.cat([flow_matching[0], consistency[0]]),
            {"flow_matching": flow_matching[1].detach(), "consistency": consistency[1].detach()},
        )

    def _share(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws, rows: slice) -> tuple:
        """Compute the losses and errors of the flow-matching samples, which start at row 0, or of the others."""
        config, p = self.config, self.parameterization
        noise, t, l, s, drop = (value[rows] for value in (draws.noise, draws.t, draws.l, draws.s, draws.drop))
        network_labels, null = labels.masked_fill(drop, self.num_classes), torch.full_like(labels, self.num_classes)
        x_t, v_t = self.interpolant.x_t(data, noise, t), self.interpolant.v_t(data, noise, t)
        with torch.no_grad():
            v_null = p.velocity(network(x_t, t, t, null))
            v_label = p.velocity(network(x_t, t, t, labels))
            v_g = v_t + per_sample(decay(t, config.guidance_decay_time), v_t) * (config.guidance_strength - 1) * (
                v_t - v_null
            )
            v_mix = config.velocity_mix * v_g + (1 - config.velocity_mix) * v_label
            v_mix = torch.where(per_sample(drop, v_t), v_t, v_mix)
        if rows.start == 0:
            error = mean_square(p.velocity(network(x_t, t, t, network_labels)) - v_mix)
            weight = 1 / (abs(p.velocity_scale) * (error.detach() + config.weight_eps) ** config.weight_power)
            return weight * error, error
        output = network(x_t, t, s, network_labels)
        with torch.no_grad():
            x_l = x_t + per_sample(l - t, x_t) * v_mix
            output_l = network(x_l, l, s, network_labels)
            q = self.solution_finite_difference(output, output_l, x_t, v_mix, t, l, s)
        error = mean_square(q)
        weight = 1 / (error + config.weight_eps) ** config.weight_power
        return torch.sign(p.b(t, s)) * weight * (output * q).flatten(1).mean(1), error
