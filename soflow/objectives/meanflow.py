"""MeanFlow: the average velocity u_θ(x, r, t) over [r, t], trained through a Jacobian-vector product.

arXiv 2505.13447; the paper's r is s here. u_θ is the backbone itself, u = F_θ(x, t, s), with the linear interpolant and
the Euler parameterization: x_s = x_t − (t − s) u.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.autodiff import compiled_total_derivative, difference_quotient, total_derivative
from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import FULL, Draws, Losses, Objective, normal
from soflow.objectives.weighting import adaptive_weight, split_size
from soflow.parameterizations import PARAMETERIZATIONS
from soflow.profiling.phases import phase
from soflow.times import logit_normal

EXACT = 16
"""Samples whose derivative is compared with the exact one."""


class MeanFlow(Objective):
    """Adaptively weighted squared distance of u_θ to v_g − (t − s) du/dt.

    With weight_power = 1 the loss value is always close to 1; monitor the errors instead.
    """

    interpolant = INTERPOLANTS["linear"]
    parameterization = PARAMETERIZATIONS["euler"]
    default_sampler = "compose"  # as its authors, and those of improved MeanFlow and α-Flow, sample in two steps

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        config = self.config
        self.attention = f"fused where available, {config.jvp_attention} in the Jacobian-vector product"
        self.guided = self.conditional and (config.guidance_omega, config.guidance_kappa) != (1.0, 0.0)

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        config, batch = self.config, len(noise)
        n_fm = split_size(config.flow_matching_fraction, batch)
        first, second = (
            logit_normal(mean, std, normal(batch, generator))
            for mean, std in zip(config.time_mean, config.time_std, strict=True)
        )
        t, s = torch.maximum(first, second), torch.minimum(first, second)
        s = torch.cat([t[:n_fm], s[n_fm:]])
        weight = torch.full_like(t, 1 / batch)
        drop, (begin, end) = self.draw_drop(batch, generator), config.guidance_interval
        return Draws(noise, t, t, s, drop, weight, n_fm, guided=(begin <= t) & (t <= end) & ~drop)

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        x_t = self.interpolant.x_t(data, draws.noise, draws.t)
        v_t = self.conditional_velocity(data, labels, draws)
        network_labels = self.drop_labels(labels, draws.drop)
        if self.in_one_call(draws):
            v_g = self.guided_velocity(network, x_t, v_t, None, labels, draws)
            tangent = self.tangent(network, x_t, v_g, network_labels, draws)
            with phase("forward"):
                u, du_dt = self.total_derivative(network, x_t, tangent, draws.t, draws.s, network_labels)
            du_dt = du_dt.detach()
        else:
            u = self.average_velocity(network, x_t, network_labels, draws)
            v_g = self.guided_velocity(network, x_t, v_t, u.detach(), labels, draws)
            du_dt = self.derivative(network, x_t, v_g, u.detach(), network_labels, draws)
        target = v_g - per_sample(draws.t - draws.s, x_t) * du_dt
        squared = (u - target).square().flatten(1)
        loss = squared.sum(1) * adaptive_weight(squared.sum(1), self.config)
        error, n_fm = squared.detach().mean(1), draws.num_flow_matching
        return Losses(loss, {"flow_matching": error[:n_fm], "average_velocity": error[n_fm:]})

    def conditional_velocity(self, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Compute the velocity [B, ...] that the network learns without guidance, for labels [B] before label drop."""
        return self.interpolant.v_t(data, draws.noise, draws.t)

    def in_one_call(self, draws: Draws) -> bool:
        """Return true if u and du/dt are computed in one call."""
        return self.config.jvp == "with_gradient"

    def guided_velocity(
        self, network: nn.Module, x_t: Tensor, v_t: Tensor, output: Tensor | None, labels: Tensor, draws: Draws
    ) -> Tensor:
        """Compute v_g = ω v_t + κ u(x_t, t, t, label) + (1 − ω − κ) u(x_t, t, t, null), [B, ...].

        Plain v_t outside the guidance interval and for samples with dropped labels.

        Args:
            output: u(x_t, t, s, label) [B, ...] without gradient, which saves network calls where s = t; None if not
                yet computed.
            labels: original labels [B], before label drop.
        """
        if not self.guided or len(draws.guided_indices) == 0:
            return v_t
        omega, kappa, guided = self.config.guidance_omega, self.config.guidance_kappa, draws.guided_indices
        null_weight = 1 - omega - kappa
        u_null, u_label = self.guidance_outputs(
            network, x_t, output, labels, draws, null=null_weight != 0, label=kappa != 0
        )
        v_g = omega * v_t[guided] + kappa * u_label + null_weight * u_null
        begin, end = self.config.guidance_interval
        active = (begin <= draws.t[guided]) & (draws.t[guided] <= end)
        return v_t.index_copy(0, guided, torch.where(per_sample(active, v_g), v_g, v_t[guided]))

    @torch.no_grad()
    def targets(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        return {"v_g": self.guided_velocity(network, x_t, v_t, None, labels, draws)}

    def average_velocity(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Compute u = F_θ(x_t, t, s, label) [B, ...] with gradient, for labels [B] after label drop."""
        n = draws.num_flow_matching if self.skips else 0
        return self.network_output(network, x_t, labels, draws, n, self.forward)

    def tangent(self, network: nn.Module, x_t: Tensor, v_g: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Return the tangent dx_t/dt [B, ...] along which u is differentiated, for labels [B] after label drop."""
        return v_g

    @torch.no_grad()
    def derivative(
        self, network: nn.Module, x_t: Tensor, v_g: Tensor, u: Tensor, labels: Tensor, draws: Draws
    ) -> Tensor:
        """Compute du/dt [B, ...] along (dx_t = `tangent`, dt = 1, ds = 0).

        Args:
            u: u(x_t, t, s, label) [B, ...] without gradient.
            labels: network input [B], after label drop.
        """
        tangent = self.tangent(network, x_t, v_g, labels, draws)
        # Where s = t, du/dt is multiplied by t − s = 0, so "subset" skips these samples.
        rows = slice(draws.num_flow_matching if self.skips else 0, len(x_t))
        du_dt = torch.zeros_like(x_t)
        if rows.stop > rows.start:
            inputs = (x_t[rows], tangent[rows], draws.t[rows], draws.s[rows], labels[rows])
            with phase("target"):
                du_dt[rows] = self.separate_derivative(network, *inputs, draws)
        return du_dt

    @property
    def skips(self) -> bool:
        """True if du/dt is computed for the samples with s < t only."""
        return self.config.jvp in ("subset", "finite_difference")

    def separate_derivative(
        self, network: nn.Module, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor, draws: Draws
    ) -> Tensor:
        """Compute du/dt [B, ...] as configured, by a Jacobian-vector product or a finite difference."""
        if self.config.jvp != "finite_difference":
            with self.same_dropout(draws):
                return self.total_derivative(network, x, v, t, s, labels)[1]

        def forward(x: Tensor, t: Tensor) -> Tensor:
            with self.same_dropout(draws):
                return self.forward_precise(network, x, t, s, labels)

        h = self.config.finite_difference_step or self.forward_precise.epsilon ** (1 / 3)
        return difference_quotient(forward, x, v, (torch.maximum(t - h, s), t, (t + h).clamp(max=1)))

    def total_derivative(
        self, network: nn.Module, x_t: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute u = F_θ(x_t, t, s) and du/dt, [B, ...], in one forward-mode pass, compiled if the network is."""
        inputs, eager = (x_t, v, t, s, labels), getattr(network, "_orig_mod", network)
        with self.forward.context(x_t.device):  # outside, as compiled code cannot switch precision
            if eager is network:
                return total_derivative(network, *inputs, flash=self.config.fused_jvp)
            # Copies, as forward-mode derivatives of parts of a tensor cannot be compiled.
            return compiled_total_derivative()(eager, *(values.clone() for values in inputs))

    def approximates_derivative(self, network: nn.Module) -> bool:
        return self.config.jvp == "finite_difference" or self.config.fused_jvp or hasattr(network, "_orig_mod")

    def derivative_error(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> float:
        """Measure ‖du/dt − exact‖ / ‖exact‖ along v_t, where exact is the eager product in float32.

        Compares at most EXACT samples, because the eager product needs more memory than what it checks. 0 without any.
        """
        eager = getattr(network, "_orig_mod", network)
        x_t, v_t = (f(data, draws.noise, draws.t) for f in (self.interpolant.x_t, self.interpolant.v_t))
        labels = self.drop_labels(labels, draws.drop)
        rows = slice(draws.num_flow_matching if self.skips else 0, len(x_t))
        inputs = x_t[rows], v_t[rows], draws.t[rows], draws.s[rows], labels[rows]
        if not len(inputs[0]):
            return 0.0
        with torch.set_grad_enabled(self.config.jvp == "with_gradient"):  # another mode would compile again
            du_dt = self.separate_derivative(network, *inputs, draws).detach()
        compared = slice(None if self.dropout else EXACT)  # dropout draws its masks for the whole batch
        with torch.no_grad(), self.same_dropout(draws), FULL.context(x_t.device):
            exact = total_derivative(eager, *(values[compared] for values in inputs))[1]
        difference, scale = (du_dt[compared] - exact).norm(), exact.norm()
        return (difference / scale).item() if scale > 0 else float(difference > 0)

    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.parameterization.solution(x, self.forward(network, x, t, s, labels), t, s)

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.forward(network, x, t, t, labels)
