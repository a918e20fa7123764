"""Configuration of a sweep over how a finished checkpoint is sampled."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from orchestration.config import STORAGE, Folder, Launch
from orchestration.store.runs import StoredCheckpoint
from orchestration.tracking.schema import HIGHER_IS_BETTER
from soflow.config_base import Count, Fraction, InputPath, Positive, Section
from soflow.evaluation.config import Sampler
from soflow.posthoc_ema import TRAINED, average_of

Goal = Literal["fid", "kid", "precision", "recall", "density", "coverage", "class_consistency", "cmmd", "evaluations"]


def direction(goal: str) -> Literal["maximize", "minimize"]:
    """Return what is better of a goal."""
    return "maximize" if goal in HIGHER_IS_BETTER else "minimize"


def badness(metrics: dict[str, float], goal: str) -> float:
    """Return a goal's value, with the sign changed if higher is better; infinite if it is missing or NaN."""
    value = metrics.get(goal, math.nan)
    return math.inf if math.isnan(value) else -value if goal in HIGHER_IS_BETTER else value


def _numbers(value: Any) -> Any:
    """Read several numbers separated by commas, which the command line cannot nest."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"[^,\s]+(,[^,\s]+)*", value):
        raise ValueError("must be numbers separated by commas, without spaces")
    return value.split(",")


def _pair(value: Any) -> Any:
    values = _numbers(value)
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise ValueError("must be two numbers, LOW,HIGH")
    return values


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) else value


def _average(text: str) -> str:
    average = average_of(text)
    return TRAINED if average is None else str(average)


Ema = Annotated[str, BeforeValidator(_as_text), AfterValidator(_average)]
Interval = Annotated[tuple[Fraction, Fraction], BeforeValidator(_pair)]
Times = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], BeforeValidator(_numbers)]


class CheckpointSweepConfig(Launch):
    """What to vary, and how to measure each point."""

    name: str | None = None
    """Name of the sweep and of its folder in `storage`. Default: the run's, with the step."""
    storage: Folder = Field(default=STORAGE, validate_default=True)
    """Folder of the sweep, on a disk; on a cluster, one that all nodes share."""
    checkpoint: StoredCheckpoint
    """Folder of a run or trial, or a checkpoint file in it."""
    best: bool = False
    """Of a folder, use the checkpoint with the lowest FID instead of the newest."""
    ema: tuple[Ema, ...] | None = None
    """Averages of the weights: trained = the one that training evaluated, a relative length such as 0.1 (sigma_rel), or
    decay=0.999; the last two need snapshots (training.snapshot_every). Default: trained, and with snapshots lengths
    from 0.05 to 0.25."""
    guidance: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Strengths of classifier-free guidance at sampling; 1 = none. Default: 1 1.25 1.5 2, or 1 without labels."""
    guidance_interval: tuple[Interval, ...] = ((0.0, 1.0),)
    """Intervals of t with guidance, each LOW,HIGH."""
    sampler: tuple[Sampler, ...] = ()
    """Samplers for more than one step: renoise, compose, heun. Default: the objective's."""
    nfe: tuple[Count, ...] = (1, 2, 4)
    """Numbers of steps; a step with guidance evaluates the network twice."""
    times: tuple[Times, ...] = ()
    """Times between the steps besides equal ones, each T,T,… decreasing from 1 to 0: 0.3 is for 2 steps, 0.8,0.5,0.2
    for 4."""
    temperature: tuple[Positive, ...] = (1.0,)
    """Factors of the noise."""
    search: Literal["grid", "optuna"] = "grid"
    """grid = every combination; optuna = `num_points` of them, chosen by Optuna (TPE) between the least and greatest
    number of each list."""
    num_points: Count = 60
    """Points of search = optuna; more continue the search."""
    goals: tuple[Goal, ...] = ("fid",)
    """What Optuna optimizes: fid, kid, precision, recall, density, coverage, class_consistency, cmmd, and evaluations
    of the network."""
    seed: int = 0
    """Seed of the noise of all points, and of the search."""
    confirm_seeds: Annotated[int, Field(ge=0)] = 5
    """Other seeds of the noise on which the best points and training's defaults are compared; 0 = do not compare."""
    num_samples: Annotated[int, Field(ge=16)] | None = None
    """Generated samples per point. Default: as in the run."""
    feature_network: str | None = None
    """Feature network for FID. Default: the run's."""
    feature_weights: InputPath | None = None
    """File with the weights of dinov2 or clip, or of torch-fidelity's Inception where it cannot be downloaded."""
    reference: InputPath | None = None
    """File of reference statistics, used instead of the data."""
    precision_recall: bool | None = None
    """Compute precision, recall, density and coverage. Default: yes, if the reference is the data."""
    batch_size: Count | None = None
    """Samples generated per batch; does not change them. Default: as in the run."""
    root: InputPath | None = None
    """Folder of the dataset, if it was moved."""
    max_concurrent: Count | None = None
    """Points measured at a time. Default: as many as fit."""

    @model_validator(mode="after")
    def _lists_are_lists(self) -> CheckpointSweepConfig:
        for name in ("ema", "guidance", "guidance_interval", "nfe", "temperature", "goals"):
            if (values := getattr(self, name)) is not None and not values:
                raise ValueError(f"{name}: must list at least one value")
        steps = {len(times) + 1 for times in self.times}
        if missing := steps - set(self.nfe):
            raise ValueError(f"times: of {min(missing)} steps, but nfe = {list(self.nfe)} does not list {min(missing)}")
        for times in self.times:
            if list(times) != sorted(set(times), reverse=True):
                raise ValueError(f"times = {','.join(map(str, times))}: must decrease, from noise at 1 to data at 0")
        for low, high in self.guidance_interval:
            if low > high:
                raise ValueError(f"guidance_interval = {low:g},{high:g}: must list the least t first")
        if "heun" in self.sampler and any(n % 2 for n in self.nfe if n > 1):
            raise ValueError(
                f"nfe = {list(self.nfe)}: must be even or 1 with sampler = heun (two evaluations per step)"
            )
        if (workers := self.resources.num_workers) > 1:
            raise ValueError(
                f"resources.num_workers = {workers}: must be 1, a point is measured by one worker; several points are "
                "measured at the same time"
            )
        return self

    def evaluation_changes(self) -> dict[str, Any]:
        """Return the given values of the run's `evaluation` and data, by their path."""
        names = ("num_samples", "feature_network", "feature_weights", "reference", "batch_size", "precision_recall")
        values = {f"evaluation.{name}": getattr(self, name) for name in names} | {"dataset.root": self.root}
        changes = {path: str(value) if isinstance(value, Path) else value for path, value in values.items()}
        return {path: value for path, value in changes.items() if value is not None}


class Point(Section):
    """One way to sample from the checkpoint."""

    ema: str = TRAINED
    nfe: int = 1
    sampler: str = "compose"
    times: tuple[float, ...] = ()
    """Times between the steps; empty for equal steps."""
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    seed: int = 0
    """Seed of the noise."""

    def changes(self) -> dict[str, Any]:
        """Return the values of a run's configuration that sample this way, by their path; all but `ema`."""
        evaluation = {
            "nfe": [self.nfe],
            "sampler": None if self.nfe == 1 else self.sampler,
            "times": list(self.times),
            "guidance": self.guidance,
            "guidance_interval": list(self.guidance_interval),
            "temperature": self.temperature,
        }
        return {f"evaluation.{name}": value for name, value in evaluation.items()} | {"seed": self.seed}
