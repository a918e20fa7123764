"""One training run, by the same workers, checkpoints and writer as a sweep's trials."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestration.cluster import connected
from orchestration.config import EXPERIMENT, FLUSH_S, SLOWEST_UPLOAD, ResourcesConfig, TrainConfig
from orchestration.memory_fit import Room, check_room, micro_batches_that_fit, room
from orchestration.preflight import check_inputs
from orchestration.storage import RUN_FILE, check_storage, create, new_folder, resumable_run, sole_owner
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.notes import of_dataset, of_run
from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import check_tracking
from orchestration.workers.follow import FollowedRun
from soflow.config import config_hash, flatten, to_dict
from soflow.config_files import read_yaml, to_yaml


def train(config: TrainConfig) -> str:
    """Run or resume one training run to its end, with progress on the terminal.

    Returns:
        "FINISHED", or "FAILED" or "KILLED" (interrupted) after saying why and how to go on.

    Raises:
        ConfigError, DataError, TrackingError: before anything starts, in one line.
    """
    resuming = config.resume is not None
    folder = resumable_run(config.resume) if resuming else new_folder(config)
    if resuming:
        config = TrainConfig.model_validate(read_yaml(folder / RUN_FILE))
    check_storage(config.storage)
    check_inputs(config)
    check_tracking(config.resolved_tracking_uri)
    with connected(config, groups=1) as resources:
        there = room(resources, groups=1)
        check_room(config, there)
        if not resuming:
            create(folder, RUN_FILE, to_yaml(config))
        with sole_owner(folder):
            print(f"run {folder.name} in {folder}; records: {config.mlflow_ui}", flush=True)
            return _Run(config, folder.absolute()).execute(resources, there)


RECORDED_FILE = "recorded_step"


class _Run:
    """The driver's side of one run: asks the workers for report after report and records them."""

    def __init__(self, config: TrainConfig, folder: Path):
        self.config, self.folder, self.key = config, folder, folder.name
        self.console = Console()
        self.tracker = Tracker(config.resolved_tracking_uri, EXPERIMENT, folder / "spool")

    def execute(self, resources: ResourcesConfig, there: Room) -> str:
        from orchestration.tracking.mlflow_model import register  # imports torch
        from orchestration.workers.training import training_group

        run = self.config.run
        tags = environment_tags() | {
            "soflow.kind": "run",
            "objective": run.objective.name,
            "dataset": run.dataset.name,
            "config_hash": config_hash(run),
            "folder": str(self.folder),
        }
        self.tracker.start_run(self.key, self.folder.name, flatten(to_dict(run)), tags)
        self.tracker.describe(self.key, of_run(self.config, self.folder))
        group = training_group(resources, self.folder, "workers")
        status, to_upload = "KILLED", 0
        try:
            status = "FINISHED" if self._follow(group, there) else "FAILED"
        except BaseException as error:
            if not _is_interruption(error):
                raise
            self._say(f"interrupted; go on with: python experiments/train.py --resume {self.folder}")
        finally:
            group.close()
            self.tracker.end_run(self.key, status)
            if status == "FINISHED":
                to_upload = register(self.tracker, self.key, self.folder, self.folder.name)
            if undelivered := self.tracker.close(FLUSH_S + to_upload / SLOWEST_UPLOAD):
                self._say(f"{undelivered} records wait in {self.folder / 'spool'}; --resume {self.folder} sends them")
        return status

    def _follow(self, group, there: Room) -> bool:
        """Ask for reports until the run is over; False if it failed."""
        from soflow.files import write_atomic

        total = self.config.training.total_steps
        # Not the newest checkpoint: its report may have been lost with the driver and has to be made again.
        recorded = self.folder / RECORDED_FILE
        step = int(recorded.read_text()) if recorded.exists() else 0
        num_workers = self.config.resources.num_workers
        parts = micro_batches_that_fit(self.config.run, there, num_workers)
        run = FollowedRun(self.config.run, self.folder, num_workers, step, parts)
        columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:3])
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task("starting the training workers", total=total, completed=step)
            while step < total:
                answer = run.next_report(group)
                if answer.failure:
                    self.tracker.set_tags(self.key, {"failure": answer.failure})
                    self._say(f"failed at step {answer.step}: {answer.failure}")
                    return False
                step = answer.step
                self._record(answer, final=answer.finished)
                write_atomic(recorded, str(step).encode())
                progress.update(task, completed=step, description=f"step {step}, FID {answer.metrics['fid']:.4g}")
                self._say(_line(step, answer.metrics))
        self._say(f"samples: {self.folder / 'grids'}; more: python experiments/sample.py {self.folder}")
        return True

    def _record(self, answer, final: bool) -> None:
        self.tracker.set_tags(self.key, answer.facts)
        if (data := of_dataset(self.config.dataset, answer.facts)) is not None:
            self.tracker.log_dataset(self.key, **data)
        self.tracker.log_metrics(self.key, answer.metrics, answer.step)
        for name, path in answer.grids.items():
            self.tracker.log_image(self.key, path, name, answer.step)
        if final:
            self.tracker.log_metrics(
                self.key, {f"final/{name}": value for name, value in answer.metrics.items()}, answer.step
            )
            self.tracker.log_artifact(self.key, self.folder / "config.yaml")

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


def _is_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error; pydantic raises its own about one that meets it at work."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interruption(error.__cause__))


def _line(step: int, metrics: dict[str, float]) -> str:
    shown = {name: value for name, value in metrics.items() if not name.startswith(("throughput/", "kid"))}
    return f"step {step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
