"""Resuming a sweep or run: where it is, what the command line may change, and that it is no copy of another."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from orchestration.config import LaunchConfig, TrainConfig
from orchestration.storage import SPOOL
from orchestration.store.location import store_of, url_or_path
from orchestration.terminal.command_line import validate
from orchestration.tracking import schema
from soflow.config import flatten, override, to_dict
from soflow.config_base import ConfigError
from soflow.files import write_atomic

Config = TypeVar("Config", bound=LaunchConfig)
MAY_CHANGE = (*schema.MAY_CHANGE, "tags", "note")
"""Fields and sections that a resume takes from its command line; all others are those of the sweep or run."""
STEPS = "training.total_steps"
"""Field that extends a run."""
LOCATION_FILE = "location"
"""File in the spool with the absolute path of the sweep's or run's folder."""


def resumed(saved: Config, config: Config, folder: Path) -> Config:
    """Return the configuration of an existing sweep or run, with what the command line changes.

    Args:
        saved: configuration in the folder.
        config: configuration of the command line.
        folder: of the sweep or run; its parent is the storage, wherever it was before.

    Raises:
        ConfigError: if the command line gives another value for a field that cannot change.
    """
    storage = folder.absolute().parent
    before, values = flatten(to_dict(saved)), flatten(to_dict(config))
    changes = {"storage": url_or_path(storage)}
    for path in config.given:
        if path.partition(".")[0] in MAY_CHANGE:
            changes[path] = values[path]
        elif path == "storage" and config.storage != storage and not config.storage.samefile(storage):
            where = f"{folder.name} is in {url_or_path(storage)}"
            raise ConfigError(f"storage = {url_or_path(config.storage)}: {where}; leave storage out")
        elif path not in ("resume", "storage") and values.get(path) != before.get(path):
            if path == STEPS and not (reason := _no_extension(saved, values[STEPS])):
                changes[path] = values[path]
                continue
            why = f" ({reason})" if path == STEPS else ""
            raise ConfigError(
                f"{path} = {values.get(path)}: cannot change on resume, it is {before.get(path)}{why}; "
                f"{', '.join(name for name in MAY_CHANGE if name in type(saved).model_fields)} can"
            )
    return validate(type(saved), override(to_dict(saved), changes))


def _no_extension(saved: LaunchConfig, steps: int) -> str:
    """Say why a run cannot be extended to this many steps; empty if it can."""
    if not isinstance(saved, TrainConfig):
        return "the trials of a sweep are compared at equal steps"
    if steps < saved.training.total_steps:
        return "only more steps can be added"
    schedule = saved.objective.progress_schedule
    return f"{schedule} depends on it, so all earlier steps would have differed" if schedule else ""


def check_original(folder: Path) -> None:
    """Check that a folder is no copy of another, into whose MLflow runs it would write; a moved folder is none.

    Raises:
        ConfigError: naming the original.
    """
    folder = folder.absolute()
    if store_of(folder):  # every machine that works on it has a copy
        return
    path = folder / SPOOL / LOCATION_FILE
    original = Path(path.read_text()) if path.exists() else folder
    if (original / SPOOL / LOCATION_FILE).exists() and not original.samefile(folder):
        raise ConfigError(
            f"resume = {folder}: is a copy of {original} and would write into its runs in MLflow; resume the original, "
            "or delete it first"
        )


def note_location(folder: Path) -> None:
    """Write down where a sweep or run is, for `check_original`."""
    path = folder / SPOOL / LOCATION_FILE
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, str(folder.absolute()))
