"""Periodic reports of a run, saved in its folder. After a crash, an existing report is re-read instead of recomputed.

This module does not import torch, so that the driver process stays small.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from soflow.config import RunConfig, flatten, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml, to_yaml
from soflow.files import write_atomic
from soflow.plugins import save_plugins

CONFIG_FILE = "config.yaml"
FOLDER = "reports"
CODE_FOLDER = "code"


@dataclass(frozen=True)
class Report:
    """Metrics and sample grids of a run at one step."""

    step: int
    """Number of optimizer steps done."""
    metrics: dict[str, float]
    facts: dict[str, str]
    """Conditions of the measurement: hardware, precision, evaluation protocol."""
    grids: dict[str, Path]
    """PNG files: `samples` at the first NFE of the evaluation; in the last report also samples at other NFE,
    and `real`, images of the data in the same layout."""
    finished: bool
    """True for the last report of the run."""
    curve: tuple[tuple[int, dict[str, float]], ...] = ()
    """Steps since the previous report, with their points of the learning curves."""


def next_step(config: RunConfig, after: int) -> int:
    """Return the step of the first report after step `after`."""
    every, total = config.training.report_every, config.training.total_steps
    return min((after // every + 1) * every, total)


def begin(config: RunConfig, directory: Path) -> None:
    """Save the configuration and plug-ins of a new run in its folder and delete the reports of an earlier run."""
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    for path in (directory / FOLDER).iterdir():
        path.unlink()
    save_config(config, directory)
    values = flatten(to_dict(config)).values()
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    save_plugins(filter(lambda name: isinstance(name, str), names), directory / CODE_FOLDER)


def save_config(config: RunConfig, directory: Path) -> None:
    """Save the configuration of a run in its folder."""
    write_atomic(directory / CONFIG_FILE, to_yaml(config))


def save_report(report: Report, directory: Path) -> None:
    """Save a report in the run's folder, with the paths of its grids relative to the folder."""
    grids = {name: str(path.relative_to(directory)) for name, path in report.grids.items()}
    values = asdict(report) | {"grids": grids}
    write_atomic(_path(directory, report.step), json.dumps(values))


def load_report(config: RunConfig, directory: Path, after: int) -> Report | None:
    """Load the first report after step `after`, if a run of this configuration has saved it; else return None."""
    step = next_step(config, after)
    if (report := _read(_path(directory, step), directory)) is None:
        return None
    try:
        matches = parse(read_yaml(directory / CONFIG_FILE)) == config and report.step == step
    except ConfigError:
        return None  # damaged: the report is computed again
    return report if matches and all(path.exists() for path in report.grids.values()) else None


def load_reports(directory: Path) -> list[Report]:
    """Load all reports of a run in the order of their steps; skip damaged files."""
    loaded = (_read(path, directory) for path in sorted((directory / FOLDER).glob("step-*.json")))
    return [report for report in loaded if report is not None]


def _read(path: Path, directory: Path) -> Report | None:
    try:
        values = json.loads(path.read_text())
        return Report(**values | {"grids": {name: directory / path for name, path in values["grids"].items()}})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing or damaged


def _path(directory: Path, step: int) -> Path:
    return directory / FOLDER / f"step-{step:08d}.json"
