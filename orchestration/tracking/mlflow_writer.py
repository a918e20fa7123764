"""Idempotent delivery of events to MLflow, with many events per request.

Repeating a delivery changes nothing: runs are looked up by key before they are created, MLflow stores metric rows of
equal step, time and value once, file names of images depend only on their event, and artifacts are compared with those
on the server.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
import string
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestration.tracking.uri import database_of

LOG = logging.getLogger(__name__)

KEY_TAG = "soflow.key"
VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the tags in which MLflow's UI keeps the views of an experiment."""
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")
"""Tag that makes MLflow's UI show an experiment's runs and charts, not its pages for language models."""
OUTCOME_TAGS = ("state", "failure")
"""Tags that describe the end of a run; a resumed run loses them."""
METRICS_PER_REQUEST = 900  # MLflow allows 1000 items per request, 100 of them tags
LOG_BATCH = "/api/2.0/mlflow/runs/log-batch"
IMAGE_NAME_CHARACTERS = set(string.ascii_letters + string.digits + "_-./ ")  # MLflow's rule
THUMBNAIL = (256, 256)  # MLflow's size of images in the UI's tables
# MLflow's defaults retry for minutes, print to the terminal and send telemetry. Variables set by the user are kept.
MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # would break the sweep's live table
}
# Errors in the content of one request. A rejected login and a proxy's 404 are not among them: they count as outages.
# Whether it is the content is decided by a write that must succeed: BAD_REQUEST also wraps errors of the database.
PERMANENT_CODES = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}
PERMANENT_HTTP_STATUSES = {400, 413, 422}
UNREACHABLE = (PermissionError, FileNotFoundError, NotADirectoryError)
MISSING = "RESOURCE_DOES_NOT_EXIST"

Event = dict[str, Any]


class RunLost(Exception):
    """A run that was delivered is not on the server any more, for example because the server came back empty."""

    def __init__(self, key: str):
        super().__init__(f"run {key} is not on the server any more")
        self.key = key


