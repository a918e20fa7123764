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

from soflow.conditioning import split
from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.interpolants import INTERPOLANTS, Interpolant
from soflow.objectives.base import Draws, Objective
from soflow.objectives.soflow import SoFlow
from soflow.training import checkpoints
from soflow.training.checkpoints import CheckpointError
from soflow.training.run import load_sampler


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
        teacher: read from its checkpoint when a target is first wanted. It is part of neither the trained module nor
            the student's checkpoints, which therefore sample without it.
    """

    def __init__(self, config, num_classes: int, conditional: bool, *calls):
        super().__init__(config, num_classes, conditional, *calls)
        self.teacher: Teacher | None = None

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
        if self.teacher is None:
            augmented = split(labels)[1] is not None
            self.teacher = self.load_teacher(tuple(x_t.shape[1:]), augmented, x_t.device, x_t.dtype)
        t, given = draws.t, self.given_labels(labels, draws.drop)
        if not self.guided:
            return self.teacher.velocity(x_t, t, given)
        both = torch.cat([given, self.null_labels(labels)])
        taught, taught_null = self.teacher.velocity(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        own = taught if mix == 1 else self.velocity(network, x_t, t, labels)
        return self.mixed(taught, taught_null, own, draws, mix)

    def load_teacher(
        self,
        sample_shape: tuple[int, ...],
        augmented: bool,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Teacher:
        """The velocity of the configured checkpoint's averaged weights.

        Args:
            sample_shape: (channels, height, width) of what the student generates.
            augmented: whether the student's labels say how its images were augmented.

        Raises:
            ConfigError: if none is configured, its checkpoint is missing or damaged, or its run cannot teach this one.
        """
        path = self.config.teacher
        if path is None:
            raise ConfigError(
                "objective.teacher = None: must be a trained run to distil, its folder or one of its checkpoint-*.pt"
            )
        if path.is_dir():
            if not (step := checkpoints.latest_step(path)):
                raise ConfigError(f"objective.teacher = {path}: holds no checkpoint-*.pt of a run or trial")
            path = checkpoints.path_of(path, step)
        try:
            with torch.random.fork_rng(devices=[]):  # a network is built with random weights at first
                config, objective, network = load_sampler(path, torch.device(device))
        except CheckpointError as error:
            raise ConfigError(f"objective.teacher = {error}") from None
        except (ConfigError, KeyError):  # some other file of torch's, or a run with other fields
            raise ConfigError(f"objective.teacher = {path}: is no checkpoint of a run of this version") from None
        if reason := self._unfit(config, objective, sample_shape, augmented):
            raise ConfigError(f"objective.teacher = {path}: {reason}")
        return Teacher(objective, network.to(dtype).requires_grad_(False))

    def _unfit(
        self, theirs: RunConfig, objective: Objective, sample_shape: tuple[int, ...], augmented: bool
    ) -> str | None:
        """Why a run cannot teach this one, None if it can."""
        for what, given, wanted in (
            ("interpolant", _name(objective.interpolant), _name(self.interpolant)),
            ("shape of samples", theirs.dataset.sample_shape, sample_shape),
            ("number of classes", objective.num_classes, self.num_classes),
        ):
            if given != wanted:
                return f"its {what} is {given} and must be this run's, {wanted}"
        if self.conditional and not theirs.dataset.conditional:
            return "was trained without labels and can only teach a run with dataset.conditional = false"
        if augmented and not theirs.dataset.augmentation:
            return "was trained on plain images and can only teach a run with dataset.augmentation = 0"
        return None


def _name(interpolant: Interpolant) -> str:
    return next(name for name, known in INTERPOLANTS.items() if known is interpolant)
