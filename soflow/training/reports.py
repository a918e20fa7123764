"""What a run says at intervals, and its record in the run's folder.

A report that was made, but lost on its way with whoever asked for it, need not be made again: it is read from here.
This module does not import torch, so that the asking side stays small.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from soflow.config import RunConfig, parse
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml, to_yaml
from soflow.files import write_atomic

CONFIG_FILE = "config.yaml"
FOLDER = "reports"


@dataclass(frozen=True)
class Report:
    """What a run has to say after some more steps."""

    step: int
    """Optimiser steps done."""
    metrics: dict[str, float]
    facts: dict[str, str]
    """How the numbers were made: hardware, precision, evaluation protocol."""
    grids: dict[str, Path]
    """PNGs of samples, a column per class: `samples` at the first NFE of the evaluation; at the end also at others."""
    finished: bool
    """Whether it is the run's last report."""


def next_step(config: RunConfig, after: int) -> int:
    """The step of the report that follows step `after`."""
    every, total = config.training.report_every, config.training.total_steps
    return min((after // every + 1) * every, total)


def begin(config: RunConfig, directory: Path) -> None:
    """Start a run of this configuration in a folder, and delete the reports of an earlier one."""
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    for path in (directory / FOLDER).iterdir():
        path.unlink()
    write_atomic(directory / CONFIG_FILE, to_yaml(config))


def record(report: Report, directory: Path) -> None:
    grids = {name: str(path.relative_to(directory)) for name, path in report.grids.items()}
    values = asdict(report) | {"grids": grids}
    write_atomic(_path(directory, report.step), json.dumps(values))


def recorded(config: RunConfig, directory: Path, after: int) -> Report | None:
    """The report that follows step `after`, if a run of this configuration has made it before; else None."""
    step = next_step(config, after)
    try:
        values = json.loads(_path(directory, step).read_text())
        report = Report(**values | {"grids": {name: directory / path for name, path in values["grids"].items()}})
        known = parse(read_yaml(directory / CONFIG_FILE)) == config and report.step == step
        return report if known and all(path.exists() for path in report.grids.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None  # none yet, or damaged: it is made again


def _path(directory: Path, step: int) -> Path:
    return directory / FOLDER / f"step-{step:08d}.json"
