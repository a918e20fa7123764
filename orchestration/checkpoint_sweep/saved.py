"""A checkpoint sweep as its folder keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestration.checkpoint_sweep.config import Point
from orchestration.checkpoint_sweep.results import Result, load_results
from orchestration.checkpoint_sweep.space import Space
from soflow.config import RunConfig, parse
from soflow.config_files import read_yaml

CONFIG_FILE = "checkpoint-sweep.yaml"


@dataclass(frozen=True)
class Saved:
    """Settings and results of a sweep."""

    checkpoint: str
    step: int
    weights: str
    """Hash of the checkpoint, 12 digits."""
    run: RunConfig
    """Configuration of the training run, with the evaluation of the points."""
    goal: str
    """First goal of the last start."""
    space: Space
    """Of the last start."""
    seeds: range
    """Seeds on which the best points are compared with the defaults."""
    results: list[Result]


def load_saved(folder: Path) -> Saved:
    """Load a sweep.

    Raises:
        ConfigError: if its file cannot be read.
    """
    values = read_yaml(folder / CONFIG_FILE)
    config, space = values["config"], {name: _tuple(value) for name, value in values["space"].items()}
    space["defaults"] = tuple(Point(**point) for point in space["defaults"])
    return Saved(
        values["checkpoint"],
        values["step"],
        values["weights"],
        parse(values["run"]),
        config["goals"][0],
        Space(**space),
        range(values["seed"] + 1, values["seed"] + 1 + config["confirm_seeds"]),
        load_results(folder),
    )


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
