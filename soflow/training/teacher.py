"""Load the teacher of a distillation."""

from __future__ import annotations

from pathlib import Path

import torch

from soflow.config import RunConfig
from soflow.config_base import ConfigError
from soflow.objectives.base import Objective
from soflow.objectives.config import DistillationConfig
from soflow.objectives.distillation import Distillation, Teacher
from soflow.training import checkpoints
from soflow.training.checkpoints import CheckpointError
from soflow.training.trained import load_sampler


def attach_teacher(objective: Objective, config: RunConfig, device: torch.device) -> None:
    """Load and attach the teacher of a distillation objective; do nothing for other objectives.

    Raises:
        ConfigError: see `load_teacher`.
    """
    if isinstance(objective, Distillation):
        objective.teacher = load_teacher(config, objective.num_classes, device)


def load_teacher(config: RunConfig, num_classes: int, device: torch.device | str = "cpu") -> Teacher:
    """Load the configured teacher with its averaged weights.

    Args:
        config: configuration of the student's run.
        num_classes: number of classes of the student's data.

    Raises:
        ConfigError: if no teacher is configured, its checkpoint is missing or damaged, or its run does not match.
    """
    assert isinstance(config.objective, DistillationConfig)
    path = _checkpoint(config.objective.teacher)
    try:
        theirs, objective, network = load_sampler(path, torch.device(device))
    except CheckpointError as error:
        raise ConfigError(f"objective.teacher = {error}") from None
    except ConfigError:  # other configuration fields
        raise ConfigError(f"objective.teacher = {path}: is no checkpoint of a run of this version") from None
    if reason := _mismatch(config, num_classes, theirs, objective):
        raise ConfigError(f"objective.teacher = {path}: {reason}")
    return Teacher(objective, network.requires_grad_(False))


def _checkpoint(path: Path | None) -> Path:
    """Return the newest checkpoint of a run's folder; return a file unchanged."""
    if path is None:
        raise ConfigError(
            "objective.teacher = None: must be a trained run to distill, its folder or one of its checkpoint-*.pt"
        )
    if not path.is_dir():
        return path
    if not (step := checkpoints.latest_step(path)):
        raise ConfigError(f"objective.teacher = {path}: contains no checkpoint-*.pt of a run or trial")
    return checkpoints.path_of(path, step)


def _mismatch(ours: RunConfig, num_classes: int, theirs: RunConfig, objective: Objective) -> str | None:
    """Return the reason why a run cannot teach this one, or None if it can."""
    assert isinstance(ours.objective, DistillationConfig)
    for name, actual, required in (
        ("interpolant", *(getattr(run.objective, "interpolant", "linear") for run in (theirs, ours))),
        ("shape of samples", theirs.dataset.sample_shape, ours.dataset.sample_shape),
        ("number of classes", objective.num_classes, num_classes),
    ):
        if actual != required:
            return f"its {name} is {actual} and must be this run's, {required}"
    if ours.dataset.conditional and not theirs.dataset.conditional:
        return "was trained without labels and can only teach a run with dataset.conditional = false"
    null_label = ours.objective.label_drop or not ours.dataset.conditional
    if null_label and theirs.dataset.conditional and not getattr(theirs.objective, "label_drop", 1):
        return (
            "was trained with objective.label_drop = 0, so its null label is untrained; it can only teach a run with "
            "dataset.conditional = true and objective.label_drop = 0"
        )
    if ours.dataset.augmentation and not theirs.dataset.augmentation:
        return "was trained on plain images and can only teach a run with dataset.augmentation = 0"
    return None
