"""Sweeps in a real MLflow database with real Optuna studies, written in milliseconds without any training."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from PIL import Image

from orchestration.storage import SWEEP_FILE, trial_folder
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.study import SweepStudy
from orchestration.sweep.ticket import trial_config
from orchestration.tracking.schema import MAY_CHANGE
from soflow.config import flatten, to_dict
from soflow.config_files import to_yaml
from tests.database import new_database

PROTOCOL = {
    "fid_feature_network": "digits-cnn",
    "fid_feature_weights_sha256": "32fbca5906c8",
    "fid_num_samples": "1024",
    "fid_reference": "data",
    "fid_reference_fingerprint": "ac2213023a1d",
    "fid_num_references": "1797",
}
EVERY = 100
"""Steps between reports."""


class SweepStore:
    """An MLflow database with sweeps, each given by the outcomes of its trials."""

    def __init__(self, folder: Path):
        self.folder, self.uri = folder, new_database(folder)
        self.client = MlflowClient(self.uri)
        self._numbers = itertools.count()
        existing = self.client.get_experiment_by_name("soflow")
        self.experiment = (
            existing.experiment_id
            if existing
            else self.client.create_experiment("soflow", artifact_location=(folder / "artifacts").as_uri())
        )

    def sweep(
        self,
        name: str,
        outcomes: list[tuple[str, list[float]]],
        images: bool = False,
        real: bool = False,
        **config: Any,
    ) -> str:
        """Record a sweep whose trials ended as (state, FIDs over steps); return the id of its run.

        Args:
            images: whether trials have sample grids.
            real: whether finished trials have a grid of real images.
        """
        values = {"name": "made", "storage": self.folder, "num_trials": len(outcomes)} | config
        config = SweepConfig.model_validate(values)
        folder = self.folder / "sweeps" / str(next(self._numbers))
        folder.mkdir(parents=True)
        (folder / SWEEP_FILE).write_text(to_yaml(config))
        tags = {"soflow.kind": "sweep", "sweep": name, "folder": str(folder), "git_commit": "a" * 40}
        params = flatten(to_dict(config))
        tags |= {path: str(params.pop(path)) for path in list(params) if path.partition(".")[0] in MAY_CHANGE}
        tags |= {"objective": config.objective.name, "dataset": config.dataset.name}
        parent = self.client.create_run(self.experiment, 1_000, tags, name).info.run_id
        self.client.log_batch(parent, params=[Param(key, str(value)) for key, value in params.items()])
        self.client.log_artifact(parent, str(folder / SWEEP_FILE))
        study = SweepStudy(config, folder, search_space.build(config))
        started: set[int] = set()
        for state, fids in outcomes:
            ticket = study.next_trial(started)
            started.add(ticket.number)
            self._trial(study, parent, ticket.number, ticket.point, state, fids, images)
            if real and state == "finished":
                run = self.children(parent)[ticket.number].info.run_id
                self._image(run, "real", len(fids) * EVERY, Image.linear_gradient("L").resize((86, 86)))
        self.client.set_terminated(parent, "FINISHED", 90_000)
        return parent

    def _trial(
        self, study: SweepStudy, parent: str, number: int, point: dict, state: str, fids: list[float], images: bool
    ) -> None:
        name = study.folder.name
        tags = PROTOCOL | {"soflow.kind": "trial", "sweep": name, "mlflow.parentRunId": parent}
        tags |= {"optuna_number": str(number), "nfe": "1,2", "folder": str(trial_folder(study.folder, number))}
        tags |= {"case": point["case"]} if "case" in point else {}
        run = self.client.create_run(self.experiment, 2_000 + number, tags, f"{name}-{number:04d}").info.run_id
        params = flatten(to_dict(trial_config(study.config.run, point, study.config.cases)))
        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])
        rows, metrics = [], {}
        for position, fid in enumerate(fids, 1):
            costs = {"time/train_s": position * (3 + number / 7), "memory/peak_mib": 900 + 37 / (1 + number)}
            metrics = {"fid": fid, "fid_2nfe": fid * 0.9, "kid": fid / 30, "fid_floor": 0.0407} | costs
            rows += [Metric(key, value, 3_000, position * EVERY) for key, value in metrics.items()]
            study.report(number, position * EVERY, {"metrics": metrics})
            if images:
                self._image(run, "samples", position * EVERY)
        if images and state == "finished":
            self._image(run, "samples_4nfe", len(fids) * EVERY)
        if state != "failed":
            rows += [Metric(f"final/{key}", value, 4_000, len(fids) * EVERY) for key, value in metrics.items()]
        failure = {"failure": "the loss became NaN"} if state == "failed" else {}
        ended = [RunTag(key, value) for key, value in ({"state": state} | failure).items()]
        self.client.log_batch(run, metrics=rows, tags=ended)
        self.client.set_terminated(run, "FAILED" if state == "failed" else "FINISHED", 60_000 + 1_000 * number)
        result = {"step": len(fids) * EVERY, "metrics": metrics}
        if state == "finished":
            study.complete(number, result)
        elif state == "stopped":
            study.prune(number, result)
        else:
            study.fail(number, failure["failure"], result)

    def _image(self, run: str, name: str, step: int, image: Image.Image | None = None) -> None:
        picture = self.folder / f"{name}+step+{step}+timestamp+1795477884997+{step:08d}.png"
        content = io.BytesIO()
        (image or Image.effect_noise((86, 86), 90)).save(content, "PNG")
        picture.write_bytes(content.getvalue())
        self.client.log_artifact(run, str(picture), "images")

    def children(self, parent: str) -> dict[int, Any]:
        """Read the runs of a sweep's trials by number."""
        runs = MlflowClient(self.uri).search_runs([self.experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
        return {int(run.data.tags["optuna_number"]): run for run in runs}

    def folder_of(self, parent: str) -> Path:
        return Path(self.client.get_run(parent).data.tags["folder"])
