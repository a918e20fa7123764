"""Idempotent upload of everything but values to MLflow: files, data sets, models, and links in notes."""

from __future__ import annotations

import filecmp
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException

NOTE_TAG = "mlflow.note.content"
PARENT_TAG = "mlflow.parentRunId"
MODEL_TAG = "soflow.model"
LINK = re.compile(r"\[([^\[\]]*)\]\(<(run|artifact|view):([^<>\n]*)>\)")
MODEL_METRICS = "final/"
"""Prefix of the run's metrics that are copied to its model."""

Event = dict[str, Any]


class TooOld(ValueError):
    """Server before MLflow 3, without logged models."""


def send_artifact(client: MlflowClient, run_id: str, path: Path, folder: str) -> None:
    """Upload a file, or the files of a folder, except those that the server has with equal content."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        target_folder = Path(folder, file.parent.relative_to(path.parent)).as_posix()
        if not _is_uploaded(client, run_id, file, "" if target_folder == "." else target_folder):
            client.log_artifact(run_id, str(file), None if target_folder == "." else target_folder)


def _is_uploaded(client: MlflowClient, run_id: str, file: Path, folder: str) -> bool:
    """Check whether the run has this file with equal content."""
    target = f"{folder}/{file.name}" if folder else file.name
    sizes = {artifact.path: artifact.file_size for artifact in client.list_artifacts(run_id, folder or None)}
    if sizes.get(target) != file.stat().st_size:
        return False
    with tempfile.TemporaryDirectory() as temporary:
        return filecmp.cmp(file, client.download_artifacts(run_id, target, temporary), shallow=False)


def send_dataset(client: MlflowClient, run_id: str, event: Event) -> None:
    """Log the training data of a run."""
    source = json.dumps(event["source"])
    data = Dataset(event["name"], event["digest"], "soflow", source, profile=json.dumps(event["profile"]))
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def send_model(client: MlflowClient, experiment_id: str, run_id: str, identity: str, event: Event) -> None:
    """Register a folder as a logged model, an output of its run and of the run's parent.

    Args:
        identity: unique tag of the model, to continue an interrupted upload.
    """
    run = client.get_run(run_id)
    try:
        models = client.search_logged_models([experiment_id], f"tags.`{MODEL_TAG}` = '{identity}'")
    except MlflowException as error:
        if error.error_code == "ENDPOINT_NOT_FOUND":
            raise TooOld("the server is older than MLflow 3 and does not support logged models") from None
        raise
    name, tags = re.sub(r"[/:.%\"']", "-", event["name"]), {MODEL_TAG: identity} | event["tags"]
    model = models[0] if models else client.create_logged_model(experiment_id, name, run_id, tags, event["params"])
    if model.status != LoggedModelStatus.READY:
        client.log_model_artifacts(model.model_id, event["path"])
        client.set_logged_model_tags(model.model_id, {NOTE_TAG: event["note"].replace("MODEL_ID", model.model_id)})
        client.log_batch(run_id, _metrics_of(client, run, model.model_id))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    parent = run.data.tags.get(PARENT_TAG)
    for producer in [run, *([client.get_run(parent)] if parent else [])]:
        if model.model_id not in [output.model_id for output in producer.outputs.model_outputs]:
            client.log_outputs(producer.info.run_id, [LoggedModelOutput(model.model_id, event["step"])])


def _metrics_of(client: MlflowClient, run: Any, model_id: str) -> list[Metric]:
    """Return the run's last values as metrics of the model, with the same timestamps, so that the run has them once."""
    names = [name for name in run.data.metrics if name.startswith(MODEL_METRICS)]
    last = [client.get_metric_history(run.info.run_id, name)[-1] for name in names]
    return [
        Metric(row.key, row.value, row.timestamp, row.step, model_id=model_id, run_id=run.info.run_id) for row in last
    ]


def linked(note: str, experiment_id: str, run_id: str, find_run: Callable[[str], str | None]) -> str:
    """Replace a note's links to run keys and file paths by URLs of the UI; links to unknown runs become plain text."""

    def resolve(link: re.Match[str]) -> str:
        words, kind, target = link.groups()
        if kind == "view":
            return f"[{words}](<#/experiments/{experiment_id}/runs?viewStateShareKey={target}>)"
        target_run = find_run(target) if kind == "run" else run_id
        page = f"/artifacts/{target}" if kind == "artifact" else ""
        return f"[{words}](<#/experiments/{experiment_id}/runs/{target_run}{page}>)" if target_run else words

    return LINK.sub(resolve, note)
