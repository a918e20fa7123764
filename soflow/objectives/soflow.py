"""SoFlow: flow matching plus solution consistency (arXiv 2512.15657)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.interpolants import per_sample
from soflow.objectives.base import Draws, Losses, Objective, mean_square, normal
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.weighting import adaptive_weight, part_size, part_weights
from soflow.profiling.phases import phase
from soflow.schedules import gap_ratio
from soflow.times import consistency_times, logit_normal


class SoFlow(FlowMatching):
    """λ · flow matching + (1 − λ) · consistency; the first ⌊λB⌋ samples of a batch form the flow-matching part."""

    default_nfe = Objective.default_nfe
    default_sampler = Objective.default_sampler

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        config, batch = self.config, len(noise)
        known = part_size(config.flow_matching_fraction, batch)
        t_velocity, s, t = (
            logit_normal(mean, std, normal(batch, generator))
            for mean, std in zip(config.time_mean, config.time_std, strict=True)
        )
        ratio = gap_ratio(config.gap_schedule, progress, config.r_init, config.r_end)
        t, l, s = consistency_times(t, s, ratio)
        t, l, s = (torch.cat([t_velocity[:known], time[known:]]) for time in (t, l, s))
        weight = part_weights(batch, known, config.flow_matching_fraction).to(t.device)
        return Draws(noise, t, l, s, self.draw_drop(batch, generator), weight, known, ratio)

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        known, given = draws.num_flow_matching, self.given_labels(labels, draws.drop)
        x_t = self.interpolant.x_t(data, draws.noise, draws.t)
        v_t = self.interpolant.v_t(data, draws.noise, draws.t)
        output = self.output_of_parts(network, x_t, given, draws, known, self.forward_precise)
        target = self.target_velocity(network, x_t, v_t, output.detach(), labels, draws)
        velocity_loss, velocity_error = self.flow_matching_loss(output[:known], target[:known])
        with self.same_dropout(draws):
            consistency_loss, consistency_error = self.consistency_loss(
                network,
                output[known:],
                x_t[known:],
                target[known:],
                given[known:],
                draws.t[known:],
                draws.l[known:],
                draws.s[known:],
            )
        return Losses(
            torch.cat([velocity_loss, consistency_loss]),
            {"flow_matching": velocity_error, "consistency": consistency_error},
        )

    def consistency_loss(
        self,
        network: nn.Module,
        output: Tensor,
        x_t: Tensor,
        v_mix: Tensor,
        labels: Tensor,
        t: Tensor,
        l: Tensor,
        s: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """A surrogate loss and mean q², each [B], with q = (f_θ(x_t, t, s) − f_θ⁻(x_l, l, s)) / (t − l).

        The surrogate sign(b) mean(F_θ q) / (mean q² + ε)^p has the gradient of the weighted ‖f_θ − f_θ⁻‖², free of
        the division by t − l; its value means nothing, mean q² is the error to watch.

        Args:
            output: F_θ(x_t, t, s, label) [B, ...] with gradient.
            x_t, v_mix: noised samples and their target velocities [B, ...].
            labels: as the network sees them [B].
            t, l, s: times [B], s ≤ l < t.
        """
        if len(x_t) == 0:  # λ = 1, or no sample of this part on this worker
            return output.flatten(1).sum(1), output.new_zeros(0)
        with torch.no_grad(), phase("target"):
            x_l = x_t + per_sample(l - t, x_t) * v_mix
            output_l = self.forward_precise(network, x_l, l, s, labels)
        q = self.solution_quotient(output.detach(), output_l, x_t, v_mix, t, l, s)
        error = mean_square(q)
        sign = torch.sign(self.parameterization.b(t, s))
        loss = sign * adaptive_weight(error, self.config) * (output * q).flatten(1).mean(1)
        return loss, error

    def solution_quotient(
        self, output_t: Tensor, output_l: Tensor, x_t: Tensor, v_mix: Tensor, t: Tensor, l: Tensor, s: Tensor
    ) -> Tensor:
        """q [B, ...], with x_l = x_t + (l − t) v_mix put in and the terms that cancel removed.

        Subtracting the two solutions as they stand would amplify the rounding of x_t by 1/(t − l) on top of that of the
        two outputs, which is amplified by (t − s)/(t − l) in any case (docs/numerics.md).
        """
        p = self.parameterization
        state = per_sample(p.a_quotient(t, l, s), x_t) * x_t + per_sample(p.a(l, s), x_t) * v_mix
        change = per_sample(p.b(t, s) / (t - l), x_t) * (output_t - output_l)
        return state + per_sample(p.b_quotient(t, l, s), x_t) * output_l + change

    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.parameterization.solution(x, self.forward_precise(network, x, t, s, labels), t, s)
