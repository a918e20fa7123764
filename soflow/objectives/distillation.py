"""Distillation: SoFlow with a trained teacher's velocity in place of the conditional velocity.

The SoFlow paper (arXiv 2512.15657) trains from scratch only. Here the teacher's velocity v*(x_t, t, label), with frozen
weights, replaces v_t in every target: in the flow-matching loss and in the Euler step x_l = x_t + (l − t) v_mix of the
consistency loss. As v* is a function of x_t, the targets have no variance given x_t, and the student learns the
solution map of the teacher's trajectories. x_t is still computed from data and noise, so the dataset is required.

For w > 1 the teacher's velocity is guided,

    v* = v*(label) + c(t)(w − 1)(v*(label) − v*(null)),

which is v*(null) + w (v*(label) − v*(null)) where the decay c(t) is 1. This adds to the guidance that the teacher was
trained with. Samples with dropped labels use v*(null).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soflow.objectives.base import Draws, Objective
from soflow.objectives.soflow import SoFlow


@dataclass(frozen=True)
class Teacher:
    """Trained velocity: any objective and the network trained with it."""

    objective: Objective
    network: nn.Module

    @torch.no_grad()
    def velocity(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Compute v*(x_t, t, label) [B, ...] for x_t [B, ...], times and labels [B]."""
        return self.objective.velocity(self.network, x_t, t, labels)


class Distillation(SoFlow):
    """SoFlow's losses with the teacher's velocity in place of v_t.

    Attributes:
        teacher: attached before training (soflow.training.teacher). It belongs neither to the trained module nor to the
            student's checkpoints, so sampling does not need it.
    """

    teacher: Teacher

    @torch.no_grad()
    def target_velocity(
        self, network: nn.Module, x_t: Tensor, v_t: Tensor, output: Tensor, labels: Tensor, draws: Draws
    ) -> Tensor:
        """Compute v_mix [B, ...] without gradient.

        Args:
            v_t: conditional velocity, not used: the teacher's velocity replaces it.
            labels: original labels [B], before label drop.
        """
        return self.teacher_velocity(network, x_t, labels, draws, self.config.velocity_mix)

    @torch.no_grad()
    def targets(self, network: nn.Module, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        mixes = {"v_g": 1.0, "v_mix": self.config.velocity_mix}
        return {name: self.teacher_velocity(network, x_t, labels, draws, mix) for name, mix in mixes.items()}

    def teacher_velocity(self, network: nn.Module, x_t: Tensor, labels: Tensor, draws: Draws, mix: float) -> Tensor:
        """Compute the teacher's velocity [B, ...], guided if guidance is on and the label is not dropped.

        If m = `mix` is below 1, the student's velocity has weight 1 − m in a guided target, as in SoFlow.
        """
        t, network_labels = draws.t, self.drop_labels(labels, draws.drop)
        if not self.guided:
            return self.teacher.velocity(x_t, t, network_labels)
        both = torch.cat([network_labels, self.null_labels(labels)])
        v_label, v_null = self.teacher.velocity(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        v_student = v_label if mix == 1 else self.velocity(network, x_t, t, labels)
        return self.mixed(v_label, v_null, v_student, draws, mix)
