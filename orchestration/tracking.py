"""The one writer to MLflow: what happens in runs is recorded on disk at once and delivered in the background.

A tracking server that is slow, down or restarted never delays training and loses nothing: the spool keeps every event
and sends it when the server is back, in order, also after a restart of this process. Delivery may be interrupted at
any point and repeated, because repeating changes nothing: runs are found by their key before they are created, MLflow
stores a metric's row of the same step, time and value once, and images are looked up before they are sent.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestration.spool import Spool
from orchestration.tracking_check import database_of, root_cause, without_password

LOG = logging.getLogger(__name__)

KEY_TAG = "soflow.key"
STATUSES = ("FINISHED", "FAILED", "KILLED")
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 10.0
EVENTS_PER_BATCH = 200
# MLflow's defaults retry for minutes, print to the terminal and call home; what the user has set is kept.
MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Refusals of one request for its content. A rejected login or a proxy's 404 are not: they count as outages.
PERMANENT_CODES = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
PERMANENT_HTTP_STATUSES = {400, 413, 422}


class Tracker:
    """Records the events of runs; a daemon thread delivers them to MLflow.

    A run is known by its key, such as "<sweep>/<trial>", which stands for one MLflow run for ever. Only an unknown
    status raises; an event that MLflow refuses is skipped with a warning. A metric or image is taken once per step:
    a run that repeats steps after a restart adds nothing until it is beyond the last step recorded.

    Args:
        tracking_uri: http://, https:// or sqlite:/// URI; with SQLite the artifacts lie beside the database.
        experiment: name of the MLflow experiment, created if missing.
        spool_dir: folder of the recorded events; what an earlier process left undelivered there is sent first.

    Raises:
        TrackingError: if another tracker is open on spool_dir.
    """

    def __init__(self, tracking_uri: str, experiment: str, spool_dir: Path):
        self.tracking_uri, self.spool_dir = tracking_uri, Path(spool_dir)
        self._last_step: dict[tuple[str, str, str], int] = {}
        self._spool = Spool(self.spool_dir, visit=self._note_steps)
        self._writer = _Writer(tracking_uri, experiment)
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._deliver_until_stopped, name="mlflow-writer", daemon=True)
        self._thread.start()

    def start_run(
        self, key: str, name: str, params: dict[str, Any], tags: dict[str, Any], parent: str | None = None
    ) -> None:
        """Create the run of this key, or set the one that exists back to RUNNING; `parent` is a key too."""
        self._record("start", key, name=name, params=params, tags=tags, parent=parent)

    def log_metrics(self, key: str, metrics: dict[str, float], step: int) -> None:
        new = {name: value for name, value in metrics.items() if self._is_new_step("metrics", key, name, step)}
        if new:
            self._record("metrics", key, metrics=new, step=step)

    def log_image(self, key: str, path: Path, name: str, step: int) -> None:
        """Upload an image file that the UI shows over steps; the file must stay until it is delivered."""
        if self._is_new_step("image", key, name, step):
            self._record("image", key, path=Path(path).absolute(), name=name, step=step)

    def log_artifact(self, key: str, path: Path, folder: str = "") -> None:
        """Upload a file or a folder into a folder of the run; it must stay until it is delivered."""
        self._record("artifact", key, path=Path(path).absolute(), folder=folder)

    def set_tags(self, key: str, tags: dict[str, Any]) -> None:
        self._record("tags", key, tags=tags)

    def end_run(self, key: str, status: str) -> None:
        if status not in STATUSES:
            raise ValueError(f"status = {status}: must be one of {', '.join(STATUSES)}")
        self._record("end", key, status=status)

    def run_id(self, key: str) -> str | None:
        """MLflow's id of a run, None until this tracker has delivered an event of it."""
        return self._writer.run_ids.get(key)

    def flush(self, timeout_s: float) -> bool:
        """Block until everything is delivered; False if the time was not enough."""
        self._hurry.set()
        return self._spool.wait_empty(timeout_s)

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

    def _note_steps(self, event: dict[str, Any]) -> None:
        if event["kind"] in ("metrics", "image"):
            for name in event.get("metrics", [event.get("name")]):
                self._is_new_step(event["kind"], event["key"], name, event["step"])

    def _is_new_step(self, kind: str, key: str, name: str, step: int) -> bool:
        slot = (kind, key, name)
        if step <= self._last_step.get(slot, -math.inf):
            return False
        self._last_step[slot] = step
        return True

    def _deliver_until_stopped(self) -> None:
        retry_s, outage = FIRST_RETRY_S, False
        while self._spool.wait():
            try:
                self._spool.drop(self._writer.deliver(self._spool.peek(EVENTS_PER_BATCH)))
            except Exception as error:
                if not outage:
                    message = "tracking_uri = %s takes no reports (%s); they wait in %s and are sent when it does"
                    LOG.warning(message, without_password(self.tracking_uri), root_cause(error), self.spool_dir)
                self._hurry.wait(retry_s)
                self._hurry.clear()
                retry_s, outage = min(2 * retry_s, LONGEST_RETRY_S), True
            else:
                if outage:
                    LOG.warning("tracking_uri = %s takes reports again", without_password(self.tracking_uri))
                retry_s, outage = FIRST_RETRY_S, False
        self._spool.close()


