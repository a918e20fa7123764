"""Configuration of a launch: the training run, its resources, and where its files and records go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    field_validator,
    model_validator,
)

from orchestration.store.location import is_url, local_folder, url_or_path
from soflow.config import RunConfig
from soflow.config_base import Count, Positive, Section, has_password

if TYPE_CHECKING:
    from typing_extensions import Self

GIB = 2**30
FLUSH_S = 60.0
"""Seconds that the end of a sweep or run waits for a slow tracking server."""
SLOWEST_UPLOAD = 5e6
"""Bytes per second that a model upload to the tracking server is assumed to reach at least."""


PASSWORDS = (
    "for an MLflow server set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, for PostgreSQL PGPASSWORD or "
    "~/.pgpass"
)
"""Where passwords belong."""
LONGEST_NAME = 200
"""Bytes of a name; file systems allow 255 with what is added to it."""
STORAGE = Path("results")
"""Default storage."""


def storage_folder(path: Any) -> Any:
    """Make a path absolute, so that a sweep resumes from everywhere; a store's URL becomes its local folder."""
    if isinstance(path, str) and is_url(path):
        return local_folder(path)
    if re.match(r"\w[\w+.-]+:/[^/]", str(path)):
        raise ValueError("is a URL that has lost a slash; give it as text, not as a Path")
    return Path(path).expanduser().absolute() if isinstance(path, (str, Path)) else path


Folder = Annotated[Path, BeforeValidator(storage_folder), PlainSerializer(url_or_path)]
"""Folder on a disk, or in an object store, which is written as its URL."""


def database_url(uri: str) -> str:
    """Make the path in a URL of an SQLite database absolute; refuse a URL with a password.

    Raises:
        ValueError: if there is one, because the URL is stored with the sweep and shown.
    """
    if has_password(uri):
        raise ValueError(f"must not contain a password, which would be stored and shown; {PASSWORDS}")
    database = re.fullmatch(r"(sqlite:///)([^/].*)", uri)
    return f"{database[1]}{Path(database[2]).absolute()}" if database and database[2] != ":memory:" else uri


def named_value(text: str) -> str:
    """Check that a tag is NAME=VALUE.

    Raises:
        ValueError: if it is not.
    """
    name, _, value = text.partition("=")
    if not (value and re.fullmatch(r"\w[\w.\- ]*", name) and len(name) <= LONGEST_NAME):
        raise ValueError("must be NAME=VALUE, the name of letters, digits, _ . - and spaces, without a space first")
    return text


class ResourcesConfig(Section):
    num_workers: Count = 1
    """Data-parallel workers per run; each trains on an equal share of the batch."""
    cpus_per_worker: Count = 1
    """CPUs per worker, and number of its threads."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs per worker; a fraction shares one GPU. Default: an equal share of the available GPUs, at most one."""
    memory_gib_per_worker: Positive | None = None
    """GiB of main memory that Ray reserves for each worker, which then waits for a machine that has them free. Default:
    none are reserved."""

    def per_worker(self) -> dict[str, float]:
        """Return what each worker reserves, as Ray names it; memory in bytes."""
        amounts = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker or 0}
        amounts["memory"] = int((self.memory_gib_per_worker or 0) * GIB)
        return {kind: amount for kind, amount in amounts.items() if amount}


class Launch(Section):
    """Where a program runs, and where its files and records go."""

    name: str | None = None
    """Name of the sweep or run and of its folder in `storage`. Default: objective, data set and start time."""
    address: str | None = None
    """HOST:PORT of a running Ray cluster, or `auto`. Default: start one on this machine and stop it at the end."""
    wait_for_nodes_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds to wait for nodes if the cluster is too small at the start; its autoscaler, if any, is asked for them."""
    storage: Folder = Field(default=STORAGE, validate_default=True)
    """Folder for checkpoints, sample grids and tables; on a cluster, a folder that all nodes share, or an object
    store: s3://BUCKET/PREFIX or gs://BUCKET/PREFIX."""
    tracking_uri: Annotated[str, AfterValidator(database_url)] | None = None
    """MLflow server (http(s)://…) or database (sqlite:///…). Default: the environment's MLFLOW_TRACKING_URI, or
    mlflow.db in `storage`."""
    tags: tuple[Annotated[str, AfterValidator(named_value)], ...] = ()
    """Your own tags in MLflow, each NAME=VALUE, to filter and group runs; a sweep's trials get them as well."""
    note: str | None = None
    """Your own note, at the top of the description in MLflow."""
    resources: ResourcesConfig = Field(default_factory=ResourcesConfig)

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """Values by path that the user gave on the command line or in files, and that are no program's default."""
        return self._given

    def with_given(self, given: dict[str, Any]) -> Self:
        """Return a copy with these values as `given`."""
        copy = self.model_copy()
        copy._given = given
        return copy

    @field_validator("tags")
    @classmethod
    def _have_names_of_their_own(cls, tags: tuple[str, ...]) -> tuple[str, ...]:
        names = [text.partition("=")[0] for text in tags]
        if len(set(names)) < len(names):
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
        return tags

    @field_validator("name")
    @classmethod
    def _is_not_too_long(cls, name: str | None) -> str | None:
        if name is not None and (size := len(name.encode())) > LONGEST_NAME:
            raise ValueError(f"must have at most {LONGEST_NAME} bytes, not {size}, to be a file name")
        return name

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (not name or name.startswith(".") or set(name) & set("/\\")):
            raise ValueError("must be a plain folder name")
        return name

    @property
    def own_tags(self) -> dict[str, str]:
        """Values of `tags` by name."""
        return {name: value for name, _, value in (text.partition("=") for text in self.tags)}

    @property
    def resolved_tracking_uri(self) -> str:
        from_environment = os.environ.get("MLFLOW_TRACKING_URI")
        return self.tracking_uri or from_environment or f"sqlite:///{self.storage.absolute() / 'mlflow.db'}"

    @property
    def mlflow_ui(self) -> str:
        """Command or address that shows the records."""
        uri = self.resolved_tracking_uri
        return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


class LaunchConfig(Launch, RunConfig):
    """A training run and where it is executed."""

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


class TrainConfig(LaunchConfig):
    """One training run."""

    resume: str | None = None
    """Name or folder of an interrupted run to continue, with its own configuration."""
