"""The one writer to MLflow: what happens in runs is recorded on disk at once and delivered in the background.

A tracking server that is slow, down or restarted never delays training and loses nothing: the spool keeps every event
and sends it when the server is back, in order, also after a restart of this process. Delivery may be interrupted at
any point and repeated, because repeating changes nothing (orchestration.tracking.mlflow_writer says why). It takes a
small share of one core: the more there is to send, the more events wait for each other and travel together.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestration.tracking.mlflow_writer import MlflowWriter
from orchestration.tracking.recorded_runs import RecordedRuns
from orchestration.tracking.spool import Spool
from orchestration.tracking.uri import root_cause, without_password
from soflow.files import write_atomic

LOG = logging.getLogger(__name__)

STATUSES = ("FINISHED", "FAILED", "KILLED")
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 10.0
EVENTS_PER_BATCH = 5000
REST_PER_WORK, LONGEST_REST_S = 24.0, 15.0
"""After a delivery the tracker rests this many times as long as it computed, so that it takes 4 % of a core; what
comes meanwhile travels together, which costs less. Nothing waits longer than the longest rest, except in an outage."""


class Tracker:
    """Records the events of runs; a daemon thread delivers them to MLflow.

    A run is known by its key, such as "<sweep>/<trial>", which together with the spool stands for one MLflow run for
    ever, whatever names others give to theirs on the same server. Only an unknown status raises; an event that MLflow
    refuses is skipped with a warning. A metric or image is taken once per step: a run that repeats steps after a
    restart adds nothing until it is beyond the last step recorded.

    Args:
        tracking_uri: http://, https:// or sqlite:/// URI; with SQLite the artifacts lie beside the database.
        experiment: name of the MLflow experiment, created if missing.
        spool_dir: folder of the recorded events; what an earlier process left undelivered there is sent first.

    Raises:
        TrackingError: if another tracker is open on spool_dir.
    """

    def __init__(self, tracking_uri: str, experiment: str, spool_dir: Path):
        self.tracking_uri, self.spool_dir = tracking_uri, Path(spool_dir)
        self._recorded, self._recording = RecordedRuns(), threading.Lock()
        self._spool = Spool(self.spool_dir, self._recorded)
        self._writer = MlflowWriter(tracking_uri, experiment, _origin(self.spool_dir))
        self._hurry, self._flushing = threading.Event(), False
        self._thread = threading.Thread(target=self._deliver_until_stopped, name="mlflow-writer", daemon=True)
        self._thread.start()

    def start_run(
        self, key: str, name: str, params: dict[str, Any], tags: dict[str, Any], parent: str | None = None
    ) -> None:
        """Create the run of this key; `parent` is a key too.

        A run that exists is RUNNING again, without the tags that say how it ended before.
        """
        self._record("start", key, name=name, params=params, tags=tags, parent=parent)

    def log_metrics(self, key: str, metrics: dict[str, float], step: int) -> None:
        with self._recording:  # what is new must still be so when it is recorded
            new = self._recorded.new_names("metrics", key, metrics, step)
            if new:
                values = {name: value for name, value in metrics.items() if name in new}
                self._record("metrics", key, metrics=values, step=int(step))

    def log_image(self, key: str, path: Path, name: str, step: int) -> None:
        """Upload a PNG file that the UI shows over steps; the file must stay until it is delivered."""
        with self._recording:
            if self._recorded.new_names("image", key, [name], step):
                self._record("image", key, path=Path(path).absolute(), name=name, step=int(step))

    def log_artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Upload a file or a folder into a folder of the run; it must stay until it is delivered.

        What is there already with the same content is not sent again; with another content it is replaced.
        """
        self._record("artifact", key, path=Path(path).absolute(), folder=folder)

    def log_dataset(self, key: str, name: str, digest: str, source: dict[str, Any], profile: dict[str, Any]) -> None:
        """Say on which data a run trains; runs of one name and digest share one data set in MLflow.

        Args:
            digest: changes whenever the data does.
            source: where it comes from, profile: what is in it; both as JSON types.
        """
        self._record("dataset", key, name=name, digest=digest, source=source, profile=profile)

    def log_model(
        self, key: str, path: Path, name: str, step: int, params: dict[str, Any], tags: dict[str, str], note: str
    ) -> None:
        """Register a folder that mlflow.pyfunc.load_model reads as what came of a run; it must stay until delivered.

        It takes the run's metrics under final/ along. A model of this name is registered once per run.

        Args:
            note: its description in Markdown, where MODEL_ID stands for MLflow's id.
        """
        params = {name: str(value) for name, value in params.items()}
        path = Path(path).absolute()
        self._record("model", key, path=path, name=name, step=int(step), params=params, tags=tags, note=note)

    def describe(self, key: str, note: str) -> None:
        """Set a run's description, in Markdown.

        `[words](<run:KEY>)` leads to another run, `[words](<artifact:PATH>)` to a file of this one.
        """
        self.set_tags(key, {"mlflow.note.content": note})

    def set_tags(self, key: str, tags: dict[str, Any]) -> None:
        self._record("tags", key, tags=tags)

    def end_run(self, key: str, status: str) -> None:
        if status not in STATUSES:
            raise ValueError(f"status = {status}: must be one of {', '.join(STATUSES)}")
        self._record("end", key, status=status)

    def open_runs(self) -> list[str]:
        """Keys of the runs that were started, by this process or an earlier one, and have not ended."""
        return list(self._recorded.open)

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a run, None until this tracker has delivered an event of it."""
        return self._writer.run_ids.get(key)

    def flush(self, timeout_s: float) -> bool:
        """Block until everything is delivered; False if the time was not enough."""
        self._flushing = True
        self._hurry.set()
        try:
            return self._spool.wait_empty(timeout_s)
        finally:
            self._flushing = False

    def close(self, timeout_s: float) -> int:
        """Flush and stop.

        Returns:
            The number of undelivered events, which a new tracker on the same spool_dir will send.
        """
        self.flush(timeout_s)
        self._spool.stop()
        self._hurry.set()
        self._thread.join(timeout=2)  # if it hangs in a request, the spool stays locked until that ends
        return len(self._spool)

    def _record(self, kind: str, key: str, **fields: Any) -> None:
        self._spool.append({"kind": kind, "key": key, "time_ms": int(time.time() * 1000), **fields})

    def _deliver_until_stopped(self) -> None:
        retry_s, outage = FIRST_RETRY_S, False
        while self._spool.wait():
            began = time.thread_time()
            try:
                self._writer.connect()
                began = time.thread_time()  # importing MLflow is no delivery
                events = self._spool.peek(EVENTS_PER_BATCH)
                if self._writer.deliver(events, stopped=lambda: self._spool.stopped):
                    self._spool.drop(len(events))
            except Exception as error:
                if not outage:
                    message = "tracking_uri = %s takes no reports (%s); they wait in %s and are sent when it does"
                    LOG.warning(message, without_password(self.tracking_uri), root_cause(error), self.spool_dir)
                self._pause(retry_s)
                retry_s, outage = min(2 * retry_s, LONGEST_RETRY_S), True
            else:
                if outage:
                    LOG.warning("tracking_uri = %s takes reports again", without_password(self.tracking_uri))
                retry_s, outage = FIRST_RETRY_S, False
                if not self._flushing:
                    self._pause(min(REST_PER_WORK * (time.thread_time() - began), LONGEST_REST_S))
        self._spool.close()

    def _pause(self, seconds: float) -> None:
        """Wait, or less if somebody waits for the delivery."""
        self._hurry.wait(seconds)
        self._hurry.clear()


def _origin(spool_dir: Path) -> str:
    """What the spool's keys have in common: made once, and kept with the events."""
    path = spool_dir / "origin"
    with suppress(OSError):  # missing, or on a disk that takes nothing: then this process has one of its own
        if path.exists():
            return path.read_text().strip()
        write_atomic(path, made := uuid.uuid4().hex[:12])
        return made
    return uuid.uuid4().hex[:12]
