"""What a launch needs besides the run itself: where it runs, how much it may use, where its records go."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from orchestration.sweep.hypotheses import read_hypothesis
from soflow.config import RunConfig, to_dict
from soflow.config_base import Count, Section

EXPERIMENT = "soflow"
"""The MLflow experiment of all sweeps and runs."""
FLUSH_S = 60.0
"""How long the end of a sweep or run waits for a slow tracking server."""
SLOWEST_UPLOAD = 5e6
"""Bytes per second with which a model is expected to reach that server at least."""


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


SamplerName = Literal["tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "random"]
CONDITIONAL_SAMPLERS = ("tpe", "random")
"""Those that can leave a dimension out of a trial; for others every trial has all dimensions."""
NUM_TRIALS = 16


class EarlyStoppingConfig(Section):
    kind: Literal["asha", "hyperband", "median", "none", "pbt"] = "asha"
    """Successive halving as results come, several halvings side by side, the median rule, or never; or pbt: nothing is
    stopped, but the worst trials go on from the best ones' weights with other m and w."""
    grace_reports: Count = 4
    """Reports that every trial makes before it may be stopped; with pbt, between two exchanges."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """One in this many trials goes on at each rung; a rung has this many times the steps of the one before."""
    compare: Literal["equal_steps", "equal_progress"] = "equal_steps"
    """At equal steps, or after whole trainings of growing K, each with all of r(k, K): up to twice the steps."""


class SweepConfig(LaunchConfig):
    """A search over the configuration of training runs."""

    num_trials: Count | None = None
    """Configurations to try, 16 by default; with --resume the sweep is extended to this many."""
    max_concurrent: Count = 2
    """Trials at a time; each has its own group of workers."""
    seeds_per_trial: Count = 1
    """Seeds that each configuration is trained with to its end; the search sees the mean of their FIDs."""
    trial_retries: Annotated[int, Field(ge=0)] = 3
    """How often a trial goes on from its checkpoint after its process or one of its workers was lost."""
    search: tuple[str, ...] | None = None
    """What is searched, each PATH=LOW:HIGH, PATH=LOW:HIGH:log or PATH=A,B,C; by default what the objective needs."""
    cases: tuple[str, ...] = ()
    """Configurations to compare instead of a search, each NAME or NAME:PATH=VALUE,PATH=VALUE; another objective.name
    begins from that objective's own defaults."""
    case_seeds: Count = 1
    """Seeds that every case is trained with, one trial each: `seed` and the numbers after it."""
    hypotheses: tuple[str, ...] = ()
    """What is held to be true of the cases before they run, each METRIC(CASE) < METRIC(CASE), the right side also with
    a factor, NUMBER * METRIC(CASE), or a plain NUMBER; the report tests them over the seeds."""
    sampler: SamplerName = "tpe"
    """How configurations are chosen (Optuna's samplers); cmaes and gp want few, numeric dimensions."""
    goals: tuple[str, ...] = ("fid",)
    """Reported metrics to minimise, such as time/train_s or memory/peak_mib; the first ranks and stops trials."""
    constraints: tuple[str, ...] = ()
    """What a trial must keep to count as best, each METRIC<=NUMBER, such as memory/peak_mib<=2000."""
    known_points: tuple[str, ...] | None = None
    """Points tried first, each PATH=VALUE,PATH=VALUE; by default the base configuration and the paper's settings."""
    early_stopping: EarlyStoppingConfig = Field(default_factory=EarlyStoppingConfig)
    study_storage: str | None = None
    """Database URL of the Optuna study, by default study.journal in its folder; optuna-dashboard opens either."""
    progress: Literal["auto", "live", "plain", "json"] = "auto"
    """How it is told: a table redrawn on the terminal, a line per report, or one JSON object per event on stdout (other
    text on stderr); auto takes the table on a terminal and lines elsewhere."""
    resume: str | None = None
    """Name of a sweep to go on with or to extend; its own configuration is used, but for num_trials and search."""

    @field_validator("search", mode="before")
    @classmethod
    def _as_assignments(cls, search: Any) -> Any:
        """YAML may hold a mapping of paths instead of a list of assignments."""
        return tuple(f"{path}={spec}" for path, spec in search.items()) if isinstance(search, dict) else search

    @field_validator("known_points", mode="before")
    @classmethod
    def _as_points(cls, points: Any) -> Any:
        """YAML may hold mappings of paths instead of lists of assignments."""
        if not isinstance(points, (list, tuple)):
            return points
        as_text = (
            ",".join(f"{k}={v}" for k, v in point.items()) if isinstance(point, dict) else point for point in points
        )
        return tuple(as_text)

    @field_validator("goals")
    @classmethod
    def _goals_differ(cls, goals: tuple[str, ...]) -> tuple[str, ...]:
        if not goals or len(set(goals)) < len(goals):
            raise ValueError("must be one or more different metrics")
        return goals

    @field_validator("constraints")
    @classmethod
    def _constraints_read(cls, constraints: tuple[str, ...]) -> tuple[str, ...]:
        for constraint in constraints:
            read_constraint(constraint)
        return constraints

    @field_validator("cases", mode="before")
    @classmethod
    def _as_cases(cls, cases: Any) -> Any:
        """YAML may hold a mapping of names to mappings of paths."""
        if not isinstance(cases, dict):
            return cases
        return tuple(
            f"{name}:{','.join(f'{path}={value}' for path, value in (case or {}).items())}"
            for name, case in cases.items()
        )

    @field_validator("cases")
    @classmethod
    def _cases_read(cls, cases: tuple[str, ...]) -> tuple[str, ...]:
        if len({read_case(case)[0] for case in cases}) < len(cases):
            raise ValueError("must have different names")
        return cases

    @model_validator(mode="after")
    def _hypotheses_are_about_cases(self) -> SweepConfig:
        known = [read_case(case)[0] for case in self.cases]
        for text in self.hypotheses if self.resume is None else ():
            for term in read_hypothesis(text).terms:
                if term.case not in known:
                    there = ", ".join(known) or "none"
                    raise ValueError(f"hypotheses = {text}: {term.case} is no case; there are {there}")
        return self

    @model_validator(mode="after")
    def _cases_are_all_there_is(self) -> SweepConfig:
        """What is compared is trained to its end, and all of it."""
        if not self.cases or self.resume is not None:
            return self
        for name, value, wanted in (
            ("search", self.search, None),
            ("known_points", self.known_points, None),
            ("early_stopping.kind", self.early_stopping.kind, "none"),
            ("seeds_per_trial", self.seeds_per_trial, 1),
        ):
            if value != wanted:
                raise ValueError(f"{name} = {value}: must be {wanted or 'left out'} with cases")
        if self.num_trials != (whole := len(self.cases) * self.case_seeds):
            raise ValueError(f"num_trials = {self.num_trials}: must be {whole} or left out with these cases")
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_new_sweep_has_a_number_of_trials(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("resume") is None and values.get("num_trials") is None:
            cases, seeds = (values.get(name, cls.model_fields[name].default) for name in ("cases", "case_seeds"))
            return values | {"num_trials": len(cases or ()) * seeds or NUM_TRIALS}
        return values


def read_case(case: str) -> tuple[str, dict[str, Any]]:
    """Name and changed values of NAME or NAME:PATH=VALUE,PATH=VALUE; a value is YAML, so [1, 2] is one.

    Raises:
        ValueError: if it reads otherwise.
    """
    name, _, text = case.partition(":")
    changes = {}
    for assignment in filter(None, re.split(r",(?![^\[]*\])", text)):
        path, equals, value = assignment.partition("=")
        if not equals or not path.strip():
            raise ValueError(f"{case} must read NAME or NAME:PATH=VALUE,PATH=VALUE")
        changes[path.strip()] = yaml.safe_load(value)
    if not name.strip():
        raise ValueError(f"{case} must begin with a name")
    return name.strip(), changes


def read_constraint(constraint: str) -> tuple[str, float]:
    """(metric, its highest allowed value) of METRIC<=NUMBER.

    Raises:
        ValueError: if it reads otherwise.
    """
    metric, sign, bound = constraint.partition("<=")
    try:
        if metric.strip() and sign and math.isfinite(float(bound)):
            return metric.strip(), float(bound)
    except ValueError:
        pass
    raise ValueError("must read METRIC<=NUMBER, as in memory/peak_mib<=2000")
