"""SoFlow's step as it follows from the formulas, one network call per quantity: what our own step is measured against.

It makes six calls where soflow/objectives/soflow.py makes three: each part of the batch has its forward, and a call
each for the null label's and the label's velocity, for all its samples; the consistency part has its target besides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.guidance import decay
from soflow.interpolants import per_sample
from soflow.objectives.base import Draws, Losses, mean_square
from soflow.objectives.soflow import SoFlow


class TwoPassSoFlow(SoFlow):
    """The same losses, computed part by part and velocity by velocity."""

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        known = draws.num_flow_matching
        first, rest = (
            self._part(network, data[own], labels[own], draws, own) for own in (slice(0, known), slice(known, None))
        )
        return Losses(
            torch.cat([first[0], rest[0]]), {"flow_matching": first[1].detach(), "consistency": rest[1].detach()}
        )

    def _part(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws, own: slice) -> tuple:
        config, p = self.config, self.parameterization
        noise, t, l, s, drop = (value[own] for value in (draws.noise, draws.t, draws.l, draws.s, draws.drop))
        given, null = labels.masked_fill(drop, self.num_classes), torch.full_like(labels, self.num_classes)
        x_t, v_t = self.interpolant.x_t(data, noise, t), self.interpolant.v_t(data, noise, t)
        with torch.no_grad():
            v_null = p.velocity(network(x_t, t, t, null))
            v_label = p.velocity(network(x_t, t, t, labels))
            v_g = v_t + per_sample(decay(t, config.guidance_decay_time), v_t) * (config.guidance_strength - 1) * (
                v_t - v_null
            )
            v_mix = config.velocity_mix * v_g + (1 - config.velocity_mix) * v_label
            v_mix = torch.where(per_sample(drop, v_t), v_t, v_mix)
        if own.start == 0:
            error = mean_square(p.velocity(network(x_t, t, t, given)) - v_mix)
            weight = 1 / (abs(p.velocity_scale) * (error.detach() + config.weight_eps) ** config.weight_power)
            return weight * error, error
        output = network(x_t, t, s, given)
        with torch.no_grad():
            x_l = x_t + per_sample(l - t, x_t) * v_mix
            output_l = network(x_l, l, s, given)
            q = self.solution_finite_difference(output, output_l, x_t, v_mix, t, l, s)
        error = mean_square(q)
        weight = 1 / (error + config.weight_eps) ** config.weight_power
        return torch.sign(p.b(t, s)) * weight * (output * q).flatten(1).mean(1), error
