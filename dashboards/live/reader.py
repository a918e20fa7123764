"""Incremental reader of a sweep in MLflow: each refresh reads only what is new.

A refresh reads the sweep's run, trials started since the last refresh, and trials that run or ran at the last refresh.
It reads a trial's history only if its latest values have changed. It stops at a time limit, and the next refresh
continues, so that a sweep of any size appears at once and fills up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dashboards.reading.mlflow_runs import RUN_STATES, all_experiments, concurrent_readers, param_of
from orchestration.tracking.schema import FINAL, KIND, NUMBER, PARENT, RUN_KIND, STATE, SWEEP_KIND, TRAIN_S
from orchestration.tracking.uri import root_cause
from soflow.config_base import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 100
"""Runs per request."""
REFRESH_S = 2.0
"""Time limit of a refresh."""
REREAD_S = 300.0
"""Interval between full re-reads, which find changes after a trial's end: tags, deletions."""
FRESH_S = 1.0
"""Age up to which a snapshot is returned without reading."""
NEWEST_SWEEPS = 200


@dataclass(frozen=True)
class Curve:
    """A metric of one trial over steps."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    times_ms: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One trial at its last reading."""

    run_id: str
    number: int
    state: str
    """running, finished, stopped, failed or interrupted."""
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]
    start_ms: int
    end_ms: int | None

    def value(self, metric: str) -> float:
        """Get a metric's last value; NaN if it was not reported."""
        return self.metrics.get(f"{FINAL}{metric}", self.metrics.get(metric, math.nan))


@dataclass(frozen=True)
class Snapshot:
    """Everything read of a sweep so far; replaced, never changed."""

    sweep: Run | None = None
    trials: tuple[Trial, ...] = ()
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    """By metric and run id."""
    complete: bool = False
    """All trials and all curves of the requested metrics have been read."""
    problem: str = ""
    """Why the last refresh failed; the rest is then from the last successful one."""

    def curve(self, trial: Trial, metric: str) -> Curve:
        return self.curves.get(metric, {}).get(trial.run_id, Curve())

    def param(self, name: str, default: str = "") -> str:
        return param_of(self.sweep, name, default)


