"""The only path to MLflow: events of runs are saved on disk at once and delivered in the background.

A slow, unreachable or restarted tracking server neither delays training nor loses data. The spool keeps every event and
sends it in order once the server is back, also after a restart of this process. Delivery is idempotent
(orchestration.tracking.mlflow_writer), so it can be interrupted at any point and repeated. It is limited to a small
share of one core; under load, more events share a request.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestration.store.program import Delivery
from orchestration.tracking.mlflow_writer import MlflowWriter, RunLost
from orchestration.tracking.recorded_runs import RecordedRuns
from orchestration.tracking.spool import Spool
from orchestration.tracking.uri import root_cause
from soflow.config_base import without_password
from soflow.files import write_atomic

LOG = logging.getLogger(__name__)

ORIGIN_FILE = "origin"
"""File in a spool with the random suffix of all its keys."""
STATUSES = ("FINISHED", "FAILED", "KILLED")
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 10.0
EVENTS_PER_BATCH = 5000
REST_PER_WORK, LONGEST_REST_S = 24.0, 15.0
"""Pause after a delivery, as a multiple of its CPU time and at most in seconds: the tracker uses 4 % of a core. Events
of the pause are sent together, which costs less. No event waits longer than the longest pause, except in an outage."""


class Tracker:
    """Queue of run events on disk with a daemon thread that delivers them to MLflow.

    A run is identified by its key, such as "<sweep>/<trial>". Key and spool together map to one MLflow run permanently;
    equal keys of other spools on the same server do not conflict. Only an unknown status raises; an event that MLflow
    rejects is skipped with a warning. A metric or image is logged once per step: a run that repeats steps after a
    restart logs nothing until it is past its last logged step.

    Args:
        tracking_uri: http://, https:// or sqlite:/// URI; with SQLite, artifacts are stored beside the database.
        experiment: name of the MLflow experiment, created if missing.
        spool_dir: folder of the events; undelivered events of an earlier process are sent first.

    Raises:
        TrackingError: if another tracker is open on spool_dir.
    """

    def __init__(self, tracking_uri: str, experiment: str, spool_dir: Path):
        self.tracking_uri, self.spool_dir = tracking_uri, Path(spool_dir)
        self._place = without_password(tracking_uri)
        self._recorded, self._recording = RecordedRuns(), threading.Lock()
        self._spool = Spool(self.spool_dir, self._recorded)
        self._writer = MlflowWriter(tracking_uri, experiment, _origin(self.spool_dir))
        self._delivery = Delivery(self.spool_dir.absolute().parent)
        self._hurry, self._flushing = threading.Event(), False
        self._thread = threading.Thread(target=self._deliver_until_stopped, name="mlflow-writer", daemon=True)
        self._thread.start()

    def start_run(
        self, key: str, name: str, params: dict[str, Any], tags: dict[str, Any], parent: str | None = None
    ) -> None:
        """Create the run of this key, as a child of the run with key `parent`.

        An existing run becomes RUNNING again and loses the tags of its previous end.
        """
        self._record("start", key, name=name, params=params, tags=tags, parent=parent)

    def log_metrics(self, key: str, metrics: dict[str, float], step: int) -> None:
        """Log metrics at a step, except those already logged at this or a later step."""
        with self._recording:  # the check and the append must be atomic, or two threads log the same step
            new = self._recorded.new_names("metrics", key, metrics, step)
            if new:
                values = {name: value for name, value in metrics.items() if name in new}
                self._record("metrics", key, metrics=values, step=int(step))

    def log_image(self, key: str, path: Path, name: str, step: int) -> None:
        """Upload an image, which the UI shows by step; the file must exist until it is delivered."""
        with self._recording:
            if self._recorded.new_names("image", key, [name], step):
                self._record("image", key, path=Path(path).absolute(), name=name, step=int(step))

    def log_artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Upload a file or folder into a folder of the run; it must exist until it is delivered.

        Files with equal content on the server are not sent again; files with other content are replaced.
        """
        self._record("artifact", key, path=Path(path).absolute(), folder=folder)

    def log_dataset(self, key: str, name: str, digest: str, source: dict[str, Any], profile: dict[str, Any]) -> None:
        """Log the training data of a run; equal names and digests are one data set in MLflow.

        Args:
            digest: fingerprint of the data.
            source: origin of the data, as JSON types.
            profile: size and shape of the data, as JSON types.
        """
        self._record("dataset", key, name=name, digest=digest, source=source, profile=profile)

    def log_model(
        self, key: str, path: Path, name: str, step: int, params: dict[str, Any], tags: dict[str, str], note: str
    ) -> None:
        """Register a folder for mlflow.pyfunc.load_model as output of a run; it must exist until it is delivered.

        The model gets the run's metrics with the prefix final/. One of this name and step is registered once per run.

        Args:
            note: description in Markdown; MODEL_ID is replaced by MLflow's id.
        """
        params = {name: str(value) for name, value in params.items()}
        path = Path(path).absolute()
        self._record("model", key, path=path, name=name, step=int(step), params=params, tags=tags, note=note)

    def describe(self, key: str, note: str) -> None:
        """Set a run's description in Markdown.

        `[words](<run:KEY>)` links to another run, `[words](<artifact:PATH>)` to a file of this run,
        `[words](<view:NAME>)` to a saved view.
        """
        self.set_tags(key, {"mlflow.note.content": note})

    def save_view(self, key: str, name: str, state: dict[str, Any]) -> None:
        """Save a view of the experiment for MLflow's UI: filter, order and columns of the list of runs."""
        self._record("view", key, name=name, state=json.dumps(state))

    def set_tags(self, key: str, tags: dict[str, Any]) -> None:
        """Set tags of a run; the last value of a tag wins."""
        self._record("tags", key, tags=tags)

    def end_run(self, key: str, status: str) -> None:
        """End a run with one of STATUSES.

        Raises:
            ValueError: if the status is unknown.
        """
        if status not in STATUSES:
            raise ValueError(f"status = {status}: must be one of {', '.join(STATUSES)}")
        self._record("end", key, status=status)

    def open_runs(self) -> list[str]:
        """Return the keys of runs that this or an earlier process started and that have not ended."""
        return list(self._recorded.open)

    def has_ended(self, key: str) -> bool:
        """Check whether the end of a run was recorded, by this or an earlier process."""
        return key in self._recorded.ended

    def run_id(self, key: str) -> str | None:
        """Return MLflow's id of a run; None until this tracker has delivered one of the run's events."""
        return self._writer.run_ids.get(key)

    def flush(self, timeout_s: float) -> bool:
        """Block until everything is delivered; return False on timeout."""
        self._flushing = True
        self._hurry.set()
        try:
            return self._spool.wait_empty(timeout_s)
        finally:
            self._flushing = False

    def close(self, timeout_s: float) -> int:
        """Flush and stop.

        Returns:
            The number of undelivered events, which the next tracker on spool_dir sends.
        """
        self.flush(timeout_s)
        self._spool.stop()
        self._hurry.set()
        self._thread.join(timeout=2)  # if a request hangs, the spool stays locked until that request ends
        return len(self._spool)

    def _record(self, kind: str, key: str, **fields: Any) -> None:
        self._spool.append({"kind": kind, "key": key, "time_ms": int(time.time() * 1000), **fields})

    def _deliver_until_stopped(self) -> None:
        retry_s, outage = FIRST_RETRY_S, False
        while self._spool.wait():
            began = time.thread_time()
            try:
                self._writer.connect()
                began = time.thread_time()  # without MLflow's import
                events = self._delivery.ready(self._spool.peek(EVENTS_PER_BATCH))
                if not events:
                    self._pause(FIRST_RETRY_S)  # the first one needs an image that is still on its way
                # Drop events only after all of them are delivered: a crash in between sends them twice, which is safe.
                if self._writer.deliver(events, stopped=lambda: self._spool.stopped):
                    self._spool.drop(len(events))
            except RunLost as error:
                LOG.warning("tracking_uri = %s: %s; all records are delivered again", self._place, error)
                self._writer.forget(error.key)
                self._spool.rewind()
            except Exception as error:
                # Every error counts as an outage: the thread must survive, or all later events would be stuck.
                if not outage:
                    message = "tracking_uri = %s: reports cannot be delivered (%s); kept in %s until the server is back"
                    LOG.warning(message, self._place, root_cause(error), self.spool_dir)
                self._pause(retry_s)
                retry_s, outage = min(2 * retry_s, LONGEST_RETRY_S), True
            else:
                if outage:
                    LOG.warning("tracking_uri = %s: reports are delivered again", self._place)
                retry_s, outage = FIRST_RETRY_S, False
                if not self._flushing:
                    self._pause(min(REST_PER_WORK * (time.thread_time() - began), LONGEST_REST_S))
        self._spool.close()
        with suppress(OSError):  # all that matters is in the store already
            self._delivery.finish()

    def _pause(self, seconds: float) -> None:
        """Wait; return early if `flush` or `close` is called."""
        self._hurry.wait(seconds)
        self._hurry.clear()


def _origin(spool_dir: Path) -> str:
    """Return the random suffix of all keys of a spool, generated once and stored with the events."""
    path, origin = spool_dir / ORIGIN_FILE, uuid.uuid4().hex[:12]
    with suppress(OSError):  # on a disk without write access, the suffix lasts as long as this process
        if path.exists():
            return path.read_text().strip()
        write_atomic(path, origin)
    return origin