class _Writer:
    """Sends events to MLflow; used by one thread. What it raises is an outage, worth a later try."""

    def __init__(self, tracking_uri: str, experiment: str):
        self.tracking_uri, self.experiment = tracking_uri, experiment
        self.run_ids: dict[str, str] = {}
        self._client = None
        self._warned: set[str] = set()

    def deliver(self, events: Iterable[dict[str, Any]]) -> int:
        """Send the oldest event, or several if they are metrics and tags only; returns how many."""
        if self._client is None:
            self._connect()
        events = iter(events)
        batch = [next(events)]
        if batch[0]["kind"] in ("metrics", "tags"):
            batch += itertools.takewhile(lambda event: event["kind"] in ("metrics", "tags"), events)
        by_run: dict[str, list[dict[str, Any]]] = {}
        for event in batch:
            by_run.setdefault(event["key"], []).append(event)
        for key, run_events in by_run.items():
            try:
                self._send(key, run_events)
            except Exception as error:
                self._skip_if_refused(error, f"{run_events[0]['kind']} of run {key}")
        return len(batch)

    def _connect(self) -> None:
        """Open the client and the experiment; seconds for MLflow's import and for the creation of a database."""
        for name, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # the tracker tells, without tracebacks
        client = MlflowClient(tracking_uri=self.tracking_uri)
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            database = database_of(self.tracking_uri)
            artifacts = (database.parent / "artifacts").as_uri() if database else None
            self._experiment_id = client.create_experiment(self.experiment, artifact_location=artifacts)
        else:
            self._experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":  # MLflow lets nobody else take its name
                client.restore_experiment(self._experiment_id)
        self._client = client

    def _send(self, key: str, events: list[dict[str, Any]]) -> None:
        """Send one event, or several of metrics and tags, of one run."""
        event = events[0]
        if event["kind"] == "start":
            self._start(key, event)
            return
        run_id = self._find_run(key)
        if run_id is None:
            raise LookupError("it was never started")
        if event["kind"] == "image":
            self._send_image(run_id, event)
        elif event["kind"] == "artifact":
            path = _readable(event["path"])
            self._client.log_artifact(run_id, str(path), event["folder"] or None)
        elif event["kind"] == "end":
            self._client.set_terminated(run_id, event["status"], event["time_ms"])
        else:
            self._send_values(key, events)

    def _start(self, key: str, event: dict[str, Any]) -> None:
        from mlflow.entities import Param

        run_id = self._find_run(key)
        if run_id is None:
            tags = {KEY_TAG: key}
            if event["parent"] is not None and (parent := self._find_run(event["parent"])):
                tags["mlflow.parentRunId"] = parent
            run = self._client.create_run(self._experiment_id, event["time_ms"], tags, event["name"])
            run_id = self.run_ids[key] = run.info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING", name=event["name"])
        self._log_batch(key, "params", [Param(name, str(value)) for name, value in event["params"].items()])
        self._send_values(key, [event])

    def _find_run(self, key: str) -> str | None:
        if key not in self.run_ids:
            quote = '"' if "'" in key else "'"
            query = f"tags.`{KEY_TAG}` = {quote}{key}{quote}"
            for run in self._client.search_runs([self._experiment_id], query, max_results=1):
                self.run_ids[key] = run.info.run_id
        return self.run_ids.get(key)

    def _send_values(self, key: str, events: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric, RunTag

        metrics = [
            Metric(name, value, event["time_ms"], event["step"])
            for event in events
            for name, value in event.get("metrics", {}).items()
        ]
        tags = {name: str(value) for event in events for name, value in event.get("tags", {}).items()}
        self._log_batch(key, "metrics", metrics)
        self._log_batch(key, "tags", [RunTag(name, value) for name, value in tags.items()])

    def _log_batch(self, key: str, field: str, items: list) -> None:
        """Send metrics, params or tags; refused ones are found by halving and skipped, so that the rest arrives."""
        try:
            self._client.log_batch(self.run_ids[key], **{field: items}, synchronous=True)
        except Exception as error:
            if len(items) == 1:
                self._skip_if_refused(error, f"{field} {items[0].key} of run {key}")
            elif _is_permanent(error):
                self._log_batch(key, field, items[: len(items) // 2])
                self._log_batch(key, field, items[len(items) // 2 :])
            else:
                raise

    def _send_image(self, run_id: str, event: dict[str, Any]) -> None:
        from PIL import Image

        name, step, time_ms = event["name"], event["step"], event["time_ms"]
        try:
            with Image.open(_readable(event["path"])) as file:
                image = file.copy()
        except OSError as error:  # Pillow's errors for damaged files, which must not pass for an outage
            raise ValueError(f"{event['path']}: cannot be read as an image ({error})") from None
        # MLflow uploads an image as two files with a random part in their names, the reduced one last.
        start = f"images/{name.replace('/', '~')}+step+{step}+timestamp+{time_ms}+"
        sent = [file.path for file in self._client.list_artifacts(run_id, "images") if file.path.startswith(start)]
        if not sent:
            self._client.log_image(run_id, image, key=name, step=step, timestamp=time_ms, synchronous=True)
            return
        if len(sent) == 1:
            image.thumbnail((256, 256))
            with tempfile.TemporaryDirectory() as folder:
                reduced = Path(folder, f"{Path(sent[0]).stem}+compressed.webp")
                image.save(reduced)
                self._client.log_artifact(run_id, str(reduced), "images")
        self._client.set_tag(run_id, "mlflow.loggedImages", "True")

    def _skip_if_refused(self, error: Exception, what: str) -> None:
        if not _is_permanent(error):
            raise error
        if what not in self._warned:
            LOG.warning("MLflow refuses %s, which is skipped: %s", what, " ".join(str(error).split()))
        self._warned.add(what)


def _is_permanent(error: Exception) -> bool:
    """Whether the same request would be refused for ever, as against an outage of server, network or disk."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in PERMANENT_CODES
    if (response := getattr(error, "response", None)) is not None:
        return response.status_code in PERMANENT_HTTP_STATUSES
    return not isinstance(error, OSError)


def _readable(path: str) -> Path:
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: is gone or cannot be read")
    return Path(path)