class LiveSweep:
    """Reader of one sweep or one standalone training run; threads may share it.

    Args:
        run_id: the sweep's run in MLflow.
        fresh_s: within this time after a refresh, further callers (other browser windows) get the same snapshot.
    """

    def __init__(self, client: MlflowClient, run_id: str, fresh_s: float = FRESH_S):
        self.client, self.run_id, self.fresh_s = client, run_id, fresh_s
        self.snapshot = Snapshot()
        self._trials: dict[str, Trial] = {}
        self._curves: dict[str, dict[str, Curve]] = {}
        self._read_at: dict[str, dict[str, str]] = {}  # by metric and run: its latest values when the curve was read
        self._lock, self._refreshed, self._reread = threading.Lock(), -math.inf, -math.inf
        self._pages: Iterator[Iterable[Run]] | None = None
        self._newest_ms, self._seen = 0, set()

    def refresh(self, metrics: tuple[str, ...]) -> Snapshot:
        """Read new trials and new points of these metrics, up to the time limit."""
        with self._lock:
            known = all(metric in self._curves for metric in metrics)
            if time.monotonic() - self._refreshed < self.fresh_s and known:
                return self.snapshot
            try:
                self.snapshot = self._read(metrics, time.monotonic() + REFRESH_S)
            except Exception as error:  # MLflow, the network, the database: shown, and retried at the next refresh
                self._pages = None
                reason = f"{without_password(self.client.tracking_uri)}: {root_cause(error)[:300]}"
                self.snapshot = replace(self.snapshot, problem=reason)
            self._refreshed = time.monotonic()
            return self.snapshot

    def _read(self, metrics: tuple[str, ...], deadline: float) -> Snapshot:
        sweep = self.client.get_run(self.run_id)
        before = self.snapshot.sweep
        if before is not None and before.info.status != sweep.info.status:
            self._reread = -math.inf
        if sweep.data.tags.get(KIND) == RUN_KIND:
            self._take([sweep])
            all_read = True
        else:
            self._read_running(sweep)
            all_read = self._read_new(sweep, deadline)
        complete = all(self._read_curves(metric, deadline) for metric in metrics) and all_read
        trials = tuple(sorted(self._trials.values(), key=lambda trial: (trial.number, trial.start_ms)))
        curves = {metric: dict(curves) for metric, curves in self._curves.items()}
        return Snapshot(sweep, trials, curves, complete)

    def _search(self, sweep: Run, condition: str) -> Iterator[Iterable[Run]]:
        """Yield pages of the sweep's trials, oldest first."""
        token = None
        while True:
            page = self.client.search_runs(
                [sweep.info.experiment_id],
                f"tags.`{PARENT}` = '{sweep.info.run_id}' and {condition}",
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield page
            if not (token := page.token):
                return

    def _read_running(self, sweep: Run) -> None:
        """Read running trials, and those that stopped running since the last refresh."""
        ran = {trial.run_id for trial in self._trials.values() if trial.end_ms is None}
        for page in self._search(sweep, "attributes.status = 'RUNNING'"):
            self._take(page)
            ran -= {run.info.run_id for run in page}
        ended = sorted(ran)
        for start in range(0, len(ended), PAGE):
            some = ", ".join(f"'{run_id}'" for run_id in ended[start : start + PAGE])
            for page in self._search(sweep, f"attributes.run_id IN ({some})"):
                self._take(page)
                ran -= {run.info.run_id for run in page}
        for deleted in ran:
            del self._trials[deleted]

    def _read_new(self, sweep: Run, deadline: float) -> bool:
        """Read trials started since the last refresh, which the tracker creates in order; False at the time limit."""
        if self._pages is None:
            if time.monotonic() - self._reread > REREAD_S:
                self._newest_ms, self._reread, self._seen = 0, time.monotonic(), set()
            self._pages = self._search(sweep, f"attributes.start_time >= {self._newest_ms}")
        for page in self._pages:
            self._take(page)
            self._newest_ms = max([self._newest_ms, *(run.info.start_time for run in page)])
            if time.monotonic() > deadline:
                return False
        self._pages = None
        for deleted in self._trials.keys() - self._seen:
            del self._trials[deleted]
        return True

    def _take(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self._seen.add(run.info.run_id)
            tags, number = run.data.tags, run.data.tags.get(NUMBER, "")
            state = tags.get(STATE) if run.info.status != "RUNNING" else None
            self._trials[run.info.run_id] = Trial(
                run.info.run_id,
                int(number) if number.isdecimal() else 0,
                state if state in ("finished", "stopped", "failed") else RUN_STATES.get(run.info.status, "interrupted"),
                run.data.metrics,
                run.data.params,
                tags,
                run.info.start_time or 0,
                run.info.end_time if run.info.status != "RUNNING" else None,
            )

    def _read_curves(self, metric: str, deadline: float) -> bool:
        """Read curves of trials that reported since the last refresh: running ones, the best, then the others."""
        curves, read_at = self._curves.setdefault(metric, {}), self._read_at.setdefault(metric, {})
        latest_of = {
            run_id: repr((trial.metrics[metric], trial.metrics.get(TRAIN_S), trial.state))
            for run_id, trial in self._trials.items()
            if metric in trial.metrics
        }
        stale = [run_id for run_id, latest in latest_of.items() if read_at.get(run_id) != latest]
        stale.sort(key=lambda run_id: self._urgency(self._trials[run_id], metric))
        readers = concurrent_readers(self.client)
        with ThreadPoolExecutor(readers) as pool:
            for start in range(0, len(stale), 4 * readers):
                if time.monotonic() > deadline:
                    return False
                some = stale[start : start + 4 * readers]
                histories = pool.map(lambda run_id: self.client.get_metric_history(run_id, metric), some)
                for run_id, points in zip(some, histories, strict=True):
                    curves[run_id], read_at[run_id] = _curve(points), latest_of[run_id]
        return True

    def _urgency(self, trial: Trial, metric: str) -> tuple[bool, float]:
        value = trial.value(metric)
        return trial.state != "running", value if value == value else math.inf


def _curve(points: Iterable[Any]) -> Curve:
    by_step = {point.step: point for point in points}  # the last value of a step that was repeated
    ordered = [by_step[step] for step in sorted(by_step)]
    return (
        Curve(*zip(*((point.step, point.value, point.timestamp) for point in ordered), strict=True))
        if ordered
        else Curve()
    )


def newest_sweeps(client: MlflowClient) -> list[Run]:
    """List sweeps and standalone training runs, newest first."""
    experiments, runs = all_experiments(client), []
    for kind in (SWEEP_KIND, RUN_KIND):
        condition, order = f"tags.`{KIND}` = '{kind}'", ["attributes.start_time DESC"]
        runs += client.search_runs(experiments, condition, max_results=NEWEST_SWEEPS, order_by=order)
    top_level = [run for run in runs if PARENT not in run.data.tags]
    return sorted(top_level, key=lambda run: run.info.start_time or 0, reverse=True)
