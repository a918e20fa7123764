"""Checks that an interrupted sweep can be resumed; damaged files are rejected by name."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from orchestration.storage import SWEEP_FILE
from orchestration.sweep.config import SweepConfig
from soflow.config import describe
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
