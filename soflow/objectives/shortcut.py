"""Shortcut models: one step must match two consecutive steps of half its size (arXiv 2410.12557).

The paper's time runs from noise to data, with steps x_{t+d} = x_t + d s_θ(x_t, t, d). Here time runs from data to
noise, so s_θ is minus the average velocity u = F_θ(x, t, s) over the step size d = t − s, which the backbone receives
as input: x_s = x_t − (t − s) u. The paper's objective, with M = 128 smallest steps:

- Flow matching, 3/4 of the batch: F_θ(x_t, t, t) is regressed onto v_t, at times uniform over 1/M, 2/M, …, 1.
- Self-consistency, 1/4 of the batch: F_θ(x_t, t, s) is regressed onto (u⁻(x_t, t, l) + u⁻(x_l, l, s)) / 2, without
  gradient, where l is the midpoint and x_l the end of the first half step. The full step t − s is uniform over 1, 1/2,
  …, 2/M, and t is a multiple of it. Half steps of size 1/M use the network's velocity, at a step size of 0.
- Guidance, in half steps of size 1/M only: u_null + w (u_label − u_null). Longer steps inherit it.

Both losses are plain mean squares. With the adaptive weight of SoFlow and MeanFlow, training diverged on digits: that
weight reduces the influence of the data where the error is large, and self-consistency alone does not correct it.

Differences from the paper and the authors' public code:

- Self-consistency targets use the current weights, not the exponential moving average, which a loss cannot access here.
- Labels are dropped for all samples, in the paper for flow matching only. Targets of dropped samples are not guided.
- Step sizes of the self-consistency samples are drawn per sample; the code assigns them in equal shares.
- The code clamps x_l and the targets to [−4, 4]; here they are not clamped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import Draws, Losses, Objective, mean_square
from soflow.objectives.weighting import split_size
from soflow.parameterizations import PARAMETERIZATIONS
from soflow.profiling.phases import phase


class Shortcut(Objective):
    """Flow matching plus self-consistency of a step with its two half steps."""

    interpolant = INTERPOLANTS["linear"]
    parameterization = PARAMETERIZATIONS["euler"]
    default_sampler = "compose"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.guided = self.conditional and self.config.guidance_strength > 1

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        config, batch = self.config, len(noise)
        n_fm = split_size(config.flow_matching_fraction, batch)
        level, position = (torch.rand(batch, generator=generator, device=generator.device) for _ in range(2))
        t, l, s = shortcut_times(level, position, config.smallest_steps)
        t_fm = grid_times(position, config.smallest_steps)
        t, l, s = (torch.cat([t_fm[:n_fm], time[n_fm:]]) for time in (t, l, s))
        weight = torch.full_like(t, 1 / batch)
        return Draws(noise, t, l, s, self.draw_drop(batch, generator), weight, num_flow_matching=n_fm)

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        n_fm = draws.num_flow_matching
        x_t = self.interpolant.x_t(data, draws.noise, draws.t)
        v_t = self.interpolant.v_t(data, draws.noise, draws.t)
        network_labels = self.drop_labels(labels, draws.drop)
        output = self.network_output(network, x_t, network_labels, draws, len(x_t), self.forward)
        with phase("target"):
            target = torch.cat([v_t[:n_fm], self.two_steps(network, x_t, labels, draws)])
        loss = mean_square(output - target)
        error = loss.detach()
        return Losses(loss, {"flow_matching": error[:n_fm], "self_consistency": error[n_fm:]})

    @torch.no_grad()
    def two_steps(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Compute the average velocity over t → l → s, [n, ...] of the n self-consistency samples."""
        rest = slice(draws.num_flow_matching, None)
        x_t, labels, drop, t, l, s = (value[rest] for value in (x_t, labels, draws.drop, draws.t, draws.l, draws.s))
        if len(x_t) == 0:  # no self-consistency sample, or none on this worker
            return x_t
        first = self.step_velocity(network, x_t, t, l, labels, drop)
        x_l = x_t - per_sample(t - l, x_t) * first
        second = self.step_velocity(network, x_l, l, s, labels, drop)
        return second + per_sample((t - l) / (t - s), x_t) * (first - second)

    def step_velocity(
        self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor, drop: Tensor
    ) -> Tensor:
        """Compute u(x, t, s) [B, ...] of a half step, guided if it is a smallest step and the label is not dropped."""
        u = self.average_velocity(network, x, t, s, self.drop_labels(labels, drop))
        if not self.guided:
            return u
        u_null = self.average_velocity(network, x, t, s, self.null_labels(labels))
        guided = u_null + self.config.guidance_strength * (u - u_null)
        return torch.where(per_sample(self.is_smallest(t, s) & ~drop, x), guided, u)

    def average_velocity(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """Compute u(x, t, s) [B, ...]; for a smallest step, the velocity at (x, t), as no other output is trained."""
        return self.forward(network, x, t, torch.where(self.is_smallest(t, s), t, s), labels)

    def is_smallest(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the mask [B] bool of t − s ≤ 1/M; exact for training times, which are binary fractions."""
        return t - s <= 1 / self.config.smallest_steps

    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.parameterization.solution(x, self.average_velocity(network, x, t, s, labels), t, s)

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.forward(network, x, t, t, labels)


def grid_times(position: Tensor, steps: Tensor | int) -> Tensor:
    """Map positions [B], uniform in [0, 1), to times uniform over {1/n, 2/n, …, 1}, n = steps."""
    return (torch.floor(position * steps) + 1) / steps


def shortcut_times(level: Tensor, position: Tensor, smallest_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (t, l, s) [B] of a step: t − s in {1, 1/2, …, 2/M}, t a multiple of t − s, l the midpoint.

    Args:
        level, position: uniform in [0, 1), [B]; they select the step size and the position of the step.
        smallest_steps: M, a power of 2.
    """
    levels = smallest_steps.bit_length() - 1
    steps = 1 << (level * levels).long()
    t = grid_times(position, steps)
    return t, t - 0.5 / steps, t - 1 / steps
