"""What follows a sweep while it runs: records every trial in MLflow and draws the live table."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from orchestration.config import EXPERIMENT, FLUSH_S, SweepConfig
from orchestration.environment import environment_tags
from orchestration.folders import resume_flags, trial_folder
from orchestration.live import LiveTable, Row
from orchestration.search import RESULT_REASON, RESULT_STATUS
from orchestration.search_space import trial_config
from orchestration.summary import Summary
from orchestration.tracking import Tracker
from soflow.config import config_hash, flatten, to_dict

SPOOL = "spool"


@functools.cache
def the_tracker(uri: str, folder: Path) -> Tracker:
    """The one writer of a sweep in this process, for the sweep itself and for the monitor that Tune holds."""
    return Tracker(uri, EXPERIMENT, folder / SPOOL)


def sweep_tags(config: SweepConfig, folder: Path) -> dict[str, str]:
    """Tags that a sweep's run and those of its trials share."""
    names = {"objective": config.objective.name, "dataset": config.dataset.name, "sweep": folder.name}
    return environment_tags() | names


def start_record(config: SweepConfig, folder: Path) -> None:
    """Open the sweep's own run in MLflow, the parent of its trials' runs."""
    tags = sweep_tags(config, folder) | {"soflow.kind": "sweep", "config_hash": config_hash(config.run)}
    tracker = the_tracker(config.resolved_tracking_uri, folder)
    tracker.start_run(folder.name, folder.name, flatten(to_dict(config)), tags)


def end_record(config: SweepConfig, folder: Path, status: str, summary: Summary | None) -> None:
    """Close the sweep's own run with its summary, if there is one; say so if records could not be delivered."""
    tracker = the_tracker(config.resolved_tracking_uri, folder)
    if summary is not None:
        tracker.log_metrics(folder.name, summary.metrics, step=summary.num_trials)
        for path in summary.files:
            tracker.log_artifact(folder.name, path)
    tracker.end_run(folder.name, status)
    if undelivered := tracker.close(FLUSH_S):
        print(
            f"{undelivered} records have not reached {config.resolved_tracking_uri}; they are kept in {folder / SPOOL} "
            f"and sent by: python experiments/sweep_schedule.py {resume_flags(config, folder)}"
        )


@dataclass
class SweepMonitor(tune.Callback):
    """The one writer of a sweep. Tune pickles it before it starts and unpickles it on a resume: it opens in `setup`."""

    config: SweepConfig
    folder: Path
    rows: dict[str, Row] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "folder": self.folder, "rows": {}}

    def setup(self, stop=None, num_samples=None, total_num_samples=None, **info: Any) -> None:
        self.tracker = the_tracker(self.config.resolved_tracking_uri, self.folder)
        self.common_tags = sweep_tags(self.config, self.folder)
        self.table = LiveTable(self.config.num_trials, self.config.training.total_steps)
        self.table.start()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number, point = trial.config["number"], trial.config["point"]
        self.rows[trial.trial_id] = self.table.row(number, point)
        config = trial_config(self.config.run, point)
        tags = self.common_tags | {
            "soflow.kind": "trial",
            "trial_id": trial.trial_id,
            "optuna_number": str(number),
            "config_hash": config_hash(config),
            "folder": str(trial_folder(self.folder, number)),
        }
        name = f"{self.folder.name}-{number:04d}"
        self.tracker.start_run(self._key(trial), name, flatten(to_dict(config)), tags, parent=self.folder.name)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        row, key = self.rows[trial.trial_id], self._key(trial)
        row.update(result)
        if result[RESULT_STATUS] == "failed":
            self.tracker.set_tags(key, {"failure": result[RESULT_REASON]})
            if result.get("details"):
                self._write_details(trial, result["details"])
        else:
            self.tracker.log_metrics(key, result["metrics"], result["step"])
            self.tracker.log_image(key, Path(result["grid"]), "samples", result["step"])
            self.tracker.set_tags(key, result["facts"])
        self.table.refresh()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result, row, key = trial.last_result, self.rows[trial.trial_id], self._key(trial)
        failed = result[RESULT_STATUS] == "failed"
        row.state = {"failed": "failed", "finished": "finished", "running": "stopped"}[result[RESULT_STATUS]]
        self.tracker.set_tags(key, {"state": row.state})
        if not failed:
            final = {f"final/{name}": value for name, value in result["metrics"].items()}
            self.tracker.log_metrics(key, final, result["step"])
            folder = trial_folder(self.folder, trial.config["number"])
            self.tracker.log_artifact(key, folder / "config.yaml")
        self.tracker.end_run(key, "FAILED" if failed else "FINISHED")
        self.table.refresh()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        row, key = self.rows[trial.trial_id], self._key(trial)
        row.state, row.reason = "failed", "its process was lost"
        self.tracker.set_tags(key, {"state": "failed", "failure": row.reason})
        self.tracker.end_run(key, "FAILED")
        self.table.refresh()

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.table.stop()
        for trial in trials:
            row = self.rows.get(trial.trial_id)
            if row is not None and row.state in ("starting", "running"):
                self.tracker.end_run(self._key(trial), "KILLED")

    def _key(self, trial: Trial) -> str:
        return f"{self.folder.name}/{trial.config['number']:04d}"

    def _write_details(self, trial: Trial, details: str) -> None:
        path = trial_folder(self.folder, trial.config["number"]) / "failure.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(details)
        self.tracker.log_artifact(self._key(trial), path)
