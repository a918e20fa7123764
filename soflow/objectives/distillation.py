"""Distillation: SoFlow that follows a trained teacher's velocity in place of the conditional velocity.

SoFlow's paper (arXiv 2512.15657) trains from scratch and leaves this open. Every target that holds v_t there, the
flow-matching part's and the Euler step x_l = x_t + (l − t) v_mix of the consistency part, here holds v*(x_t, t, label),
the velocity of a teacher whose weights stay fixed. It is a function of x_t: the targets have no scatter, and the
student learns the solution map of the teacher's trajectories. x_t is still made from data and noise, so that the
data set is needed.

Guidance is the teacher's own extrapolation, for a strength w > 1:

    v* = v*(label) + c(t)(w − 1)(v*(label) − v*(null)),

which is v*(null) + w (v*(label) − v*(null)) where the decay c(t) is 1. It comes on top of the guidance that the teacher
was trained with. Samples with dropped labels follow v*(null).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soflow.objectives.base import Draws, Objective
from soflow.objectives.soflow import SoFlow


@dataclass(frozen=True)
class Teacher:
    """A trained velocity: an objective of any kind, and the network that it trained."""

    objective: Objective
    network: nn.Module

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """v*(x_t, t, label) [B, ...], for x_t [B, ...], times and labels [B]."""
        return self.objective.velocity(self.network, x_t, t, labels)


class Distillation(SoFlow):
    """SoFlow's losses, with the teacher's velocity for v_t.

    Attributes:
        teacher: attached before training (soflow.training.teacher). It is part of neither the trained module nor the
            student's checkpoints, so sampling does not need it.
    """

    teacher: Teacher

    @torch.no_grad()
    def target_velocity(
        self, network: nn.Module, x_t: Tensor, v_t: Tensor, output: Tensor, labels: Tensor, draws: Draws
    ) -> Tensor:
        """v_mix [B, ...] without gradient.

        Args:
            v_t: the conditional velocity, whose place the teacher's takes.
            labels: as they are [B], before any is dropped.
        """
        return self.taught_velocity(network, x_t, labels, draws, self.config.velocity_mix)

    @torch.no_grad()
    def targets(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        mixes = {"v_g": 1.0, "v_mix": self.config.velocity_mix}
        return {name: self.taught_velocity(network, x_t, labels, draws, mix) for name, mix in mixes.items()}

    def taught_velocity(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws, mix: float) -> Tensor:
        """The teacher's velocity [B, ...], guided where guidance is on and the label is not dropped.

        With m = `mix` below 1 the student's own velocity takes the share 1 − m of a guided target, as in SoFlow.
        """
        t, given = draws.t, self.given_labels(labels, draws.drop)
        if not self.guided:
            return self.teacher.velocity(x_t, t, given)
        both = torch.cat([given, self.null_labels(labels)])
        taught, taught_null = self.teacher.velocity(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        own = taught if mix == 1 else self.velocity(network, x_t, t, labels)
        return self.mixed(taught, taught_null, own, draws, mix)
