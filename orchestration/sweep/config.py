"""Configuration of a sweep."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)

from orchestration.config import LONGEST_NAME, LaunchConfig, database_url
from orchestration.sweep.cases import Case, planned_trials, read_cases, value_text
from orchestration.sweep.hypotheses import read_hypothesis
from soflow.config_base import Count, Section, in_one_line

SamplerName = Literal["tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "random"]
CONDITIONAL_SAMPLERS = ("tpe", "random")
"""Samplers that can leave a dimension out of a trial; with the others every trial has all dimensions."""
NUM_TRIALS = 16


class EarlyStoppingConfig(Section):
    kind: Literal["asha", "hyperband", "median", "none"] = "asha"
    """asha = successive halving as results come in, hyperband = several halvings in parallel, median = median rule,
    none = never stop a trial."""
    grace_reports: Count = 4
    """Reports that every trial makes before it may be stopped."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """Successive-halving factor η: each rung keeps 1/η of its trials and is η times longer than the last."""
    compare: Literal["equal_steps", "equal_progress"] = "equal_steps"
    """equal_steps = compare trials at equal steps; equal_progress = after complete trainings of growing length K, each
    with its whole schedule r(k, K), for up to twice the steps."""


class SweepConfig(LaunchConfig):
    """A search over the configuration of training runs."""

    num_trials: Count | None = None
    """Configurations to try. With --resume: extend the sweep to this many."""
    max_concurrent: Annotated[Count | Literal["auto"], in_one_line("must be a number of at least 1, or auto")] = 2
    """Trials that run in parallel, each on its own group of workers. auto = as many as fit on the cluster, also when
    nodes join or leave."""
    seeds_per_trial: Count = 1
    """Seeds per configuration, all trained to the end; the search sees their mean FID."""
    trial_retries: Annotated[int, Field(ge=0)] = 3
    """Restarts of a trial from its checkpoint after its process or a worker was lost."""
    search: tuple[str, ...] | None = None
    """Search space, each PATH=LOW:HIGH, PATH=LOW:HIGH:log or PATH=A,B,C. Default: the objective's own."""
    cases: tuple[Case, ...] = ()
    """Configurations to compare instead of a search, each NAME or NAME:PATH=VALUE,PATH=VALUE. Another objective.name
    starts from the defaults of that objective."""
    case_seeds: Count = 1
    """Seeds per case, one trial each: `seed` and the numbers after it."""
    more_seeds: tuple[str, ...] = ()
    """With --resume: seeds to add to a comparison after a look at its results, SEEDS or SEEDS:CASE,CASE with the new
    number of seeds of these cases, as in 9:soflow,meanflow. Default: all cases."""
    hypotheses: tuple[str, ...] = ()
    """Hypotheses to test, e.g. "fid(soflow) < 0.9 * fid(meanflow)" or "fid(soflow) < 65"."""
    sampler: SamplerName = "tpe"
    """Optuna sampler; cmaes and gp suit few, numeric dimensions."""
    goals: tuple[str, ...] = ("fid",)
    """Metrics to minimize, e.g. fid time/train_s memory/peak_mib; the first ranks and stops trials."""
    constraints: tuple[str, ...] = ()
    """Limits for the best trial, each METRIC<=NUMBER, e.g. "memory/peak_mib<=2000"."""
    known_points: tuple[str, ...] | None = None
    """Points to try first, each PATH=VALUE,PATH=VALUE. Default: the base configuration and the paper's settings."""
    early_stopping: EarlyStoppingConfig = Field(default_factory=EarlyStoppingConfig)
    confirm: Annotated[int, Field(ge=0)] = 0
    """Best trials to train again at the end, with the default configuration, on seeds that the search has not seen."""
    confirm_seeds: Annotated[int, Field(ge=3)] = 3
    """Seeds of each configuration that is confirmed."""
    study_storage: Annotated[str, AfterValidator(database_url)] | None = None
    """Database URL of the Optuna study. Default: study.journal in the sweep's folder."""
    progress: Literal["auto", "live", "plain", "json"] = "auto"
    """Progress output: live = table, plain = one line per report, json = one JSON object per event on stdout; auto =
    live on a terminal, else plain."""
    resume: str | None = None
    """Name or folder of a sweep to continue or extend, with its own configuration. Given here, num_trials, search,
    more_seeds, confirm, confirm_seeds, resources, max_concurrent, trial_retries, address, wait_for_nodes_s,
    tracking_uri, progress, tags and note replace its own."""

    @field_validator("search", mode="before")
    @classmethod
    def _as_assignments(cls, search: Any) -> Any:
        """Accept a mapping of paths to choices or ranges, as YAML files may have it."""
        if not isinstance(search, dict):
            return search
        for path, spec in search.items():
            if not isinstance(spec, (str, list)):
                raise ValueError(f"{path} = {spec}: must be a list of choices, or LOW:HIGH")
        specs = (spec if isinstance(spec, str) else ",".join(map(value_text, spec)) for spec in search.values())
        return tuple(f"{path}={spec}" for path, spec in zip(search, specs, strict=True))

    @field_validator("known_points", mode="before")
    @classmethod
    def _as_points(cls, points: Any) -> Any:
        """Accept mappings of paths, as YAML files may have them."""
        if not isinstance(points, (list, tuple)):
            return points
        return tuple(
            ",".join(f"{path}={value_text(value)}" for path, value in point.items())
            if isinstance(point, dict)
            else point
            for point in points
        )

    @model_validator(mode="after")
    def _name_leaves_room_for_the_confirmation(self) -> SweepConfig:
        most = LONGEST_NAME - len("-confirmed-99")
        if self.confirm and self.name and (size := len(self.name.encode())) > most:
            raise ValueError(f"name = {self.name}: must have at most {most} bytes, not {size}, with confirm")
        return self

    @field_validator("goals")
    @classmethod
    def _goals_differ(cls, goals: tuple[str, ...]) -> tuple[str, ...]:
        if not goals or len(set(goals)) < len(goals):
            raise ValueError("must be one or more different metrics")
        return goals

    @field_validator("constraints")
    @classmethod
    def _constraints_parse(cls, constraints: tuple[str, ...]) -> tuple[str, ...]:
        for constraint in constraints:
            read_constraint(constraint)
        return constraints

    @field_validator("cases", mode="before")
    @classmethod
    def _as_cases(cls, cases: Any) -> Any:
        return read_cases(cases)

    @field_validator("cases")
    @classmethod
    def _case_names_differ(cls, cases: tuple[Case, ...]) -> tuple[Case, ...]:
        if len({case.name for case in cases}) < len(cases):
            raise ValueError("must have different names")
        return cases

    @model_validator(mode="after")
    def _hypotheses_are_about_cases(self) -> SweepConfig:
        known = [case.name for case in self.cases]
        for text in self.hypotheses if self.resume is None else ():
            for term in read_hypothesis(text).terms:
                if term.case not in known:
                    raise ValueError(f"hypotheses = {text}: {term.case} must be a case: {', '.join(known) or 'none'}")
        return self

    @model_validator(mode="after")
    def _cases_replace_the_search(self) -> SweepConfig:
        """Cases are trained to the end, and all of them."""
        if not self.cases or self.resume is not None:
            return self
        for name, value, needed in (
            ("search", self.search, None),
            ("known_points", self.known_points, None),
            ("early_stopping.kind", self.early_stopping.kind, "none"),
            ("seeds_per_trial", self.seeds_per_trial, 1),
        ):
            if value != needed:
                raise ValueError(f"{name} = {value}: must be {needed or 'left out'} with cases")
        if self.num_trials != (total := len(self.planned_trials)):
            raise ValueError(f"num_trials = {self.num_trials}: must be {total} or left out with these cases")
        return self

    @model_validator(mode="after")
    def _searches_are_confirmed_and_cases_get_seeds(self) -> SweepConfig:
        if self.cases and self.confirm:
            raise ValueError(f"confirm = {self.confirm}: must be 0 with cases, which case_seeds repeats")
        if self.more_seeds and not self.cases and self.resume is None:
            raise ValueError(f"more_seeds = {self.more_seeds[0]}: must be left out of a search; it adds seeds to cases")
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_new_sweep_has_a_number_of_trials(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("resume") is None and values.get("num_trials") is None:
            names = ("cases", "case_seeds", "more_seeds")
            cases, seeds, additions = (values.get(name, cls.model_fields[name].default) for name in names)
            listed = read_cases(cases or ())
            lists = isinstance(listed, (list, tuple)) and isinstance(additions, (list, tuple))
            if not lists or not str(seeds).isdecimal():
                return values | {"num_trials": NUM_TRIALS}  # these fields are refused by name
            case_names = [str(dict(case).get("name")) for case in listed if isinstance(case, (Case, dict))]
            total = len(planned_trials(case_names, int(seeds), map(str, additions)))
            return values | {"num_trials": total or NUM_TRIALS}
        return values

    @property
    def at_a_time(self) -> str:
        """How many trials run in parallel, in words."""
        return "as many at a time as fit" if self.max_concurrent == "auto" else f"{self.max_concurrent} at a time"

    @property
    def planned_trials(self) -> list[tuple[str, int]]:
        """The trials of a comparison: each a case's name and the index of its seed."""
        return planned_trials([case.name for case in self.cases], self.case_seeds, self.more_seeds)

    @property
    def resolved_num_trials(self) -> int:
        """`num_trials`, which only a resume leaves out until it has read the sweep's own configuration."""
        assert self.num_trials is not None
        return self.num_trials


class Constraint(NamedTuple):
    """A limit that a trial must keep to count as best."""

    metric: str
    limit: float


def read_constraint(text: str) -> Constraint:
    """Parse METRIC<=NUMBER.

    Raises:
        ValueError: if the text has another form.
    """
    metric, sign, limit = text.partition("<=")
    try:
        if metric.strip() and sign and math.isfinite(float(limit)):
            return Constraint(metric.strip(), float(limit))
    except ValueError:
        pass
    raise ValueError("must read METRIC<=NUMBER, as in memory/peak_mib<=2000")
