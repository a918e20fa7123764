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
from pathlib import Path

import torch
from torch import Tensor, nn

from soflow import checkpoints
from soflow.checkpoints import CheckpointError
from soflow.conditioning import split
from soflow.guidance import mixed_velocity
from soflow.interpolants import INTERPOLANTS, Interpolant, per_sample
from soflow.objectives.base import Draws, Losses, Objective
from soflow.objectives.soflow import SoFlow
from soflow.run import load_sampler
from soflow.sections import ConfigError


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
        teacher: read from its checkpoint when the first losses are computed. It is part of neither the trained module
            nor the student's checkpoints, which therefore sample without it.
    """

    def __init__(self, config, num_classes: int, conditional: bool, *calls):
        super().__init__(config, num_classes, conditional, *calls)
        self.teacher: Teacher | None = None

    def losses(self, network: nn.Module, data: Tensor, labels: Tensor, draws: Draws) -> Losses:
        if self.teacher is None:
            self.teacher = load_teacher(
                self.config.teacher,
                self.interpolant,
                tuple(data.shape[1:]),
                self.num_classes,
                self.conditional,
                augmented=split(labels)[1] is not None,
                like=data,
            )
        return super().losses(network, data, labels, draws)

    @torch.no_grad()
    def target_velocity(
        self, network: nn.Module, x_t: Tensor, v_t: Tensor, output: Tensor, labels: Tensor, draws: Draws
    ) -> Tensor:
        """v_mix [B, ...]: the teacher's velocity, guided where guidance is on and the label is not dropped.

        With m < 1 the student's own velocity takes the share 1 − m, as in SoFlow.
        """
        t, config = draws.t, self.config
        if not self.guided:
            return self.teacher.velocity(x_t, t, self.given_labels(labels, draws.drop))
        both = torch.cat([labels, self.null_labels(labels)])
        v_label, v_null = self.teacher.velocity(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        own = v_label if config.velocity_mix == 1 else self.velocity(network, x_t, t, labels)
        v_mix = mixed_velocity(
            v_label, v_null, own, t, config.guidance_strength, config.velocity_mix, config.guidance_decay_time
        )
        return torch.where(per_sample(draws.drop, x_t), v_null, v_mix)


def load_teacher(
    path: Path | None,
    interpolant: Interpolant,
    sample_shape: tuple[int, ...],
    num_classes: int,
    conditional: bool,
    augmented: bool = False,
    like: Tensor | None = None,
) -> Teacher:
    """The teacher of a checkpoint's averaged weights.

    Args:
        path: `objective.teacher`: a checkpoint, or the folder of a run or trial, whose newest checkpoint is taken.
        interpolant, sample_shape, num_classes, conditional: the student's, with which the teacher must agree.
        augmented: whether the student's labels say how images were augmented.
        like: a tensor on the device and of the dtype to compute with.

    Raises:
        ConfigError: if there is no path.
        CheckpointError: if the checkpoint is missing or damaged, or its run cannot teach this student.
    """
    if path is None:
        raise ConfigError(
            "objective.teacher = None: must name a trained run to distil, its folder or a file checkpoint-*.pt of it"
        )
    if path.is_dir():
        path = checkpoints.path_of(path, checkpoints.latest_step(path))
    like = torch.empty(0) if like is None else like
    with torch.random.fork_rng(devices=[]):  # building a network draws weights, and a run's numbers must not notice
        config, objective, network = load_sampler(path, like.device)
    dataset = config.dataset
    for what, theirs, ours in (
        ("interpolant", _name(objective.interpolant), _name(interpolant)),
        ("shape of samples", dataset.sample_shape, sample_shape),
        ("number of classes", objective.num_classes, num_classes),
    ):
        if theirs != ours:
            raise CheckpointError(f"{path}: as objective.teacher must have this run's {what}, {ours}, but has {theirs}")
    if conditional and not dataset.conditional:
        raise CheckpointError(f"{path}: was trained without labels; as objective.teacher needs dataset.conditional off")
    if augmented and not dataset.augmentation:
        raise CheckpointError(f"{path}: was trained on plain images; as objective.teacher needs dataset.augmentation 0")
    return Teacher(objective, network.to(like.dtype).requires_grad_(False))


def _name(interpolant: Interpolant) -> str:
    return next(name for name, known in INTERPOLANTS.items() if known is interpolant)
