"""Sweeps from Python: `orchestration.start_sweep(config).table()`, `orchestration.load_sweep("results/NAME")`."""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from orchestration.config import storage_folder
from orchestration.interruption import set_last_words
from orchestration.storage import SWEEP_FILE, fetch_to_read, new_folder, resumed_folder, trial_folder
from orchestration.store.runs import fetch_run
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.ranking import ranking
from orchestration.sweep.resume import saved_config
from orchestration.sweep.run import run_sweep
from orchestration.sweep.study import accepted
from orchestration.sweep.study_storage import load_study
from orchestration.terminal.command_line import validate
from soflow.config import flatten
from soflow.config_files import read_layers
from soflow.runs import Run, load_run


def sweep_config(*layers: str | Path | dict[str, Any]) -> SweepConfig:
    """Read the configuration of a sweep from layers, of which later ones win, see `soflow.load_config`.

    Example: `sweep_config({"num_trials": 4, "training.total_steps": 300})`.

    Raises:
        ConfigError: with a line per fault.
    """
    values = read_layers(layers, SweepConfig)
    return validate(SweepConfig, values).with_given(flatten(values))


def start_sweep(config: SweepConfig) -> Sweep:
    """Run a sweep to its end on Ray, with MLflow records, and return it. Call it from the main thread.

    With `resume` in the configuration, continue a sweep, or extend it to `num_trials`.

    Raises:
        ConfigError, DataError, TrackingError: before anything starts.
        KeyboardInterrupt: if the sweep was interrupted; the command to resume it was printed.
    """
    if config.resume is None and config.name is None:
        config = config.model_copy(update={"name": new_folder(config).name})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if run_sweep(config, lambda folder, attach: None) == "KILLED":
            raise KeyboardInterrupt
    finally:  # the process lives on
        set_last_words(None)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return load_sweep(config.resume or str(config.name), config.storage)


def load_sweep(name: str | Path, storage: str | Path = "results") -> Sweep:
    """Load a sweep, finished or not, by its folder or by its name in `storage`.

    Raises:
        ConfigError: if there is no such sweep.
    """
    folder = resumed_folder(storage_folder(storage), str(name), SWEEP_FILE, "name")
    fetch_to_read(folder)
    return Sweep(folder)


class Sweep:
    """Sweep in a folder.

    Attributes:
        folder: contains sweep.yaml, the study and a folder per trial.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __repr__(self) -> str:
        return f"<sweep {self.folder.name}: {len(self.table())} of {self.config.resolved_num_trials} trials ended>"

    @functools.cached_property
    def config(self) -> SweepConfig:
        return saved_config(self.folder)

    @property
    def study(self) -> optuna.Study:
        """Study of the sweep, for Optuna's own plots and analyses; leave it unchanged."""
        return load_study(self.config, self.folder)

    def table(self) -> pd.DataFrame:
        """Return the trials that ended, the best first: searched values, state, metrics and folder of each."""
        trials = accepted(self.study.get_trials(deepcopy=False))
        return ranking(trials, self.config, search_space.build(self.config), self.folder)

    def trial(self, number: int) -> Run:
        """Return a trial's run.

        Raises:
            ConfigError: if there is no such trial.
        """
        folder = trial_folder(self.folder, number)
        fetch_run(folder)
        return load_run(folder)

    def best(self) -> Run:
        """Return the run of the best trial that finished and keeps all constraints.

        Raises:
            LookupError: if there is none.
        """
        table = self.table()
        good = (table["state"] == "finished") & table.get("feasible", True)
        if not good.any():
            raise LookupError(f"no trial of {self.folder.name} finished within its constraints")
        return self.trial(int(table.loc[good, "trial"].iloc[0]))
