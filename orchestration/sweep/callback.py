"""What follows a sweep while it runs: records every trial in MLflow and shows how it goes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from orchestration.config import EXPERIMENT, FLUSH_S, SLOWEST_UPLOAD, SweepConfig
from orchestration.storage import SWEEP_FILE, resume_command, trial_folder
from orchestration.sweep.population import guidance_of, is_exchange
from orchestration.sweep.ranking import Summary
from orchestration.sweep.ray_search import RESULT_REASON, RESULT_STATUS, current_point
from orchestration.sweep.search_space import CASE, trial_config
from orchestration.sweep.study import STUDY_FILE
from orchestration.terminal.progress import SweepProgress
from orchestration.terminal.views import View, make_view
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.notes import of_dataset, of_end, of_sweep, of_trial
from orchestration.tracking.tracker import Tracker
from soflow.config import config_hash, flatten, to_dict

SPOOL = "spool"
BEST_TRIAL = "best_trial"
"""File with the number of the trial that has the tag `best`."""
ENDS = {"failed": "failed", "finished": "finished", "running": "stopped"}
"""How a trial ended, by the status of its last result."""
MAY_CHANGE = ("num_trials", "search", "progress", "resume")
"""What a resume may change of a sweep's configuration, which MLflow does not allow of parameters."""


@functools.cache
def the_tracker(uri: str, folder: Path) -> Tracker:
    """The one writer of a sweep in this process, for the sweep itself and for the monitor that Tune holds."""
    return Tracker(uri, EXPERIMENT, folder / SPOOL)


@dataclass
class _Sweep:
    """What a sweep in this process has besides its writer."""

    config: SweepConfig
    view: View
    progress: SweepProgress


_sweeps: dict[Path, _Sweep] = {}
"""By folder. The monitor that Tune restores holds the configuration of the sweep's first start; here is the present."""


def sweep_tags(config: SweepConfig, folder: Path) -> dict[str, str]:
    """Tags that a sweep's run and those of its trials share."""
    names = {"objective": config.objective.name, "dataset": config.dataset.name, "sweep": folder.name}
    return environment_tags() | names


def start_record(config: SweepConfig, folder: Path) -> None:
    """Open the sweep's own run in MLflow, the parent of its trials' runs."""
    tags = sweep_tags(config, folder) | {"soflow.kind": "sweep", "config_hash": config_hash(config.run)}
    tags["folder"] = str(folder)
    tracker = the_tracker(config.resolved_tracking_uri, folder)
    params = flatten(to_dict(config))
    tags |= {name: params.pop(name) for name in MAY_CHANGE}
    tracker.start_run(folder.name, folder.name, params, tags)
    tracker.describe(folder.name, of_sweep(config, folder))
    tracker.log_artifact(folder.name, folder / SWEEP_FILE)
    progress = SweepProgress(config.num_trials, config.training.total_steps, config.max_concurrent)
    _sweeps[folder] = _Sweep(config, make_view(config.progress, progress), progress)


def end_record(config: SweepConfig, folder: Path, status: str, summary: Summary | None) -> None:
    """Close the sweep's own run with its summary, if there is one; say so if records could not be delivered."""
    tracker = the_tracker(config.resolved_tracking_uri, folder)
    to_upload = 0
    if summary is not None:
        tracker.log_metrics(folder.name, summary.metrics, step=summary.num_trials)
        for path in summary.files:
            tracker.log_artifact(folder.name, path)
        tracker.describe(folder.name, of_sweep(config, folder, summary))
    if config.study_storage is None and (folder / STUDY_FILE).exists():
        tracker.log_artifact(folder.name, folder / STUDY_FILE)  # for those who see MLflow, but not this folder
    tracker.end_run(folder.name, status)
    if summary is not None and "best/trial" in summary.metrics:
        to_upload = _register_best(tracker, folder, int(summary.metrics["best/trial"]))
    _sweeps.pop(folder).view.summarised(status, summary.metrics if summary else {})
    if undelivered := tracker.close(FLUSH_S + to_upload / SLOWEST_UPLOAD):
        print(
            f"{undelivered} records have not reached {config.resolved_tracking_uri}; they are kept in {folder / SPOOL} "
            f"and sent by: {resume_command(config, folder)}"
        )


def _register_best(tracker: Tracker, folder: Path, number: int) -> int:
    """Tag the best trial, and it alone, and register its model; the bytes to upload."""
    from orchestration.tracking.mlflow_model import register  # imports torch

    known = folder / BEST_TRIAL
    if known.exists() and (before := int(known.read_text())) != number:
        tracker.set_tags(f"{folder.name}/{before:04d}", {"best": "false"})
    known.write_text(str(number))
    key = f"{folder.name}/{number:04d}"
    tracker.set_tags(key, {"best": "true"})
    return register(tracker, key, trial_folder(folder, number), f"{folder.name}-{number:04d}")


