"""What a launch needs besides the run itself: where it runs, how much it may use, where its records go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from soflow.config import RunConfig, to_dict
from soflow.sections import Count, Section

EXPERIMENT = "soflow"
"""The MLflow experiment of all sweeps and runs."""
FLUSH_S = 60.0
"""How long the end of a sweep or run waits for a slow tracking server."""


EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}
"""How a program ends for each end of its sweep or run, by MLflow's names; 130 is a shell's code for Ctrl-C."""


class ResourcesConfig(Section):
    num_workers: Count = 1
    """Training workers per run; the batch is divided among them."""
    cpus_per_worker: Count = 1
    """CPUs per worker, also the number of threads that it computes with."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs per worker, a fraction to share one; by default an even share of what there is, at most one."""


class LaunchConfig(RunConfig):
    """A training run and where it is executed."""

    name: str | None = None
    """Name of this sweep or run, also its folder under `storage`; by default objective, data set and time."""
    address: str | None = None
    """HOST:PORT of an existing Ray cluster, or auto; by default one is started here for the time of the run."""
    storage: Path = Path("results")
    """Folder for checkpoints, grids and tables; on a cluster it must be shared by all nodes."""
    tracking_uri: str | None = None
    """MLflow: an http(s):// server or a sqlite:/// database, by default mlflow.db in `storage`."""
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
        """The part that determines the numbers."""
        values = to_dict(self)
        return RunConfig.model_validate({key: values[key] for key in RunConfig.model_fields})

    @property
    def resolved_tracking_uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{self.storage.absolute() / 'mlflow.db'}"

    @property
    def mlflow_ui(self) -> str:
        """How to look at the records."""
        uri = self.resolved_tracking_uri
        return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


class TrainConfig(LaunchConfig):
    """One training run."""

    resume: Path | None = None
    """Folder of an interrupted run to go on with; its own configuration is used."""


class SweepConfig(LaunchConfig):
    """A search over the configuration of training runs."""

    num_trials: Count = 16
    """Configurations to try."""
    max_concurrent: Count = 2
    """Trials at a time; each has its own group of workers."""
    search: tuple[str, ...] | None = None
    """What is searched, each PATH=LOW:HIGH, PATH=LOW:HIGH:log or PATH=A,B,C; by default what the objective needs."""
    early_stopping: bool = True
    """Stop the worse half of the trials early (ASHA on the optimiser step)."""
    grace_reports: Count = 4
    """Reports that every trial makes before it may be stopped."""
    resume: str | None = None
    """Name of an interrupted sweep in `storage` to go on with; its own configuration is used."""

    @field_validator("search", mode="before")
    @classmethod
    def _as_assignments(cls, search: Any) -> Any:
        """YAML may hold a mapping of paths instead of a list of assignments."""
        return tuple(f"{path}={spec}" for path, spec in search.items()) if isinstance(search, dict) else search
