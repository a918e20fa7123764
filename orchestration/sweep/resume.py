"""Whether an interrupted sweep's files can be gone on with: what is damaged or foreign is refused by its name.

Ray Tune itself starts a new experiment in the same folder where it cannot read its state. Its state can be done
without, though: the study knows the trials, and their folders hold their reports and checkpoints.
"""

from __future__ import annotations

import json
import pickletools
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestration.config import SweepConfig
from orchestration.storage import SWEEP_FILE
from soflow.config import describe
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml

TUNE_FOLDER = "tune"
TUNER_FILE, STATE_FILES = "tuner.pkl", "experiment_state-*.json"


def own_config(folder: Path, changes: dict[str, Any]) -> SweepConfig:
    """A sweep's own configuration with some fields changed.

    Raises:
        ConfigError: naming the file and what is wrong in it.
    """
    path = folder / SWEEP_FILE
    try:
        return SweepConfig.model_validate(read_yaml(path) | changes)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, SweepConfig)}") from None


def check_state(config: SweepConfig, folder: Path) -> bool:
    """Make sure that the files of an interrupted sweep are whole and belong together.

    Returns:
        Whether Ray Tune has state to restore; if not, the study and the trials' folders are all there is.

    Raises:
        ConfigError: naming the file and what to do.
    """
    from orchestration.sweep.study import STUDY_FILE

    if config.study_storage is None:
        _check_journal(folder / STUDY_FILE)
    trials = _trials_of_tune(folder.absolute() / TUNE_FOLDER)
    if trials:
        _check_study_has(trials, config, folder)
    return trials is not None


def _trials_of_tune(folder: Path) -> list[dict[str, Any]] | None:
    """The configurations of Tune's trials, from its newest state; None if it had not saved any yet."""
    states = sorted(folder.glob(STATE_FILES))
    tuner = folder / TUNER_FILE
    if not states or not tuner.exists():
        if states:
            raise ConfigError(f"{tuner}: is missing; {_remedy(folder)}")
        return None
    try:
        # Read without running it.
        strings = {value for _, value, _ in pickletools.genops(tuner.read_bytes()) if isinstance(value, str)}
    except Exception as error:  # of many kinds, for bytes that are no pickle
        raise ConfigError(f"{tuner}: is damaged ({error}); {_remedy(folder)}") from None
    if str(folder.parent) not in strings:
        raise ConfigError(f"{tuner}: belongs to a sweep in another folder, or this one was moved; {_remedy(folder)}")
    try:
        return [json.loads(trial)["config"] for trial, _ in json.loads(states[-1].read_bytes())["trial_data"]]
    except (ValueError, KeyError, TypeError) as error:
        older = f", or the file alone to go on from {states[-2].name}" if len(states) > 1 else ""
        raise ConfigError(f"{states[-1]}: is damaged ({error}); {_remedy(folder)}{older}") from None


def _remedy(folder: Path) -> str:
    return f"delete the folder {folder} to go on from the study and the trials' own reports"


def _check_journal(path: Path) -> None:
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]  # a last line without end is what a killed process had begun
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{path}: line {number} is damaged ({error}); put a copy in its place, or start a new sweep"
            ) from None


def _check_study_has(trials: list[dict[str, Any]], config: SweepConfig, folder: Path) -> None:
    from orchestration.sweep.study import STUDY_FILE, load_study

    where = config.study_storage or folder / STUDY_FILE
    try:
        known = load_study(config, folder).get_trials(deepcopy=False)
    except KeyError:
        raise ConfigError(f"{where}: holds no study of this sweep, which has {len(trials)} trials") from None
    for trial in trials:
        number, point = trial["number"], trial["point"]
        params = known[number].params if number < len(known) else None
        if params is None or any(point.get(path, value) != value for path, value in params.items()):
            what = "is not in it" if params is None else "is another one in it"
            raise ConfigError(f"{where}: trial {number} of {folder / TUNE_FOLDER} {what}; it is not this sweep's study")
