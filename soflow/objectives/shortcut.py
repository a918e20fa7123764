"""Shortcut models: two steps of one size must make one step of twice the size (arXiv 2410.12557).

The paper's time runs from noise to data and its step is x_{t+d} = x_t + d s_θ(x_t, t, d). Here time runs from data to
noise, so that s_θ is minus the average velocity u = F_θ(x, t, s) over the step's length d = t − s, of which the
backbone is told: x_s = x_t − (t − s) u. The paper's objective, with M = 128 smallest steps:

- Flow matching, 3/4 of the batch: F_θ(x_t, t, t) is regressed onto v_t, at times drawn evenly from 1/M, 2/M, …, 1.
- Self-consistency, 1/4 of the batch: F_θ(x_t, t, s) is regressed onto (u⁻(x_t, t, l) + u⁻(x_l, l, s)) / 2, without
  gradient, where l is halfway and x_l is where the first half step leads. The whole step t − s is 1, 1/2, …, 2/M, each
  as often, and t is a multiple of it. Half steps of 1/M ask the network for its velocity, at a step size of 0.
- Guidance, in half steps of 1/M alone: u_null + w (u_label − u_null). The longer steps inherit it.

Both parts are plain mean squares. With the adaptive weight of SoFlow and MeanFlow training ran away on digits: it
takes weight from the data where the network is far off, and self-consistency alone does not bring it back.

Differences: the paper computes self-consistency targets with averaged weights, which a loss does not see here; they
come from the current weights. Labels are dropped in both parts, in the paper in flow matching alone; a dropped sample's
target is not guided. The step sizes of the self-consistency part are drawn for each sample, where the authors' public
code splits the part evenly. It also clamps x_l and the targets to [−4, 4], which is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import Draws, Losses, Objective, mean_square
from soflow.objectives.weighting import part_size
from soflow.parameterizations import PARAMETERIZATIONS
from soflow.profiling.phases import phase


class Shortcut(Objective):
    interpolant = INTERPOLANTS["linear"]
    parameterization = PARAMETERIZATIONS["euler"]
    default_sampler = "compose"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.guided = self.conditional and self.config.guidance_strength > 1

    def draw(self, noise: Tensor, progress: float, generator: torch.Generator) -> Draws:
        config, batch = self.config, len(noise)
        known = part_size(config.flow_matching_fraction, batch)
        level, place = (torch.rand(batch, generator=generator, device=generator.device) for _ in range(2))
        t, l, s = shortcut_times(level, place, config.smallest_steps)
        equal = grid_times(place, config.smallest_steps)
        t, l, s = (torch.cat([equal[:known], time[known:]]) for time in (t, l, s))
        weight = torch.full_like(t, 1 / batch)
        return Draws(noise, t, l, s, self.draw_drop(batch, generator), weight, num_flow_matching=known)

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        known = draws.num_flow_matching
        x_t = self.interpolant.x_t(data, draws.noise, draws.t)
        v_t = self.interpolant.v_t(data, draws.noise, draws.t)
        given = self.given_labels(labels, draws.drop)
        output = self.output_of_parts(network, x_t, given, draws, len(x_t), self.forward)
        with phase("target"):
            target = torch.cat([v_t[:known], self.two_steps(network, x_t, labels, draws)])
        loss = mean_square(output - target)
        error = loss.detach()
        return Losses(loss, {"flow_matching": error[:known], "self_consistency": error[known:]})

    @torch.no_grad()
    def two_steps(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """The average velocity over t → l → s, [n, ...] of the n samples of the self-consistency part."""
        rest = slice(draws.num_flow_matching, None)
        x_t, labels, drop, t, l, s = (value[rest] for value in (x_t, labels, draws.drop, draws.t, draws.l, draws.s))
        if len(x_t) == 0:  # no sample of this part, or none on this worker
            return x_t
        first = self.step_velocity(network, x_t, t, l, labels, drop)
        x_l = x_t - per_sample(t - l, x_t) * first
        second = self.step_velocity(network, x_l, l, s, labels, drop)
        return second + per_sample((t - l) / (t - s), x_t) * (first - second)

    def step_velocity(
        self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor, drop: Tensor
    ) -> Tensor:
        """u(x, t, s) [B, ...] of one half step, guided where it is a smallest step and the label is not dropped."""
        u = self.average_velocity(network, x, t, s, self.given_labels(labels, drop))
        if not self.guided:
            return u
        u_null = self.average_velocity(network, x, t, s, self.null_labels(labels))
        guided = u_null + self.config.guidance_strength * (u - u_null)
        return torch.where(per_sample(self.is_smallest(t, s) & ~drop, x), guided, u)

    def average_velocity(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        """u(x, t, s) [B, ...]: the velocity at (x, t) for a smallest step, which is not trained otherwise."""
        return self.forward(network, x, t, torch.where(self.is_smallest(t, s), t, s), labels)

    def is_smallest(self, t: Tensor, s: Tensor) -> Tensor:
        """[B] bool: t − s ≤ 1/M. Exact for the times of training, which are binary fractions."""
        return t - s <= 1 / self.config.smallest_steps

    def solution(self, network: nn.Module, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.parameterization.solution(x, self.average_velocity(network, x, t, s, labels), t, s)

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.forward(network, x, t, t, labels)


def grid_times(place: Tensor, steps: Tensor | int) -> Tensor:
    """Times in {1/n, 2/n, …, 1}, each as likely, from places [B] drawn evenly in [0, 1) and n = steps."""
    return (torch.floor(place * steps) + 1) / steps


def shortcut_times(level: Tensor, place: Tensor, smallest_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(t, l, s) [B] of a step and its halves: t − s in {1, 1/2, …, 2/M}, t a multiple of it, l halfway.

    Args:
        level, place: drawn evenly in [0, 1), [B]; they choose the step's length and its place.
        smallest_steps: M, a power of 2.
    """
    levels = smallest_steps.bit_length() - 1
    steps = 1 << (level * levels).long()
    t = grid_times(place, steps)
    return t, t - 0.5 / steps, t - 1 / steps
