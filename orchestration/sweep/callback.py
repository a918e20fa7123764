"""Recording of a sweep in MLflow and its progress on the terminal, from a Ray Tune callback."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.experiment import Trial

from orchestration.config import FLUSH_S, SLOWEST_UPLOAD
from orchestration.resuming import STEPS
from orchestration.storage import SPOOL, STUDY_FILE, SWEEP_FILE, resume_command, trial_folder
from orchestration.store.location import url_or_path
from orchestration.store.runs import CHECKPOINTS, fetch_run
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.notes import end_note, sweep_note, trial_note, trials_view, view_name
from orchestration.sweep.ranking import STATES, Summary
from orchestration.sweep.ray_search import REASON, STATUS, ticket_of
from orchestration.sweep.search_space import SearchSpace
from orchestration.sweep.study import LAST_RESULT, reason_unusable
from orchestration.sweep.ticket import trial_config
from orchestration.terminal.progress import SweepProgress
from orchestration.terminal.views import make_view
from orchestration.terminal.webhook import Webhook
from orchestration.tracking import schema
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.notes import dataset_entry
from orchestration.tracking.tracker import Tracker
from soflow.config import RunConfig, config_hash, flatten, to_dict
from soflow.config_base import ConfigError
from soflow.files import error_of_disk, read_number, write_atomic
from soflow.training.reports import CONFIG_FILE

WATCH_S = 10.0
HANGING = "its worker may hang; one that does not answer for five minutes is replaced"
BEST_TRIAL = "best_trial"
"""File with the number of the trial that has the tag `best`."""
FAILURE_FILE = "failure.txt"
ENDS = {"failed": "failed", "finished": "finished", "running": "stopped"}
"""State of a trial that has ended, by the status of its last result."""
STATUSES = {"failed": "FAILED", "finished": "FINISHED", "stopped": "KILLED"}
"""Status of a trial's run in MLflow by its state. Only finished trials have `final/` metrics, so that these compare."""


class SweepRecord:
    """MLflow logging of one sweep: its run, and the runs of its trials as children.

    Args:
        folder: absolute path of the sweep's folder.
    """

    def __init__(self, config: SweepConfig, folder: Path, space: SearchSpace):
        self.config, self.folder, self.space = config, folder, space
        self.tracker = Tracker(config.resolved_tracking_uri, schema.EXPERIMENT, folder / SPOOL)
        self.webhook = Webhook(folder.name)
        self.common_tags = (
            config.own_tags
            | environment_tags()
            | {
                schema.OBJECTIVE: config.objective.name,
                schema.DATASET: config.dataset.name,
                schema.SWEEP: folder.name,
            }
        )

    def key(self, number: int) -> str:
        """Return the tracker's key of a trial's run."""
        return f"{self.folder.name}/{number:04d}"

    def open_trials(self) -> dict[int, str]:
        """Return the keys of the trials' runs that were started and have not ended, by number."""
        return {int(key.rsplit("/", 1)[1]): key for key in self.tracker.open_runs() if key != self.folder.name}

    def end_open_trials(self) -> None:
        """End the runs of trials that an interruption cut off."""
        for key in self.open_trials().values():
            self.tracker.end_run(key, "KILLED")

    def start(self) -> None:
        """Open the sweep's own run."""
        tags = self.common_tags | {
            schema.KIND: schema.SWEEP_KIND,
            schema.CONFIG_HASH: config_hash(self.config.run),
            schema.FOLDER: url_or_path(self.folder),
            schema.STARTED_MS: str(int(time.time() * 1000)),
        }
        params = flatten(to_dict(self.config)) | {"cases": [str(case) for case in self.config.cases]}
        changing = {*schema.MAY_CHANGE, *schema.OF_A_START}
        tags |= {path: params.pop(path) for path in list(params) if path.partition(".")[0] in changing}
        del params["tags"], params["note"]
        self.tracker.start_run(self.folder.name, self.folder.name, params, tags)
        self.tracker.describe(self.folder.name, sweep_note(self.config, self.folder, self.space))
        view = trials_view(self.config, self.folder, self.space)
        self.tracker.save_view(self.folder.name, view_name(self.folder), view)
        self.tracker.log_artifact(self.folder.name, self.folder / SWEEP_FILE)

    def end(self, status: str, summary: Summary | None) -> None:
        """Close the sweep's own run, with its summary if it has one."""
        key = self.folder.name
        if summary is not None:
            self.tracker.log_metrics(key, summary.metrics, step=summary.num_trials)
            for path in summary.files:
                self.tracker.log_artifact(key, path)
            self.tracker.describe(key, sweep_note(self.config, self.folder, self.space, summary))
        if self.config.study_storage is None and (self.folder / STUDY_FILE).exists():
            self.tracker.log_artifact(key, self.folder / STUDY_FILE)  # for readers without access to this folder
        self.tracker.end_run(key, status)
        self.webhook.sweep_ended(status, summary.metrics if summary else {})

    def attach(self, path: Path) -> None:
        """Attach a file to the sweep's own run."""
        self.tracker.log_artifact(self.folder.name, path)

    def register_best(self, number: int) -> int:
        """Give the best trial alone the tag `best` and register its model; return the bytes to upload."""
        from orchestration.tracking.mlflow_model import register  # imports torch

        path = self.folder / BEST_TRIAL
        before = read_number(path)
        if before is not None and before != number:
            self.tracker.set_tags(self.key(before), {schema.BEST: "false"})
        write_atomic(path, str(number))
        self.tracker.set_tags(self.key(number), {schema.BEST: "true"})
        name = f"{self.folder.name}-{number:04d}"
        fetch_run(trial_folder(self.folder, number))
        return register(self.tracker, self.key(number), trial_folder(self.folder, number), name)

    def close(self, upload_bytes: int = 0) -> None:
        """Deliver what is left; print a note if the server does not take it in time."""
        if undelivered := self.tracker.close(FLUSH_S + upload_bytes / SLOWEST_UPLOAD):
            print(
                f"{undelivered} records have not reached {self.config.resolved_tracking_uri}; they are kept in "
                f"{self.folder / SPOOL} and sent by: {resume_command(self.folder)}"
            )


