"""One training run, with the same workers, checkpoints and tracker as the trials of a sweep."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestration.cluster import connected
from orchestration.config import FLUSH_S, SLOWEST_UPLOAD, ResourcesConfig, TrainConfig
from orchestration.interruption import is_interruption, received, set_last_words
from orchestration.memory_fit import MemoryBudget, check_memory, memory_budget, micro_batches_that_fit, predict_memory
from orchestration.preflight import check_inputs
from orchestration.resuming import check_original, note_location, resumed
from orchestration.storage import (
    RUN_FILE,
    SPOOL,
    check_storage,
    create,
    new_folder,
    resume_command,
    resumed_folder,
    sole_owner,
)
from orchestration.store.location import url_or_path
from orchestration.store.runs import CHECKPOINTS, fetch_run
from orchestration.terminal.command_line import validate
from orchestration.terminal.format import plain_console
from orchestration.tracking import schema
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.notes import dataset_entry, run_note
from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import check_tracking
from soflow.config import config_hash, flatten, to_dict
from soflow.config_files import read_yaml, to_yaml
from soflow.files import read_number, write_atomic
from soflow.training.reports import CONFIG_FILE, Report

RECORDED_FILE = "recorded_step"
"""File with the last step whose report is recorded in MLflow."""


def train(config: TrainConfig) -> str:
    """Run or resume one training run to its end, with progress on the terminal.

    Returns:
        "FINISHED", "FAILED" or "KILLED" (interrupted); the reason and the command to resume were printed.

    Raises:
        ConfigError, DataError, TrackingError: before anything starts, in one line.
    """
    with ExitStack() as until_the_end:
        return _train(config, until_the_end)


def _train(config: TrainConfig, until_the_end: ExitStack) -> str:
    resuming = config.resume is not None
    if config.resume is None:
        folder = new_folder(config)
    else:
        folder = resumed_folder(config.storage, config.resume, RUN_FILE)
        until_the_end.enter_context(sole_owner(folder))
        check_original(folder)
        config = resumed(validate(TrainConfig, read_yaml(folder / RUN_FILE)), config, folder)
    check_storage(config.storage, may_be_store=True)
    check_inputs(config)
    schema.check_own_tags(config.own_tags)
    check_tracking(config.resolved_tracking_uri)
    with connected(config, groups=1, meanwhile=partial(predict_memory, config)) as resources:
        budget = memory_budget(resources, groups=1)
        check_memory(config, budget)
        if resuming:
            write_atomic(folder / RUN_FILE, to_yaml(config))
        else:
            create(folder, RUN_FILE, to_yaml(config))
            until_the_end.enter_context(sole_owner(folder))
        note_location(folder)
        print(f"run {folder.name} in {url_or_path(folder)}; records: {config.mlflow_ui}", flush=True)
        return _Run(config, folder.absolute(), resuming).execute(resources, budget)


class _Run:
    """The driver of one run: asks the workers for report after report and records them."""

    def __init__(self, config: TrainConfig, folder: Path, resuming: bool):
        self.config, self.folder, self.key, self.resuming = config, folder, folder.name, resuming
        self.console = plain_console()
        self._compile_choice = ""
        self.tracker = Tracker(config.resolved_tracking_uri, schema.EXPERIMENT, folder / SPOOL)

    def execute(self, resources: ResourcesConfig, budget: MemoryBudget) -> str:
        from orchestration.tracking.mlflow_model import register  # imports torch
        from orchestration.workers.training import training_group

        run = self.config.run
        tags = (
            self.config.own_tags
            | environment_tags()
            | {
                schema.KIND: schema.RUN_KIND,
                schema.OBJECTIVE: run.objective.name,
                schema.DATASET: run.dataset.name,
                schema.CONFIG_HASH: config_hash(run),
                schema.FOLDER: url_or_path(self.folder),
            }
        )
        set_last_words(self._end_interrupted)
        params = flatten(to_dict(run))
        if self.resuming:  # maybe with more steps, but MLflow keeps a parameter's first value
            del params["training.total_steps"]
        self.tracker.start_run(self.key, self.folder.name, params, tags | {schema.STEPS: run.training.total_steps})
        self.tracker.describe(self.key, run_note(self.config, self.folder))
        group = training_group(resources, self.folder, "workers")
        status, upload_bytes = "KILLED", 0
        command = resume_command(self.folder)
        try:
            status = "FINISHED" if self._follow(group, budget) else "FAILED"
        except BaseException as error:
            # After SIGTERM, which batch systems also send to Ray's processes, anything may fail.
            if not is_interruption(error) and received() == signal.SIGINT:
                status = "FAILED"
                raise
        finally:
            try:
                if status == "KILLED":
                    self._end_interrupted()
                else:
                    self.tracker.end_run(self.key, status)
                group.close()
                if status == "FINISHED":
                    fetch_run(self.folder)
                    upload_bytes = register(self.tracker, self.key, self.folder, self.folder.name)
                if undelivered := self.tracker.close(FLUSH_S + upload_bytes / SLOWEST_UPLOAD):
                    self._say(f"{undelivered} records wait in {self.folder / SPOOL}; send them with: {command}")
            except KeyboardInterrupt:
                self._say(f"interrupted again; the records in {self.folder / SPOOL} are sent by: {command}")
        return status

    def _end_interrupted(self) -> None:
        set_last_words(None)
        self._say(f"interrupted; resume with: {resume_command(self.folder)}")
        self.tracker.end_run(self.key, "KILLED")

    def _follow(self, group, budget: MemoryBudget) -> bool:
        """Ask for reports until the run ends; return False if it failed."""
        from orchestration.workers.follow import FollowedRun

        total = self.config.training.total_steps
        # Not the newest checkpoint: its report may have been lost with the driver and has to be read again.
        recorded = self.folder / RECORDED_FILE
        step = read_number(recorded) or 0
        fetch_run(self.folder, CHECKPOINTS)
        num_workers = self.config.resources.num_workers
        micro_batches = micro_batches_that_fit(self.config.run, budget, num_workers)
        run = FollowedRun(self.config.run, self.folder, num_workers, step, micro_batches)
        columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:3])
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task("starting the training workers", total=total, completed=step)
            while step < total:
                answer = run.next_report(group)
                if answer.failure:
                    self.tracker.set_tags(self.key, {schema.FAILURE: answer.failure})
                    self._say(f"failed at step {answer.step}: {answer.failure}")
                    return False
                step = answer.step
                self._say_choice(answer.reported)
                self._record(answer.reported)
                write_atomic(recorded, str(step))
                fid = answer.reported.metrics["fid"]
                progress.update(task, completed=step, description=f"step {step}, FID {fid:.4g}")
                self._say(_line(step, answer.reported.metrics))
        self._say(
            f"samples: {url_or_path(self.folder / 'grids')}; generate more: python experiments/sample.py "
            f"{url_or_path(self.folder)}"
        )
        return True

    def _say_choice(self, report: Report) -> None:
        """Print the choice of training.compile = auto, once."""
        choice = report.facts.get(schema.COMPILE_CHOICE, "")
        if choice not in ("", self._compile_choice):
            self._compile_choice = choice
            self._say(f"training.compile = auto: {choice}")

    def _record(self, report: Report) -> None:
        self.tracker.set_tags(self.key, report.facts)
        if (entry := dataset_entry(self.config.dataset, report.facts)) is not None:
            self.tracker.log_dataset(self.key, **entry)
        for step, values in report.curve:
            self.tracker.log_metrics(self.key, values, step)
        self.tracker.log_metrics(self.key, report.metrics, report.step)
        for name, path in report.grids.items():
            self.tracker.log_image(self.key, path, name, report.step)
        if report.finished:
            final = {f"{schema.FINAL}{name}": value for name, value in report.metrics.items()}
            self.tracker.log_metrics(self.key, final, report.step)
            self.tracker.log_artifact(self.key, self.folder / CONFIG_FILE)

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


def _line(step: int, metrics: dict[str, float]) -> str:
    shown = {name: value for name, value in metrics.items() if not name.startswith(("throughput/", "kid"))}
    return f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
