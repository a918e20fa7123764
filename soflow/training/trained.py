"""Load a trained run for sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from soflow.config import RunConfig, parse
from soflow.config_base import ConfigError
from soflow.objectives.base import Objective
from soflow.training import checkpoints
from soflow.training.build import build_network, build_objective


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint with what sampling needs.

    Raises:
        CheckpointError: if the file is missing, damaged or of another kind.
    """
    state = checkpoints.load(path, device)
    if missing := [name for name in ("config", "ema", "num_classes") if name not in state]:
        raise checkpoints.CheckpointError(
            f"{path}: is no checkpoint of a run, it contains no '{missing[0]}'; import those of the SoFlow "
            "authors with experiments/import_checkpoint.py"
        )
    return state


def load_sampler(path: Path, device: torch.device) -> tuple[RunConfig, Objective, nn.Module]:
    """Load configuration, objective and averaged network of a checkpoint, ready for sampling.

    Raises:
        CheckpointError: if the file is missing or damaged, or its weights are infinite or NaN.
    """
    state = read(path, device)
    if device.type != "meta" and not all(torch.isfinite(weights).all() for weights in state["ema"].values()):
        raise checkpoints.CheckpointError(f"{path}: has infinite or NaN weights: its training diverged")
    config = parse(state["config"])
    network = build_network(config, state["num_classes"]).to(device)
    network.load_state_dict(state["ema"])
    return config, build_objective(config, state["num_classes"]), network.eval()


def class_counts(path: Path, config: RunConfig, objective: Objective) -> list[int]:
    """Return the numbers of images that the classes of a checkpoint's data have; equal ones if samples are balanced.

    Raises:
        ConfigError: if samples follow the data, but the checkpoint does not contain the numbers.
    """
    if config.evaluation.labels != "data":
        return [1] * objective.num_classes
    counts = checkpoints.load(path).get("class_counts")
    if counts is None:
        raise ConfigError(f"evaluation.labels = data: {path} does not say how many images its classes had")
    return counts
