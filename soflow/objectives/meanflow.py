"""MeanFlow: the average velocity u_θ(x, r, t) over [r, t], trained through a Jacobian-vector product.

arXiv 2505.13447; r is written s here. u_θ shares the backbone, u = F_θ(x, t, s), and always uses the linear
interpolant and the Euler parameterisation: x_s = x_t − (t − s) u.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import Draws, Losses, Objective, normal, part_size
from soflow.objectives.flow_matching import adaptive_weight
from soflow.parameterizations import PARAMETERIZATIONS
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

    def draw(self, shape: tuple[int, ...], progress: float, generator: torch.Generator) -> Draws:
        config, batch = self.config, shape[0]
        known = part_size(config.flow_matching_fraction, batch)
        noise = normal(shape, generator)
        first, second = (
            logit_normal(mean, std, normal(batch, generator))
            for mean, std in zip(config.time_mean, config.time_std, strict=True)
        )
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        s = torch.cat([t[:known], s[known:]])
        weight = torch.full_like(t, 1 / batch)
        return Draws(noise, t, t, s, self.draw_drop(batch, generator), weight, num_flow_matching=known)

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        x_t = self.interpolant.x_t(data, draws.noise, draws.t)
        v_t = self.interpolant.v_t(data, draws.noise, draws.t)
        v_g = self.guided_velocity(network, x_t, v_t, labels, draws)
        u, du_dt = self.average_velocity(network, x_t, v_g, self.given_labels(labels, draws.drop), draws)
        target = v_g - per_sample(draws.t - draws.s, x_t) * du_dt
        squared = (u - target).square().flatten(1)
        loss = squared.sum(1) * adaptive_weight(squared.sum(1), self.config)
        error, known = squared.detach().mean(1), draws.num_flow_matching
        return Losses(loss, {"flow_matching": error[:known], "average_velocity": error[known:]})

    @torch.no_grad()
    def guided_velocity(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """v_g = ω v_t + κ u(x_t, t, t, label) + (1 − ω − κ) u(x_t, t, t, null), [B, ...].

        Plain v_t outside the guidance interval and for dropped samples.
        """
        if not self.guided:
            return v_t
        omega, kappa, t = self.config.guidance_omega, self.config.guidance_kappa, draws.t
        v_g = omega * v_t
        for share, given in ((kappa, labels), (1 - omega - kappa, self.null_labels(labels))):
            if share != 0:
                v_g = v_g + share * self.call(network, x_t, t, t, given)
        begin, end = self.config.guidance_interval
        active = (begin <= t) & (t <= end) & ~draws.drop
        return torch.where(per_sample(active, v_t), v_g, v_t)

    def targets(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        return {"v_g": self.guided_velocity(network, x_t, v_t, labels, draws)}

    def average_velocity(
        self, network: nn.Module, x_t: Tensor, v_g: Tensor, labels: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """u with gradient and du/dt along (v_g, dt = 1, ds = 0) without, each [B, ...]."""
        t, s = draws.t, draws.s
        if self.config.jvp == "with_gradient":
            u, du_dt = self.total_derivative(network, x_t, v_g, t, s, labels)
            return u, du_dt.detach()
        # Where s = t the derivative's factor t − s is 0, so that "subset" may leave it out.
        known = draws.num_flow_matching if self.config.jvp == "subset" else 0
        u = self.output(network, x_t, labels, draws, known if self.dropout else 0)
        du_dt = torch.zeros_like(x_t)
        if known < len(x_t):
            with torch.no_grad(), self.same_dropout(draws):
                own = slice(known, None)
                _, du_dt[own] = self.total_derivative(network, x_t[own], v_g[own], t[own], s[own], labels[own])
        return u, du_dt

    def output(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws, apart: int) -> Tensor:
        """u = F_θ(x_t, t, s, label) [B, ...]; the first `apart` samples in a call with dropout masks of their own."""
        parts = [part for part in (slice(0, apart), slice(apart, len(x_t))) if part.stop > part.start]
        outputs = []
        for part in parts:
            with self.same_dropout(draws):
                outputs.append(self.call(network, x_t[part], draws.t[part], draws.s[part], labels[part]))
        return torch.cat(outputs)

    def total_derivative(
        self, network: nn.Module, x_t: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u = F_θ(x_t, t, s) and du/dt = v · ∂_x u + ∂_t u at fixed s, [B, ...], by one forward-mode pass."""
        # A compiled network has no forward-mode derivative.
        eager = getattr(network, "_orig_mod", network)
        # Nor have the fused attention kernels.
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(
                lambda x, time: self.call(eager, x, time, s, labels), (x_t, t), (v, torch.ones_like(t))
            )

    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.parameterization.solution(x, self.call(network, x, t, s, labels), t, s)

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.call(network, x, t, t, labels)
