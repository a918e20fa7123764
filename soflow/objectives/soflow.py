"""SoFlow: flow matching plus solution consistency (arXiv 2512.15657)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.interpolants import per_sample
from soflow.objectives.base import Draws, Losses, Objective, mean_square, normal
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.weighting import adaptive_weight, split_size, split_weights
from soflow.profiling.phases import phase
from soflow.schedules import gap_ratio
from soflow.times import consistency_times, logit_normal


class SoFlow(FlowMatching):
    """λ · flow matching + (1 − λ) · consistency; the first ⌊λB⌋ samples of a batch are flow-matching samples."""

    default_nfe = Objective.default_nfe
    default_sampler = Objective.default_sampler

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        config, batch = self.config, len(noise)
        n_fm = split_size(config.flow_matching_fraction, batch)
        t_fm, s, t = (
            logit_normal(mean, std, normal(batch, generator))
            for mean, std in zip(config.time_mean, config.time_std, strict=True)
        )
        ratio = gap_ratio(config.gap_schedule, progress, config.r_init, config.r_end)
        t, l, s = consistency_times(t, s, ratio)
        t, l, s = (torch.cat([t_fm[:n_fm], time[n_fm:]]) for time in (t, l, s))
        weight = split_weights(batch, n_fm, config.flow_matching_fraction).to(t.device)
        return Draws(noise, t, l, s, self.draw_drop(batch, generator), weight, n_fm, ratio)

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        n_fm, network_labels = draws.num_flow_matching, self.drop_labels(labels, draws.drop)
        x_t = self.interpolant.x_t(data, draws.noise, draws.t)
        v_t = self.interpolant.v_t(data, draws.noise, draws.t)
        output = self.network_output(network, x_t, network_labels, draws, n_fm, self.forward_precise)
        target = self.target_velocity(network, x_t, v_t, output.detach(), labels, draws)
        velocity_loss, velocity_error = self.flow_matching_loss(output[:n_fm], target[:n_fm])
        with self.same_dropout(draws):
            consistency_loss, consistency_error = self.consistency_loss(
                network,
                output[n_fm:],
                x_t[n_fm:],
                target[n_fm:],
                network_labels[n_fm:],
                draws.t[n_fm:],
                draws.l[n_fm:],
                draws.s[n_fm:],
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
        """Compute a surrogate loss and mean q², each [B], with q = (f_θ(x_t, t, s) − f_θ⁻(x_l, l, s)) / (t − l).

        The surrogate sign(b) mean(F_θ q) / (mean q² + ε)^p has the gradient of the weighted ‖f_θ − f_θ⁻‖² without the
        division by t − l (see `reference`). Its value has no meaning; monitor mean q² instead.

        Args:
            output: F_θ(x_t, t, s, label) [B, ...] with gradient.
            x_t, v_mix: noised samples and their target velocities [B, ...].
            labels: network input [B], after label drop.
            t, l, s: times [B], s ≤ l < t.
        """
        if len(x_t) == 0:  # λ = 1, or no consistency sample on this worker
            return output.flatten(1).sum(1), output.new_zeros(0)
        with torch.no_grad(), phase("target"):
            x_l = x_t + per_sample(l - t, x_t) * v_mix
            output_l = self.forward_precise(network, x_l, l, s, labels)
        q = self.solution_finite_difference(output.detach(), output_l, x_t, v_mix, t, l, s)
        error = mean_square(q)
        sign = torch.sign(self.parameterization.b(t, s))
        loss = sign * adaptive_weight(error, self.config) * (output * q).flatten(1).mean(1)
        return loss, error

    def solution_finite_difference(
        self, output_t: Tensor, output_l: Tensor, x_t: Tensor, v_mix: Tensor, t: Tensor, l: Tensor, s: Tensor
    ) -> Tensor:
        """Compute q [B, ...] with x_l = x_t + (l − t) v_mix substituted and all canceling terms removed.

        Subtracting the two solutions directly would amplify the rounding of x_t by 1/(t − l). The rounding of the two
        network outputs is amplified by (t − s)/(t − l) in either form (docs/numerics.md).
        """
        p = self.parameterization
        state = per_sample(p.a_finite_difference(t, l, s), x_t) * x_t + per_sample(p.a(l, s), x_t) * v_mix
        change = per_sample(p.b(t, s) / (t - l), x_t) * (output_t - output_l)
        return state + per_sample(p.b_finite_difference(t, l, s), x_t) * output_l + change

    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.parameterization.solution(x, self.forward_precise(network, x, t, s, labels), t, s)
