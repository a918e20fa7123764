"""A checkpoint sweep: measure points with warm workers, record each, compare the best on other seeds, and save it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestration.checkpoint_sweep import results as points
from orchestration.checkpoint_sweep.best import save_best
from orchestration.checkpoint_sweep.config import CheckpointSweepConfig, Point, badness
from orchestration.checkpoint_sweep.results import Result, at_seed, describe, grid_file, key_of, load_results
from orchestration.checkpoint_sweep.subject import Checkpoint, default_name, note_config, open_checkpoint
from orchestration.checkpoint_sweep.worker import Measure, Measured, Subject
from orchestration.cluster import connected
from orchestration.config import FLUSH_S, SLOWEST_UPLOAD, ResourcesConfig
from orchestration.interruption import is_interruption, received, set_last_words
from orchestration.preflight import check_evaluation
from orchestration.slots import Slots
from orchestration.storage import SPOOL, check_storage, sole_owner
from orchestration.terminal.format import plain_console, table_console
from orchestration.tracking import schema
from orchestration.tracking.environment import environment_tags
from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import check_tracking
from soflow.config import flatten, to_dict
from soflow.config_base import ConfigError
from soflow.files import write_atomic
from soflow.posthoc_ema import TRAINED, average_of

if TYPE_CHECKING:
    from orchestration.checkpoint_sweep.slots import PointWorkers

MOST_DUPLICATES = 20
"""How often Optuna may suggest a point that is measured already, until the search ends."""


def run_checkpoint_sweep(config: CheckpointSweepConfig, write_report: Callable[[Path], Path | None]) -> str:
    """Measure all points that are not measured yet, and print what was found.

    Args:
        write_report: writes the report of a sweep's folder and returns its path.

    Returns:
        "FINISHED", "FAILED" if a point could not be measured or no point has a finite first goal, or "KILLED"; the
        same command resumes.

    Raises:
        ConfigError, DataError, TrackingError: before anything starts, in one line.
    """
    checkpoint = open_checkpoint(config)
    check_storage(config.storage)
    check_evaluation(checkpoint.config)
    schema.check_own_tags(config.own_tags)
    check_tracking(config.resolved_tracking_uri)
    folder = config.storage / (config.name or default_name(checkpoint))
    with sole_owner(folder):
        note_config(folder, config, checkpoint)
        with connected(config, groups=config.max_concurrent) as resources:
            sweep = _Sweep(config, checkpoint, folder.absolute())
            return sweep.execute(resources, write_report)


class _Sweep:
    """The driver of a sweep: hands points to slots, and records them."""

    def __init__(self, config: CheckpointSweepConfig, checkpoint: Checkpoint, folder: Path):
        self.config, self.checkpoint, self.space, self.folder = config, checkpoint, checkpoint.space, folder
        self.console = plain_console()
        self.results = load_results(folder)
        self.failures: dict[Point, str] = {}
        self.tracker = Tracker(config.resolved_tracking_uri, schema.EXPERIMENT, folder / SPOOL)
        self._started: set[Point] = set()

    def execute(self, resources: ResourcesConfig, write_report: Callable[[Path], Path | None]) -> str:
        self._start_records()
        print(f"checkpoint sweep {self.folder.name} in {self.folder}; records: {self.config.mlflow_ui}", flush=True)
        wanted = self._wanted()
        done = len(wanted) - len(self._missing(wanted))
        total = len(wanted) if self.config.search == "grid" else self.config.num_points
        print(f"{total} points of {self.checkpoint.path}, {done} of them measured before", flush=True)
        status, upload_bytes = "KILLED", 0
        from orchestration.checkpoint_sweep.slots import PointWorkers  # imports Ray

        workers = PointWorkers(resources, self.folder, self._subject(), Slots(resources, self.config.max_concurrent)())
        set_last_words(self._end_interrupted)
        try:
            self._measure_all(workers, self._next_points(), total, done)
            if confirming := self._to_confirm():
                self._say(f"comparing the best points with the defaults on {self.config.confirm_seeds} other seeds")
                self._measure_all(workers, iter(confirming), len(confirming), 0)
            status = self.status
        except BaseException as error:
            # After SIGTERM, which batch systems also send to Ray's processes, anything may fail.
            if not is_interruption(error) and received() == signal.SIGINT:
                status = "FAILED"
                raise
        finally:
            if status == "KILLED":
                self._end_interrupted()
            else:
                set_last_words(None)
            workers.close()
            try:
                if status != "KILLED":
                    upload_bytes = self._finish(status, write_report)
            finally:
                if undelivered := self.tracker.close(FLUSH_S + upload_bytes / SLOWEST_UPLOAD):
                    self._say(f"{undelivered} records wait in {self.folder / SPOOL}; the same command sends them")
        return status

    @property
    def status(self) -> str:
        """What a sweep that was not interrupted ended with."""
        best = points.best_by_evaluations(self._searched(), self.config.goals[0])
        return "FINISHED" if best and not self.failures else "FAILED"

    def _end_interrupted(self) -> None:
        set_last_words(None)
        self._say("interrupted; the same command resumes")
        self._log_all()
        self.tracker.end_run(self.folder.name, "KILLED")

    def _log_all(self) -> None:
        for result in self.results:
            self._log(result)

    def _subject(self) -> Subject:
        evaluation = to_dict(self.checkpoint.config.evaluation)
        changes = {f"evaluation.{name}": value for name, value in evaluation.items()}
        root = self.checkpoint.config.dataset.root
        changes |= {"dataset.root": str(root) if root else None}
        return Subject(self.checkpoint.path, changes, self.config.storage.absolute() / "reference")

    def _wanted(self) -> list[Point]:
        """List the points that are known before the search."""
        return self.space.grid() if self.config.search == "grid" else list(self.space.defaults)

    def _missing(self, wanted: Iterable[Point]) -> list[Point]:
        measured = {result.point for result in self.results}
        return [point for point in wanted if point not in measured]

    def _next_points(self) -> Iterator[Point]:
        """Yield the points to measure; each is chosen when a slot is free."""
        yield from self._missing(self._wanted())
        while self.config.search == "optuna" and len(self._begun()) < self.config.num_points:
            point = self._suggested()
            if point is None:
                self._say("Optuna suggests no new points; the search ends")
                return
            yield point

    def _begun(self) -> set[Point]:
        """Return the points of the search that are measured, being measured, or have failed."""
        return self._started | {result.point for result in self._searched()}

    def _suggested(self) -> Point | None:
        done, begun = [(result.point, result.metrics) for result in self._searched()], self._begun()
        for attempt in range(MOST_DUPLICATES):
            point = self.space.suggest(done, self.config.goals, len(begun) + 1000 * attempt)
            if point not in begun and self._can_be_made(point):
                return point
        return None

    def _can_be_made(self, point: Point) -> bool:
        """Check that the point's average can be made from the snapshots."""
        from soflow.training.snapshots import Snapshots

        average = average_of(point.ema)
        if average is None:
            return True
        with suppress(ConfigError):
            Snapshots(self.checkpoint.path.parent, self.checkpoint.config, self.checkpoint.step).check(average)
            return True
        return False

    def _searched(self) -> list[Result]:
        return points.searched(self.results, self.space)

    def _to_confirm(self) -> list[Point]:
        """List the points of the comparison on other seeds that are not measured yet."""
        chosen = points.to_confirm(self._searched(), self.space, self.config.goals[0])
        pairs = [point for pair in chosen.values() for point in pair if point is not None]
        wanted = dict.fromkeys(at_seed(point, seed) for point in pairs for seed in self._seeds)
        return sorted(self._missing(wanted), key=lambda point: point.ema != TRAINED)

    @property
    def _seeds(self) -> range:
        return range(self.space.seed + 1, self.space.seed + 1 + self.config.confirm_seeds)

    def _measure_all(self, workers: PointWorkers, wanted: Iterator[Point], total: int, done: int) -> None:
        """Measure points in all slots until there are no more."""
        columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:3])
        running: dict[Future[Measured], Point] = {}
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task("starting the workers", total=total, completed=done)
            exhausted = False
            while running or not exhausted:
                while not exhausted and len(running) < workers.slots:
                    point = next(wanted, None)
                    if point is None:
                        exhausted = True
                    else:
                        self._started.add(point)
                        running[workers.measure(Measure(point, grid_file(self.folder, point)))] = point
                finished, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)  # so that Ctrl-C is seen
                for future in finished:
                    self._record(running.pop(future), future.result())
                    best = points.best_by_evaluations(self._searched(), self.config.goals[0])
                    shown = ", ".join(
                        f"{evaluations:g}: {result.metrics[self.config.goals[0]]:.4g}"
                        for evaluations, result in best.items()
                    )
                    progress.update(task, advance=1, description=f"best {self.config.goals[0]} by evaluations {shown}")

    def _record(self, point: Point, answer: Measured) -> None:
        if answer.failure:
            self.failures[point] = answer.failure
            self._say(f"failed: {describe(point)}: {answer.failure}")
            return
        result = Result(len(self.results), point, answer.metrics, answer.protocol)
        points.save_result(result, self.folder)
        self.results.append(result)
        goals = dict.fromkeys((*self.config.goals, "fid"))
        shown = ", ".join(f"{goal} {answer.metrics[goal]:.4g}" for goal in goals if goal in answer.metrics)
        self._say(f"{self._describe(point)}: {shown}")
        self._log(result)

    def _describe(self, point: Point) -> str:
        return describe(point) + (f", seed {point.seed}" if point.seed != self.space.seed else "")

    def _log(self, result: Result) -> None:
        """Record a result in MLflow, unless it was recorded before; an interruption may have come in between."""
        point, key = result.point, f"{self.folder.name}/{key_of(result.point)}"
        if self.tracker.has_ended(key):
            return
        tags = self._tags(schema.POINT_KIND) | {schema.SWEEP: self.folder.name, schema.NUMBER: result.number}
        tags |= {f"fid_{name}": str(value) for name, value in result.protocol.items()}
        self.tracker.start_run(key, self._describe(point), flatten(to_dict(point)), tags, self.folder.name)
        self.tracker.log_metrics(key, result.metrics, self.checkpoint.step)
        self.tracker.log_image(key, grid_file(self.folder, point), "samples", self.checkpoint.step)
        self.tracker.end_run(key, "FINISHED")

    def _tags(self, kind: str) -> dict[str, Any]:
        run = self.checkpoint.config
        return (
            self.config.own_tags
            | environment_tags()
            | {schema.KIND: kind, schema.OBJECTIVE: run.objective.name, schema.DATASET: run.dataset.name}
        )

    def _start_records(self) -> None:
        params = {"checkpoint": str(self.checkpoint.path), "step": self.checkpoint.step}
        tags = self._tags(schema.CHECKPOINT_SWEEP_KIND) | {schema.FOLDER: str(self.folder)}
        self.tracker.start_run(self.folder.name, self.folder.name, params, tags)
        text = f"Points of {self.checkpoint.path}, step {self.checkpoint.step}."
        self.tracker.describe(self.folder.name, f"{self.config.note}\n\n{text}" if self.config.note else text)

    def _finish(self, status: str, write_report: Callable[[Path], Path | None]) -> int:
        """Write table, best points, their model and the report; return the bytes to upload."""
        upload_bytes = 0
        self._log_all()
        if searched := self._searched():
            write_atomic(self.folder / points.TABLE_FILE, points.table(self.results).to_csv(index=False))
            self.tracker.log_artifact(self.folder.name, self.folder / points.TABLE_FILE)
            self._show()
            best = points.best_by_evaluations(searched, self.config.goals[0])
            if not best:
                self._say(f"best:        none; no point has a finite {self.config.goals[0]}")
            elif status == "FINISHED":
                overall = min(best.values(), key=lambda result: badness(result.metrics, self.config.goals[0]))
                upload_bytes = save_best(self.tracker, self.folder, self.checkpoint, overall.point)
            if report := write_report(self.folder):
                self.tracker.log_artifact(self.folder.name, report)
                print(f"report:      {report}")
        self.tracker.end_run(self.folder.name, status)
        return upload_bytes

    def _show(self) -> None:
        """Print the best point for each number of network evaluations, and its gain."""
        from rich.table import Table

        goal = self.config.goals[0]
        compared = {gain.evaluations: gain for gain in points.gains(self.results, self.space, goal, self._seeds)}
        shown = Table("evaluations", "best point", goal, "on other seeds", "best / default [95 % CI]")
        for evaluations, result in points.best_by_evaluations(self._searched(), goal).items():
            gain = compared.get(evaluations)
            mean = f"{sum(gain.values) / len(gain.values):.4g}" if gain else ""
            ratio = ""
            if gain and gain.ratio:
                found = gain.ratio
                ratio = f"{found.value:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.n > 1 else "")
            shown.add_row(f"{evaluations:g}", describe(result.point), f"{result.metrics[goal]:.4g}", mean, ratio)
        table_console().print(shown)

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)
