"""What follows a sweep while it runs: records every trial in MLflow and draws the live table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from orchestration.config import EXPERIMENT, FLUSH_S, SweepConfig
from orchestration.folders import trial_folder
from orchestration.live import LiveTable, Row
from orchestration.search import RESULT_REASON, RESULT_STATUS
from orchestration.search_space import trial_config
from orchestration.tracking import Tracker, environment_tags
from soflow.config import config_hash, flatten, to_dict


@dataclass
class SweepMonitor(tune.Callback):
    """The one writer of a sweep. Tune pickles it before it starts and unpickles it on a resume: it opens in `setup`."""

    config: SweepConfig
    folder: Path
    rows: dict[str, Row] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "folder": self.folder, "rows": {}}

    def setup(self, stop=None, num_samples=None, total_num_samples=None, **info: Any) -> None:
        self.tracker = Tracker(self.config.resolved_tracking_uri, EXPERIMENT, self.folder / "spool")
        self.common_tags = environment_tags() | {
            "objective": self.config.objective.name,
            "dataset": self.config.dataset.name,
            "sweep": self.folder.name,
        }
        run = self.config.run
        tags = self.common_tags | {"soflow.kind": "sweep", "config_hash": config_hash(run)}
        self.tracker.start_run(self.folder.name, self.folder.name, flatten(to_dict(self.config)), tags)
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
        interrupted = [trial for trial in trials if not trial.is_finished()]
        for trial in interrupted:
            if trial.trial_id in self.rows:
                self.tracker.end_run(self._key(trial), "KILLED")
        if not interrupted:
            from orchestration.summary import write_summary

            for path in write_summary(self.config, self.folder, trials):
                self.tracker.log_artifact(self.folder.name, path)
        self.tracker.end_run(self.folder.name, "KILLED" if interrupted else "FINISHED")
        if undelivered := self.tracker.close(FLUSH_S):
            print(
                f"{undelivered} records have not reached {self.config.resolved_tracking_uri}; they are kept in "
                f"{self.folder / 'spool'} and sent by: python experiments/sweep_schedule.py --resume {self.folder.name}"
            )

    def _key(self, trial: Trial) -> str:
        return f"{self.folder.name}/{trial.config['number']:04d}"

    def _write_details(self, trial: Trial, details: str) -> None:
        path = trial_folder(self.folder, trial.config["number"]) / "failure.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(details)
        self.tracker.log_artifact(self._key(trial), path)