class MlflowCallback(tune.Callback):
    """Records every trial in MLflow and shows the progress of the sweep."""

    def __init__(self, record: SweepRecord, slots: int):
        self.record, self.config, self.folder = record, record.config, record.folder
        self.tracker = record.tracker
        planned = [self._steps_of({schema.CASE: name}) for name, _ in self.config.planned_trials]
        total_steps = self.config.training.total_steps
        self.progress = SweepProgress(self.config.resolved_num_trials, total_steps, slots, sum(planned) or None)
        self.view = make_view(self.config.progress, self.progress)
        self.facts: dict[str, dict[str, str]] = {}
        self.datasets: set[str] = set()
        self._ended = threading.Event()

    def __reduce__(self):
        return object, ()  # as OptunaSearcher: Tune saves it for a restore, which soflow never does

    def count_finished(self, trials: list[FrozenTrial], rejected: list[FrozenTrial], replay: set[int]) -> None:
        """On a resume, count the trials that ended before, and the points that were rejected."""
        self.progress.rejected = len(rejected)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in replay:
                fid = trial.user_attrs.get(LAST_RESULT, {}).get("metrics", {}).get(schema.FID, math.nan)
                steps = self._steps_of(trial.params)
                self.progress.count_finished(trial.number, trial.params, STATES[trial.state], fid, steps)
                if trial.state == TrialState.COMPLETE:
                    self.record.webhook.count_finished(trial.user_attrs[LAST_RESULT]["metrics"]["fid"])

    def rejected(self, number: int, reason: str) -> None:
        """Show that a point was drawn again."""
        self.progress.rejected += 1
        self.view.rejected(number, reason)

    def setup(self, stop=None, num_samples=None, total_num_samples=None, **info: Any) -> None:
        self.view.begin(self.folder.name)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def stop_showing(self) -> None:
        """End the progress output and the watch over silent trials."""
        self._ended.set()
        self.view.finish()

    def _watch(self) -> None:
        """Name the trials that do not report, until the sweep ends."""
        named: set[int] = set()
        while not self._ended.wait(WATCH_S):
            silent = self.progress.silent()
            for row, seconds in silent:
                if row.number not in named:
                    error = error_of_disk(self.folder)
                    reason = f"{self.folder} cannot be written ({error.strerror})" if error else HANGING
                    self.view.silent(row, seconds, reason)
            named = {row.number for row, _ in silent}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        ticket = ticket_of(trial)
        key = self.record.key(ticket.number)
        tags = self.record.common_tags | {
            schema.KIND: schema.TRIAL_KIND,
            schema.TRIAL_ID: trial.trial_id,
            schema.NUMBER: str(ticket.number),
            schema.FOLDER: url_or_path(trial_folder(self.folder, ticket.number)),
        }
        tags |= {schema.CASE: ticket.point[schema.CASE]} if schema.CASE in ticket.point else {}
        try:
            config = self._config(trial)
            params = flatten(to_dict(config))
            tags |= {schema.OBJECTIVE: config.objective.name, schema.DATASET: config.dataset.name}
            tags[schema.CONFIG_HASH] = config_hash(config)
        except ConfigError:  # the trial fails at its first step, with the reason
            params = ticket.point
        name = f"{self.folder.name}-{ticket.number:04d}"
        self.tracker.start_run(key, name, params, tags, parent=self.folder.name)
        self.tracker.describe(key, trial_note(self.folder, ticket))
        self.view.started(self.progress.start(ticket.number, ticket.point, self._steps_of(ticket.point)))

    def _steps_of(self, point: dict[str, Any]) -> int:
        """Return a trial's number of steps, which its case or its point may set."""
        changes = next((case.changes for case in self.config.cases if case.name == point.get(schema.CASE)), {})
        return int((changes | point).get(STEPS, self.config.training.total_steps))

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any) -> None:
        key = self._key(trial)
        row = self.progress.report(trial.config["number"], result)
        if result[STATUS] == "failed":
            self.tracker.set_tags(key, {schema.FAILURE: result[REASON]})
            if result.get("details"):
                self._write_details(trial, result["details"])
            return
        prefix = schema.RUNG if result["is_rung"] else ""
        metrics = {f"{prefix}{name}": value for name, value in result["metrics"].items()}
        for step, values in result["curve"]:
            self.tracker.log_metrics(key, {f"{prefix}{name}": value for name, value in values.items()}, step)
        self.tracker.log_metrics(key, metrics, result["step"])
        for name, path in result["grids"].items():
            self.tracker.log_image(key, Path(path), name, result["step"])
        if self.facts.get(key) != result["facts"]:
            self.facts[key] = result["facts"]
            self.tracker.set_tags(key, result["facts"])
            self._log_dataset(key, trial, result["facts"])
        self.view.reported(row, metrics)

    def _log_dataset(self, key: str, trial: Trial, facts: dict[str, str]) -> None:
        if (entry := dataset_entry(self._config(trial).dataset, facts)) is not None:
            self.tracker.log_dataset(key, **entry)
            if entry["digest"] not in self.datasets:
                self.datasets.add(entry["digest"])
                self.tracker.log_dataset(self.folder.name, **entry)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result, key, ticket = trial.last_result, self._key(trial), ticket_of(trial)
        state = ENDS[result[STATUS]]
        if state == "finished" and (reason := reason_unusable(self.config, result)):
            state, result = "failed", result | {REASON: reason}
            self.tracker.set_tags(key, {schema.FAILURE: reason})
        self.tracker.set_tags(key, {schema.STATE: state})
        if state == "finished":
            final = {f"{schema.FINAL}{name}": value for name, value in result["metrics"].items()}
            self.tracker.log_metrics(key, final, result["step"])
            fetch_run(trial_folder(self.folder, ticket.number), CHECKPOINTS)
            config_file = trial_folder(self.folder, ticket.number) / CONFIG_FILE
            if config_file.exists():  # else the trial was stopped at an earlier rung
                self.tracker.log_artifact(key, config_file)
        files = (FAILURE_FILE,) if result.get("details") else ()
        self.tracker.describe(key, trial_note(self.folder, ticket, end_note(state, result), files))
        self._end(trial, state, result[REASON] if state == "failed" else "")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        reason = "its process was lost"
        if trial.config["number"] not in self.progress.running:  # Tune starts none whose process does not start
            self.on_trial_start(iteration, trials, trial)
            reason = "its process did not start; a node may lack the dependencies"
        self.tracker.set_tags(self._key(trial), {schema.STATE: "failed", schema.FAILURE: reason})
        self._end(trial, "failed", reason)

    def _end(self, trial: Trial, state: str, reason: str = "") -> None:
        self.tracker.end_run(self._key(trial), STATUSES[state])
        self.facts.pop(self._key(trial), None)
        row = self.progress.end(trial.config["number"], state, reason)
        self.view.ended(row)
        self.record.webhook.trial_ended(row)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.stop_showing()
        self.record.end_open_trials()

    def _config(self, trial: Trial) -> RunConfig:
        return trial_config(self.config.run, ticket_of(trial).point, self.config.cases)

    def _key(self, trial: Trial) -> str:
        return self.record.key(trial.config["number"])

    def _write_details(self, trial: Trial, details: str) -> None:
        path = trial_folder(self.folder, trial.config["number"]) / FAILURE_FILE
        write_atomic(path, details)
        self.tracker.log_artifact(self._key(trial), path)