class SweepMonitor(tune.Callback):
    """The one writer of a sweep. Tune pickles it before it starts and unpickles it on a resume: it opens in `setup`."""

    def __init__(self, config: SweepConfig, folder: Path):
        self.config, self.folder = config, folder

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "folder": self.folder}

    def setup(self, stop=None, num_samples=None, total_num_samples=None, **info: Any) -> None:
        sweep = _sweeps[self.folder]
        self.config, self.view, self.progress = sweep.config, sweep.view, sweep.progress
        self.tracker = the_tracker(self.config.resolved_tracking_uri, self.folder)
        self.common_tags = sweep_tags(self.config, self.folder)
        self.facts: dict[str, dict[str, str]] = {}
        self.datasets: set[str] = set()
        self._counted_earlier = False
        self.view.begin(self.folder.name)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._count_earlier(trials)
        number, point = trial.config["number"], trial.config["point"]
        config = trial_config(self.config.run, point, self.config.cases)
        tags = self.common_tags | {
            "soflow.kind": "trial",
            "trial_id": trial.trial_id,
            "optuna_number": str(number),
            "config_hash": config_hash(config),
            "folder": str(trial_folder(self.folder, number)),
            "objective": config.objective.name,
            "dataset": config.dataset.name,
            **({CASE: point[CASE]} if CASE in point else {}),
        }
        name = f"{self.folder.name}-{number:04d}"
        self.tracker.start_run(self._key(trial), name, flatten(to_dict(config)), tags, parent=self.folder.name)
        self._describe(trial)
        self.view.started(self.progress.start(number, current_point(trial.config)))

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        row, key = self.progress.report(trial.config["number"], result), self._key(trial)
        if result[RESULT_STATUS] == "failed":
            self.tracker.set_tags(key, {"failure": result[RESULT_REASON]})
            if result.get("details"):
                self._write_details(trial, result["details"])
            return
        metrics = result["metrics"] | guidance_of(self.config, current_point(trial.config))
        self.tracker.log_metrics(key, metrics, result["step"])
        for name, path in result["grids"].items():
            self.tracker.log_image(key, Path(path), name, result["step"])
        if self.facts.get(key) != result["facts"]:
            self.facts[key] = result["facts"]
            self.tracker.set_tags(key, result["facts"])
            self._tell_dataset(key, trial, result["facts"])
        if is_exchange(self.config, result["step"]):
            row.state = "waiting"
        self.view.reported(row, result["metrics"])

    def _tell_dataset(self, key: str, trial: Trial, facts: dict[str, str]) -> None:
        config = trial_config(self.config.run, current_point(trial.config), self.config.cases)
        if (data := of_dataset(config.dataset, facts)) is not None:
            self.tracker.log_dataset(key, **data)
            if data["digest"] not in self.datasets:
                self.datasets.add(data["digest"])
                self.tracker.log_dataset(self.folder.name, **data)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result, key = trial.last_result, self._key(trial)
        failed = result[RESULT_STATUS] == "failed"
        state = ENDS[result[RESULT_STATUS]]
        self.tracker.set_tags(key, {"state": state})
        if not failed:
            final = {f"final/{name}": value for name, value in result["metrics"].items()}
            self.tracker.log_metrics(key, final, result["step"])
            folder = trial_folder(self.folder, trial.config["number"])
            if (folder / "config.yaml").exists():  # else it was stopped at an earlier rung
                self.tracker.log_artifact(key, folder / "config.yaml")
        self._describe(trial, of_end(state, result), ("failure.txt",) if result.get("details") else ())
        self._end(trial, state)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        reason = "its process was lost"
        self.tracker.set_tags(self._key(trial), {"state": "failed", "failure": reason})
        self._end(trial, "failed", reason)

    def _end(self, trial: Trial, state: str, reason: str = "") -> None:
        key = self._key(trial)
        self.tracker.end_run(key, "FAILED" if state == "failed" else "FINISHED")
        self.facts.pop(key, None)
        self.view.ended(self.progress.end(trial.config["number"], state, reason))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Close what is still open: trials that an interruption cut off, and those that an earlier one lost."""
        self.view.finish()
        states = {self._key(trial): trial.status for trial in trials}
        for key in self.tracker.open_runs():
            if key == self.folder.name:
                continue
            if key not in states:
                self.tracker.set_tags(key, {"state": "failed", "failure": "it was lost when the sweep was interrupted"})
            # TERMINATED and open: Tune noted its end, but the process died before it was recorded here.
            ends = {None: "FAILED", Trial.ERROR: "FAILED", Trial.TERMINATED: "FINISHED"}
            unfinished = int(key.rsplit("/", 1)[1]) in self.progress.running
            self.tracker.end_run(key, "KILLED" if unfinished else ends.get(states.get(key), "KILLED"))

    def _count_earlier(self, trials: list[Trial]) -> None:
        """On a resume, take in the trials that were over before."""
        if self._counted_earlier:
            return
        self._counted_earlier = True
        for trial in filter(Trial.is_finished, trials):
            result = trial.last_result or {}
            state = ENDS[result.get(RESULT_STATUS, "failed")]
            self.progress.take_in(trial.config["number"], trial.config["point"], state, result.get("fid", math.nan))

    def _describe(self, trial: Trial, end: str = "", files: tuple[str, ...] = ()) -> None:
        note = of_trial(self.folder, trial.config["number"], current_point(trial.config), end, files)
        self.tracker.describe(self._key(trial), note)

    def _key(self, trial: Trial) -> str:
        return f"{self.folder.name}/{trial.config['number']:04d}"

    def _write_details(self, trial: Trial, details: str) -> None:
        path = trial_folder(self.folder, trial.config["number"]) / "failure.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(details)
        self.tracker.log_artifact(self._key(trial), path)
