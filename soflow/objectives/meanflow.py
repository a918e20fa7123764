"""MeanFlow: the average velocity u_θ(x, r, t) over [r, t], trained through a Jacobian-vector product.

arXiv 2505.13447; r is written s here. u_θ shares the backbone, u = F_θ(x, t, s), and always uses the linear
interpolant and the Euler parameterisation: x_s = x_t − (t − s) u.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.autodiff import directional_derivative
from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import Draws, Losses, Objective, normal
from soflow.objectives.weighting import adaptive_weight, part_size
from soflow.parameterizations import PARAMETERIZATIONS
from soflow.profiling.phases import phase
from soflow.times import logit_normal


class MeanFlow(Objective):
    """Squared distance of u_θ to v_g − (t − s) du/dt, adaptively weighted.

    With weight_power = 1 the loss is a constant near 1 whatever the network does; the errors are what to watch.
    """

    interpolant = INTERPOLANTS["linear"]
    parameterization = PARAMETERIZATIONS["euler"]
    attention = "fused where available, math in the Jacobian-vector product"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        config = self.config
        self.guided = self.conditional and (config.guidance_omega, config.guidance_kappa) != (1.0, 0.0)

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        config, batch = self.config, len(noise)
        known = part_size(config.flow_matching_fraction, batch)
        first, second = (
            logit_normal(mean, std, normal(batch, generator))
            for mean, std in zip(config.time_mean, config.time_std, strict=True)
        )
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        s = torch.cat([t[:known], s[known:]])
        weight = torch.full_like(t, 1 / batch)
        drop, (begin, end) = self.draw_drop(batch, generator), config.guidance_interval
        return Draws(noise, t, t, s, drop, weight, known, guided=(begin <= t) & (t <= end) & ~drop)

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        x_t = self.interpolant.x_t(data, draws.noise, draws.t)
        v_t = self.interpolant.v_t(data, draws.noise, draws.t)
        given = self.given_labels(labels, draws.drop)
        if self.in_one_call(draws):
            v_g = self.guided_velocity(network, x_t, v_t, None, labels, draws)
            tangent = self.tangent(network, x_t, v_g, given, draws)
            with phase("forward"):
                u, du_dt = self.total_derivative(network, x_t, tangent, draws.t, draws.s, given)
            du_dt = du_dt.detach()
        else:
            u = self.average_velocity(network, x_t, given, draws)
            v_g = self.guided_velocity(network, x_t, v_t, u.detach(), labels, draws)
            du_dt = self.derivative(network, x_t, v_g, u.detach(), given, draws)
        target = v_g - per_sample(draws.t - draws.s, x_t) * du_dt
        squared = (u - target).square().flatten(1)
        loss = squared.sum(1) * adaptive_weight(squared.sum(1), self.config)
        error, known = squared.detach().mean(1), draws.num_flow_matching
        return Losses(loss, {"flow_matching": error[:known], "average_velocity": error[known:]})

    def in_one_call(self, draws: Draws) -> bool:
        """Whether u and du/dt come from one call."""
        return self.config.jvp == "with_gradient"

    def guided_velocity(
        self, network: nn.Module, x_t: Tensor, v_t: Tensor, output: Tensor | None, labels: Tensor, draws: Draws
    ) -> Tensor:
        """v_g = ω v_t + κ u(x_t, t, t, label) + (1 − ω − κ) u(x_t, t, t, null), [B, ...].

        Plain v_t outside the guidance interval and for dropped samples.

        Args:
            output: u(x_t, t, s, label) [B, ...] without gradient, which saves calls where s = t, if it is known.
            labels: as they are [B], before any is dropped.
        """
        if not self.guided or len(draws.guided_indices) == 0:
            return v_t
        omega, kappa, own = self.config.guidance_omega, self.config.guidance_kappa, draws.guided_indices
        share_of_null = 1 - omega - kappa
        u_null, u_label = self.guidance_outputs(
            network, x_t, output, labels, draws, null=share_of_null != 0, label=kappa != 0
        )
        v_g = omega * v_t[own] + kappa * u_label + share_of_null * u_null
        begin, end = self.config.guidance_interval
        active = (begin <= draws.t[own]) & (draws.t[own] <= end)
        return v_t.index_copy(0, own, torch.where(per_sample(active, v_g), v_g, v_t[own]))

    @torch.no_grad()
    def targets(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        return {"v_g": self.guided_velocity(network, x_t, v_t, None, labels, draws)}

    def average_velocity(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """u = F_θ(x_t, t, s, label) [B, ...] with gradient, for labels as the network sees them [B]."""
        apart = draws.num_flow_matching if self.config.jvp == "subset" else 0
        return self.output_of_parts(network, x_t, labels, draws, apart, self.forward)

    def tangent(self, network: nn.Module, x_t: Tensor, v_g: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """dx_t/dt [B, ...] along which u is differentiated, for labels as the network sees them [B]."""
        return v_g

    @torch.no_grad()
    def derivative(
        self, network: nn.Module, x_t: Tensor, v_g: Tensor, u: Tensor, labels: Tensor, draws: Draws
    ) -> Tensor:
        """du/dt along (dx_t = v_g, dt = 1, ds = 0), [B, ...].

        Args:
            u: u(x_t, t, s, label) [B, ...] without gradient.
            labels: as the network sees them [B].
        """
        tangent = self.tangent(network, x_t, v_g, labels, draws)
        # Where s = t the derivative's factor t − s is 0, so that "subset" may leave it out.
        own = slice(draws.num_flow_matching if self.config.jvp == "subset" else 0, len(x_t))
        du_dt = torch.zeros_like(x_t)
        if own.stop > own.start:
            with phase("target"), self.same_dropout(draws):
                _, du_dt[own] = self.total_derivative(
                    network, x_t[own], tangent[own], draws.t[own], draws.s[own], labels[own]
                )
        return du_dt

    def total_derivative(
        self, network: nn.Module, x_t: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u = F_θ(x_t, t, s) and du/dt = v · ∂_x u + ∂_t u at fixed s, [B, ...], by one forward-mode pass."""
        # A compiled network has no forward-mode derivative.
        eager = getattr(network, "_orig_mod", network)
        return directional_derivative(
            lambda x, time: self.forward(eager, x, time, s, labels), (x_t, t), (v, torch.ones_like(t))
        )

    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.parameterization.solution(x, self.forward(network, x, t, s, labels), t, s)

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.forward(network, x, t, t, labels)