class MlflowWriter:
    """MLflow client of one thread. Its exceptions are outages, after which delivery should be retried.

    A 5xx response counts as an outage even if a single event causes it, because the client cannot distinguish a failing
    server from an event on which the server fails. Later events are then delayed as well.

    Args:
        origin: suffix of the keys, which distinguishes them from equal keys of other spools on the same server.

    Attributes:
        run_ids: MLflow's run ids by key, as far as known.
    """

    def __init__(self, tracking_uri: str, experiment: str, origin: str):
        self.tracking_uri, self.experiment, self.origin = tracking_uri, experiment, origin
        self.run_ids: dict[str, str] = {}
        self._connected = False
        self._sent: Counter[str] = Counter()  # events sent per run before an outage interrupted a delivery
        self._warned: set[str] = set()
        self._never_started: set[str] = set()

    def connect(self) -> None:
        """Open the client and the experiment; the first call takes seconds to import MLflow or create a database."""
        if self._connected:
            return
        for name, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # the tracker reports errors, without tracebacks
        database = database_of(self.tracking_uri)
        # Two processes that create the tables of one database concurrently corrupt it permanently.
        with FileLock(f"{database}.lock") if database else nullcontext():
            client = MlflowClient(tracking_uri=self.tracking_uri)
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is None:
                artifacts = (database.parent / "artifacts").as_uri() if database else None
                self._experiment_id = client.create_experiment(self.experiment, artifacts, dict([EXPERIMENT_KIND]))
            else:
                self._experiment_id = experiment.experiment_id
                if experiment.lifecycle_stage == "deleted":  # its name cannot be used for a new experiment
                    client.restore_experiment(self._experiment_id)
                if EXPERIMENT_KIND[0] not in experiment.tags:
                    client.set_experiment_tag(self._experiment_id, *EXPERIMENT_KIND)
        self._client, self._connected = client, True

    def forget(self, key: str) -> None:
        """Forget what the server had; if the run is missing again, none of its events can be delivered."""
        self.run_ids.clear()
        self._sent.clear()
        self._connected = False
        self._never_started.add(key)

    def deliver(self, events: Iterable[Event | None], stopped: Callable[[], bool]) -> bool:
        """Send events grouped by run, the events of each run in order.

        After an outage the next call must start with the same events and may append more; it sends the rest.

        Returns:
            False if `stopped` interrupted the delivery.

        Raises:
            RunLost: if the server has lost a run; all events must be delivered again, from the first one.
        """
        by_run: dict[str, list[Event]] = {}
        for event in filter(None, events):
            by_run.setdefault(event["key"], []).append(event)
        for key, run_events in by_run.items():
            for is_values, group in itertools.groupby(run_events[self._sent[key] :], _is_values):
                for batch in [list(group)] if is_values else [[event] for event in group]:
                    if stopped():
                        return False
                    try:
                        self._send(key, batch)
                    except Exception as error:
                        self._skip_if_rejected(error, key, f"{batch[0]['kind']} of run {key}")
                    self._sent[key] += len(batch)
        self._sent.clear()
        return True

    def _send(self, key: str, events: list[Event]) -> None:
        """Send one event of a run, or several events that contain only values."""
        event = events[0]
        if event["kind"] == "start":
            self._start(key, event)
            return
        from orchestration.tracking import mlflow_uploads  # imports MLflow

        run_id = self._find_run(key)
        if run_id is None:
            raise LookupError("the run was never started") if key in self._never_started else RunLost(key)
        if event["kind"] == "artifact":
            mlflow_uploads.send_artifact(self._client, run_id, _readable(event["path"]), event["folder"])
        elif event["kind"] == "view":
            self._client.set_experiment_tag(self._experiment_id, f"{VIEW_TAG}{event['name']}", event["state"])
        elif event["kind"] == "dataset":
            mlflow_uploads.send_dataset(self._client, run_id, event)
        elif event["kind"] == "model":
            _readable(event["path"])
            identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{self._tag(key)}/{event['name']}/{event['step']}").hex
            mlflow_uploads.send_model(self._client, self._experiment_id, run_id, identity, event)
        elif event["kind"] == "end":
            # A create request that timed out here may have succeeded on the server later, and left a duplicate.
            self._find_run(key, refresh=True)
            self._client.set_terminated(run_id, event["status"], event["time_ms"])
        else:
            self._send_values(key, events)

    def _start(self, key: str, event: Event) -> None:
        from mlflow.entities import Param

        run_id = self._find_run(key)
        if run_id is None:
            tags = {KEY_TAG: self._tag(key)}
            if event["parent"] is not None and (parent := self._find_run(event["parent"])):
                tags["mlflow.parentRunId"] = parent
            run = self._client.create_run(self._experiment_id, event["time_ms"], tags, event["name"])
            run_id = self.run_ids[key] = run.info.run_id
        else:
            self._client.update_run(run_id, status="RUNNING", name=event["name"])
            for name in OUTCOME_TAGS & self._client.get_run(run_id).data.tags.keys():
                self._client.delete_tag(run_id, name)
        self._log_batch(key, params=[Param(name, str(value)) for name, value in event["params"].items()])
        self._send_values(key, [event])

    def _find_run(self, key: str, refresh: bool = False) -> str | None:
        """Return the run id of a key, None if no run has it; of duplicates, delete all but the one with data."""
        if key not in self.run_ids or refresh:
            quote = '"' if "'" in key else "'"
            has_key = f"tags.`{KEY_TAG}` = {quote}{self._tag(key)}{quote}"
            runs = list(self._client.search_runs([self._experiment_id], has_key))
            runs.sort(
                key=lambda run: (run.info.run_id == self.run_ids.get(key), len(run.data.params), len(run.data.metrics))
            )
            if runs:
                self.run_ids[key] = runs.pop().info.run_id
            for duplicate in runs:
                LOG.warning("MLflow has run %s twice; deleting the empty one, %s", key, duplicate.info.run_id)
                self._client.delete_run(duplicate.info.run_id)
        return self.run_ids.get(key)

    def _tag(self, key: str) -> str:
        return f"{key}@{self.origin}"

    def _send_values(self, key: str, events: list[Event]) -> None:
        """Send the metrics, tags and images of these events; images are files, announced by a tag."""
        from mlflow.entities import Metric, RunTag

        from orchestration.tracking.mlflow_uploads import NOTE_TAG, linked  # imports MLflow

        metrics = [
            Metric(name, value, event["time_ms"], event["step"])
            for event in events
            for name, value in event.get("metrics", {}).items()
        ]
        tags = {name: str(value) for event in events for name, value in event.get("tags", {}).items()}
        if NOTE_TAG in tags:
            tags[NOTE_TAG] = linked(tags[NOTE_TAG], self._experiment_id, self.run_ids[key], self._find_run)
        for event in events:
            if event["kind"] == "image":
                try:
                    self._send_image(self.run_ids[key], event)
                except Exception as error:
                    self._skip_if_rejected(error, key, f"image of run {key}")
                else:
                    tags["mlflow.loggedImages"] = "True"
        for start in range(0, max(len(metrics), 1), METRICS_PER_REQUEST):
            rows = metrics[start : start + METRICS_PER_REQUEST]
            self._log_batch(key, metrics=rows, tags=[RunTag(name, value) for name, value in tags.items()])
            tags = {}

    def _log_batch(self, key: str, **fields: list) -> None:
        """Send metrics, params or tags; locate rejected ones by bisection and skip only these."""
        items = [(field, item) for field, values in fields.items() for item in values]
        if not items:
            return
        try:
            if self.tracking_uri.startswith("http") and "params" not in fields:
                self._post_values(self.run_ids[key], **fields)
            else:
                self._client.log_batch(self.run_ids[key], **fields, synchronous=True)
        except Exception as error:
            if len(items) == 1:
                self._skip_if_rejected(error, key, f"{items[0][0]} {items[0][1].key} of run {key}")
            elif _is_permanent(error) or _is_missing(error):
                for half in (items[: len(items) // 2], items[len(items) // 2 :]):
                    self._log_batch(key, **{name: [item for field, item in half if field == name] for name in fields})
            else:
                raise

    def _check_run_exists(self, key: str) -> None:
        """Raise RunLost if the server does not know the run, or the experiment if the run is about to be created."""
        try:
            if key in self.run_ids:
                self._client.get_run(self.run_ids[key])
            else:
                self._client.get_experiment(self._experiment_id)
        except Exception as error:
            raise RunLost(key) if _is_missing(error) else error from None

    def _check_writing_works(self, key: str, rejection: Exception) -> None:
        """Raise the rejection if the server rejects a valid request as well, which makes it an outage."""
        if isinstance(rejection, LookupError):  # raised here, not by the server
            return
        try:
            if key in self.run_ids:
                self._client.set_tag(self.run_ids[key], KEY_TAG, self._tag(key))
            else:
                self._client.set_experiment_tag(self._experiment_id, *EXPERIMENT_KIND)
        except Exception:
            raise rejection from None

    def _post_values(self, run_id: str, metrics: list, tags: list) -> None:
        """Send the request that MLflow's client would send, at a fifth of its CPU time."""
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        rows = [
            {"key": metric.key, "value": _json_number(metric.value), "timestamp": metric.timestamp, "step": metric.step}
            for metric in metrics
        ]
        pairs = [{"key": tag.key, "value": tag.value} for tag in tags]
        body = {"run_id": run_id, "metrics": rows, "tags": pairs}
        response = http_request(get_default_host_creds(self.tracking_uri), LOG_BATCH, "POST", json=body)
        verify_rest_response(response, LOG_BATCH)

    def _send_image(self, run_id: str, event: Event) -> None:
        """Upload an image like MLflow's client, in full size and as thumbnail, but with reproducible file names."""
        from PIL import Image

        name, step, time_ms = event["name"], event["step"], event["time_ms"]
        if not set(name) <= IMAGE_NAME_CHARACTERS:
            raise ValueError(f"{name}: must contain only letters, digits, spaces and _ - . /")
        path = _readable(event["path"])
        identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{event['key']}/{name}/{step}/{time_ms}")
        stem = f"{name.replace('/', '~')}+step+{step}+timestamp+{time_ms}+{identity}"
        with tempfile.TemporaryDirectory() as folder:
            full, thumbnail = Path(folder, f"{stem}.png"), Path(folder, f"{stem}+compressed.webp")
            try:
                with Image.open(path) as image:
                    image.load()
            except OSError as error:  # raised by Pillow for damaged files; an OSError would count as an outage
                raise ValueError(f"{path}: cannot be read as an image ({error})") from None
            if image.format == "PNG":
                shutil.copyfile(path, full)
            else:
                image.save(full)
            image.thumbnail(THUMBNAIL)
            image.save(thumbnail)
            for file in (full, thumbnail):
                self._client.log_artifact(run_id, str(file), "images")

    def _skip_if_rejected(self, error: Exception, key: str, item: str) -> None:
        """Warn once per item if MLflow rejects it permanently; raise the error of an outage, or RunLost."""
        if isinstance(error, UNREACHABLE):  # the folder of MLflow's artifacts, since all other files are read
            error = ValueError(
                f"the folder of MLflow's artifacts cannot be written from here ({error.strerror}: {error.filename}); "
                "start the server with --serve-artifacts, or give both machines this folder"
            )
        if _is_missing(error):
            self._check_run_exists(key)
        elif isinstance(error, RunLost) or not _is_permanent(error):
            raise error
        self._check_writing_works(key, error)
        if item not in self._warned:
            LOG.warning("MLflow rejects %s, skipping it: %s", item, " ".join(str(error).split()))
        self._warned.add(item)


def _is_missing(error: Exception) -> bool:
    return getattr(error, "error_code", None) == MISSING


def _is_values(event: Event) -> bool:
    """Check whether an event may share a request with the events of its run before and after it."""
    return event["kind"] in ("metrics", "tags", "image")


def _json_number(value: Any) -> float | str:
    """Convert a number to the form that MLflow's server parses; raise like `float` for other objects."""
    value = float(value)
    return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")


def _is_permanent(error: Exception) -> bool:
    """Check whether a retry cannot succeed, in contrast to an outage of server, network or disk."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in PERMANENT_CODES
    if (response := getattr(error, "response", None)) is not None:
        return response.status_code in PERMANENT_HTTP_STATUSES
    return not isinstance(error, OSError)


def _readable(path: str) -> Path:
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: was deleted or cannot be read")
    return Path(path)
