"""Configuration of a launch: the training run, its resources, and where its files and records go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from soflow.config import RunConfig
from soflow.config_base import Count, Section

FLUSH_S = 60.0
"""Seconds that the end of a sweep or run waits for a slow tracking server."""
SLOWEST_UPLOAD = 5e6
"""Bytes per second that a model upload to the tracking server is assumed to reach at least."""
EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}
"""Exit code of a program by the status of its sweep or run; 130 is a shell's code for Ctrl-C."""


class ResourcesConfig(Section):
    num_workers: Count = 1
    """Data-parallel workers per run; each trains on an equal share of the batch."""
    cpus_per_worker: Count = 1
    """CPUs per worker, and number of its threads."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs per worker; a fraction shares one GPU. Default: an equal share of the available GPUs, at most one."""


class LaunchConfig(RunConfig):
    """A training run and where it is executed."""

    name: str | None = None
    """Name of the sweep or run and of its folder in `storage`. Default: objective, data set and start time."""
    address: str | None = None
    """HOST:PORT of a running Ray cluster, or `auto`. Default: start one on this machine and stop it at the end."""
    storage: Path = Path("results")
    """Folder for checkpoints, sample grids and tables; on a cluster, a folder that all nodes share."""
    tracking_uri: str | None = None
    """MLflow server (http(s)://…) or database (sqlite:///…). Default: mlflow.db in `storage`."""
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (not name or name.startswith(".") or set(name) & set("/\\")):
            raise ValueError("must be a plain folder name")
        return name

    @model_validator(mode="after")
    def _batch_divides(self) -> LaunchConfig:
        batch, workers = self.training.batch_size, self.resources.num_workers
        if batch % workers:
            raise ValueError(f"training.batch_size = {batch}: must be divisible by resources.num_workers = {workers}")
        return self

    @property
    def run(self) -> RunConfig:
        """The part of the configuration that determines the numbers."""
        # Its sections are validated and immutable already.
        return RunConfig.model_construct(**{name: getattr(self, name) for name in RunConfig.model_fields})

    @property
    def resolved_tracking_uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{self.storage.absolute() / 'mlflow.db'}"

    @property
    def mlflow_ui(self) -> str:
        """Command or address that shows the records."""
        uri = self.resolved_tracking_uri
        return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


class TrainConfig(LaunchConfig):
    """One training run."""

    resume: str | None = None
    """Name or folder of an interrupted run to continue, with its own configuration."""
