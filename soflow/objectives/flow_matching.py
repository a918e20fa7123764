"""Flow matching with training-time guidance: only SoFlow's flow-matching loss (arXiv 2512.15657)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.guidance import mixed_velocity
from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import Draws, Losses, Objective, mean_square, normal
from soflow.objectives.weighting import adaptive_weight
from soflow.parameterizations import PARAMETERIZATIONS
from soflow.times import logit_normal


class FlowMatching(Objective):
    """Adaptively weighted squared distance of v_θ(x_t, t) to v_mix."""

    default_nfe: tuple[int, ...] = (50, 1)
    default_sampler = "compose"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        config = self.config
        self.interpolant = INTERPOLANTS[config.interpolant]
        self.parameterization = PARAMETERIZATIONS[config.parameterization]
        self.guided = self.conditional and config.guidance_strength > 1

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        batch = len(noise)
        t = logit_normal(self.config.time_mean, self.config.time_std, normal(batch, generator))
        weight = torch.full_like(t, 1 / batch)
        return Draws(noise, t, t, t, self.draw_drop(batch, generator), weight, num_flow_matching=batch)

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        x_t = self.interpolant.x_t(data, draws.noise, draws.t)
        v_t = self.interpolant.v_t(data, draws.noise, draws.t)
        network_labels = self.drop_labels(labels, draws.drop)
        output = self.network_output(network, x_t, network_labels, draws, len(x_t), self.forward)
        target = self.target_velocity(network, x_t, v_t, output.detach(), labels, draws)
        loss, error = self.flow_matching_loss(output, target)
        return Losses(loss, {"flow_matching": error})

    def flow_matching_loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compute weight · mean δ² and mean δ², each [B], with δ = v_θ(x_t, t, label) − v_mix.

        weight = 1 / (|∂_s b(t, t)| (mean δ² + ε)^p), without gradient.

        Args:
            output: F_θ(x_t, t, t, label) [B, ...].
            target: v_mix [B, ...], without gradient.
        """
        error = mean_square(self.parameterization.velocity(output) - target)
        weight = adaptive_weight(error, self.config) / abs(self.parameterization.velocity_scale)
        return weight * error, error.detach()

    @torch.no_grad()
    def target_velocity(
        self, network: nn.Module, x_t: Tensor, v_t: Tensor, output: Tensor, labels: Tensor, draws: Draws
    ) -> Tensor:
        """Compute v_mix [B, ...]; plain v_t for samples with dropped labels, or for all samples without guidance.

        Args:
            output: F_θ(x_t, t, s, label) [B, ...] without gradient. For the flow-matching samples, where s = t, this is
                already the class-conditional velocity; only the other samples need another call.
            labels: original labels [B], before label drop.
        """
        if not self.guided or len(draws.guided_indices) == 0:
            return v_t
        guided, mix = draws.guided_indices, self.config.velocity_mix
        outputs = self.guidance_outputs(network, x_t, output, labels, draws, null=mix > 0, label=mix < 1)
        v_null, v_label = (self.parameterization.velocity_scale * output for output in outputs)
        strength, decay_time = self.config.guidance_strength, self.config.guidance_decay_time
        v_mix = mixed_velocity(v_t[guided], v_null, v_label, draws.t[guided], strength, mix, decay_time)
        return v_t.index_copy(0, guided, v_mix)

    def mixed(self, v_t: Tensor, v_null: Tensor, v_label: Tensor, draws: Draws, mix: float) -> Tensor:
        """Compute v_mix [B, ...] with m = `mix` (v_g for m = 1); plain v_t for samples with dropped labels."""
        strength, decay_time = self.config.guidance_strength, self.config.guidance_decay_time
        v_mix = mixed_velocity(v_t, v_null, v_label, draws.t, strength, mix, decay_time)
        return torch.where(per_sample(draws.drop, v_t), v_t, v_mix)

    @torch.no_grad()
    def targets(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        if not self.guided:
            return {"v_g": v_t, "v_mix": v_t}
        v_null, v_label = (self.velocity(network, x_t, draws.t, y) for y in (self.null_labels(labels), labels))
        return {
            name: self.mixed(v_t, v_null, v_label, draws, mix)
            for name, mix in (("v_g", 1.0), ("v_mix", self.config.velocity_mix))
        }

    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Compute one Euler step x + (s − t) v_θ(x, t), as the objective learns no solution map."""
        return x + per_sample(s - t, x) * self.velocity(network, x, t, labels)

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.parameterization.velocity(self.forward(network, x, t, t, labels))
