"""Checks that an interrupted sweep can be resumed; damaged files are rejected by name."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from orchestration.storage import SWEEP_FILE
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import validate
from soflow.config import describe, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml


def saved_config(folder: Path) -> SweepConfig:
    """Read the configuration of an existing sweep.

    Raises:
        ConfigError: naming the file and the fault in it.
    """
    path = folder / SWEEP_FILE
    try:
        return SweepConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, SweepConfig)}") from None


def with_more_seeds(saved: SweepConfig, config: SweepConfig) -> tuple[SweepConfig, SweepConfig]:
    """Add the seeds that a command line adds to those that a comparison has; the same command adds them once.

    Args:
        saved: configuration in the sweep's folder.
        config: configuration of the command line.

    Returns:
        Both with all additions.

    Raises:
        ConfigError: if the addition is not valid.
    """
    added = config.more_seeds if "more_seeds" in config.given else ()
    if not added or saved.more_seeds[-len(added) :] == added:
        return saved, config.model_copy(update={"more_seeds": saved.more_seeds})
    every = (*saved.more_seeds, *added)
    extended = validate(SweepConfig, to_dict(saved) | {"more_seeds": every, "num_trials": None})
    return extended, config.model_copy(update={"more_seeds": every})


def check_journal(path: Path) -> None:
    """Check that every line of a study's journal is whole.

    Raises:
        ConfigError: naming the line and the remedy.
    """
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]  # a killed process may have left an incomplete last line
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{path}: line {number} is damaged ({error}); restore the file from a copy, or start a new sweep"
            ) from None
