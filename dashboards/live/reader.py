"""Reads a sweep from MLflow again and again, each time only what is new.

A refresh asks for the sweep's own run, for trials that began since, and for those that run or did so the last time. A
trial's history is asked for when its latest values have changed. All of it stops when the time of a refresh is over
and goes on with the next, so that a sweep of any size shows at once and fills up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dashboards.reading.mlflow_runs import KIND, PARENT
from dashboards.reading.sweep_data import ENDS, NUMBER, READERS
from orchestration.tracking.uri import root_cause, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 100
"""Runs a request."""
REFRESH_S = 2.0
"""How long a refresh may read before it leaves the rest to the next one."""
REREAD_S = 300.0
"""How often all trials are read again, for what changed after their end: tags, deletions."""
FRESH_S = 1.0
NEWEST_SWEEPS = 200
CHANGING = "time/train_s"
"""A metric that differs from report to report, whatever the others do."""


@dataclass(frozen=True)
class Curve:
    """A metric of one trial over steps."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    times_ms: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One trial as MLflow had it last."""

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
        """Its last value, NaN if it has none."""
        return self.metrics.get(f"final/{metric}", self.metrics.get(metric, math.nan))


@dataclass(frozen=True)
class Snapshot:
    """What is known of a sweep; never changed, only replaced."""

    sweep: Run | None = None
    trials: tuple[Trial, ...] = ()
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    """By metric and run id."""
    complete: bool = False
    """Whether all trials have been read, and all curves of the metrics asked for."""
    problem: str = ""
    """Why it cannot be read at present; the rest is then of the last time that it could."""

    def curve(self, trial: Trial, metric: str) -> Curve:
        return self.curves.get(metric, {}).get(trial.run_id, Curve())

    def param(self, name: str, default: str = "") -> str:
        """Of the sweep; some are kept as tags, because a resume may change them."""
        data = self.sweep.data if self.sweep else None
        return (data.params.get(name) or data.tags.get(name) or default) if data else default


class LiveSweep:
    """One sweep, or one training run by itself; may be shared by threads.

    Args:
        run_id: of the sweep's own run in MLflow.
        fresh_s: a second caller within this time, another browser window, gets what the first one got.
    """

    def __init__(self, client: MlflowClient, run_id: str, fresh_s: float = FRESH_S):
        self.client, self.run_id, self.fresh_s = client, run_id, fresh_s
        self.snapshot = Snapshot()
        self._trials: dict[str, Trial] = {}
        self._curves: dict[str, dict[str, Curve]] = {}
        self._read_at: dict[str, dict[str, str]] = {}  # by metric and run, the latest values when its curve was read
        self._lock, self._refreshed, self._reread = threading.Lock(), -math.inf, -math.inf
        self._pages: Iterator[Iterable[Run]] | None = None
        self._newest_ms, self._seen = 0, set()

    def refresh(self, metrics: tuple[str, ...]) -> Snapshot:
        """Read what is new of the trials and of their curves of these metrics, as far as time allows."""
        with self._lock:
            known = all(metric in self._curves for metric in metrics)
            if time.monotonic() - self._refreshed < self.fresh_s and known:
                return self.snapshot
            try:
                self.snapshot = self._read(metrics, time.monotonic() + REFRESH_S)
            except Exception as error:  # MLflow's, the network's, the database's: told, and tried again
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
        if sweep.data.tags.get(KIND) == "run":
            self._take([sweep])
            all_there = True
        else:
            self._read_running(sweep)
            all_there = self._read_new(sweep, deadline)
        complete = all(self._read_curves(metric, deadline) for metric in metrics) and all_there
        trials = tuple(sorted(self._trials.values(), key=lambda trial: (trial.number, trial.start_ms)))
        curves = {metric: dict(curves) for metric, curves in self._curves.items()}
        return Snapshot(sweep, trials, curves, complete)

    def _search(self, sweep: Run, condition: str) -> Iterator[Iterable[Run]]:
        """Pages of the sweep's trials, oldest first."""
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
        """Trials that run, and those that did and no longer do."""
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
        """Trials that began since; a sweep's one writer begins them in order. False if time was not enough."""
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
            state = tags.get("state") if run.info.status != "RUNNING" else None
            self._trials[run.info.run_id] = Trial(
                run.info.run_id,
                int(number) if number.isdecimal() else 0,
                state if state in ("finished", "stopped", "failed") else ENDS.get(run.info.status, "interrupted"),
                run.data.metrics,
                run.data.params,
                tags,
                run.info.start_time or 0,
                run.info.end_time if run.info.status != "RUNNING" else None,
            )

    def _read_curves(self, metric: str, deadline: float) -> bool:
        """Curves of trials that have reported since theirs was read: running ones, the best, then the others."""
        curves, read_at = self._curves.setdefault(metric, {}), self._read_at.setdefault(metric, {})
        now = {
            run_id: repr((trial.metrics[metric], trial.metrics.get(CHANGING), trial.state))
            for run_id, trial in self._trials.items()
            if metric in trial.metrics
        }
        stale = [run_id for run_id, latest in now.items() if read_at.get(run_id) != latest]
        stale.sort(key=lambda run_id: self._urgency(self._trials[run_id], metric))
        readers = READERS if self.client.tracking_uri.startswith("http") else 1
        with ThreadPoolExecutor(readers) as pool:
            for start in range(0, len(stale), 4 * readers):
                if time.monotonic() > deadline:
                    return False
                some = stale[start : start + 4 * readers]
                found = pool.map(lambda run_id: self.client.get_metric_history(run_id, metric), some)
                for run_id, rows in zip(some, found, strict=True):
                    curves[run_id], read_at[run_id] = _curve(rows), now[run_id]
        return True

    def _urgency(self, trial: Trial, metric: str) -> tuple[bool, float]:
        value = trial.value(metric)
        return trial.state != "running", value if value == value else math.inf


def _curve(rows: Iterable[Any]) -> Curve:
    by_step = {row.step: row for row in rows}  # the last value of a step that was repeated
    ordered = [by_step[step] for step in sorted(by_step)]
    return Curve(*zip(*((row.step, row.value, row.timestamp) for row in ordered), strict=True)) if ordered else Curve()


def newest_sweeps(client: MlflowClient) -> list[Run]:
    """Sweeps and training runs of their own, the newest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = []
    for kind in ("sweep", "run"):
        condition, order = f"tags.`{KIND}` = '{kind}'", ["attributes.start_time DESC"]
        found += client.search_runs(experiments, condition, max_results=NEWEST_SWEEPS, order_by=order)
    alone = [run for run in found if PARENT not in run.data.tags]
    return sorted(alone, key=lambda run: run.info.start_time or 0, reverse=True)
