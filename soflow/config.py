"""The configuration of one training run: a typed tree, validated as a whole before anything starts.

A field has one name everywhere: command-line flag, YAML key, search-space path and MLflow parameter. This module
imports neither torch nor anything else that is slow, so that a wrong value is reported at once.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import operator
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from soflow.config_base import ConfigError, Section
from soflow.data.config import DatasetConfig
from soflow.data.registry import SOURCES
from soflow.evaluation.config import EvaluationConfig
from soflow.evaluation.registry import FEATURE_NETWORKS
from soflow.networks.config import NetworkConfig
from soflow.networks.registry import NETWORKS
from soflow.objectives.config import SoFlowConfig
from soflow.objectives.registry import OBJECTIVES
from soflow.training.config import OptimizerConfig, TrainingConfig

GUIDANCE_OFF = {"guidance_strength": 1, "guidance_omega": 1, "guidance_kappa": 0}
"""The objectives' fields that guide training, and where they do not."""


ObjectiveConfig = Annotated[
    functools.reduce(operator.or_, (spec.config for spec in OBJECTIVES.values())), Field(discriminator="name")
]


class RunConfig(Section):
    """Everything that determines one training run. The defaults suit digits, a minute on one CPU core."""

    seed: int = 0
    """Fixes data order, noise, times, initial weights and evaluation noise."""
    dataset: DatasetConfig = Field(default_factory=DatasetConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = Field(default_factory=SoFlowConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @field_validator("objective", mode="before")
    @classmethod
    def _name_is_soflow_unless_given(cls, objective: Any) -> Any:
        return {"name": "soflow"} | objective if isinstance(objective, dict) else objective

    @model_validator(mode="after")
    def _images_fit_the_network(self) -> RunConfig:
        network, side = NETWORKS[self.network.name], self.dataset.sample_shape[1]
        if side % network.side_multiple:
            raise ValueError(
                f"network.name = {self.network.name}: {network.side_multiple} must divide the side {side} "
                f"of what dataset.name = {self.dataset.name} trains on"
            )
        if self.network.dropout and not network.dropout:
            raise ValueError(f"network.dropout = {self.network.dropout:g}: must be 0, {self.network.name} has none")
        if self.dataset.augmentation and not network.augmentation:
            able = ", ".join(name for name, spec in NETWORKS.items() if spec.augmentation)
            raise ValueError(
                f"dataset.augmentation = {self.dataset.augmentation:g}: must be 0 for network.name = "
                f"{self.network.name}; only {able} can be told how images were augmented"
            )
        return self

    @model_validator(mode="after")
    def _derivatives_are_possible(self) -> RunConfig:
        if self.network.gradient_checkpointing and getattr(self.objective, "jvp", None) == "with_gradient":
            raise ValueError(
                "network.gradient_checkpointing = True: cannot be combined with objective.jvp = with_gradient, whose "
                "derivative torch cannot recompute; choose subset or separate"
            )
        return self

    @model_validator(mode="after")
    def _images_fit_the_feature_network(self) -> RunConfig:
        wanted = FEATURE_NETWORKS[self.feature_network].image_shape
        if wanted not in (None, self.dataset.image_shape):
            raise ValueError(
                f"evaluation.feature_network = {self.feature_network}: takes images of shape {wanted}, "
                f"not {self.dataset.image_shape} of dataset.name = {self.dataset.name}"
            )
        return self

    @model_validator(mode="after")
    def _the_true_solution_is_known(self) -> RunConfig:
        if "true_distance" not in self.evaluation.diagnostics:
            return self
        if not SOURCES[self.dataset.name].closed_form:
            able = ", ".join(name for name, source in SOURCES.items() if source.closed_form)
            raise ValueError(
                f"evaluation.diagnostics = true_distance: needs data whose flow is known, dataset.name = {able}, "
                f"not {self.dataset.name}"
            )
        for name, off in GUIDANCE_OFF.items() if self.dataset.conditional else ():
            if (value := getattr(self.objective, name, off)) != off:
                raise ValueError(
                    f"objective.{name} = {value:g}: must be {off} with evaluation.diagnostics = true_distance, "
                    "because the known flow is that without guidance"
                )
        return self

    @property
    def feature_network(self) -> str:
        """Name of the network whose features FID compares."""
        return self.evaluation.feature_network or SOURCES[self.dataset.name].feature_network


def parse(values: dict[str, Any]) -> RunConfig:
    """Build and validate a configuration from nested dictionaries.

    Raises:
        ConfigError: one line per fault, naming field, value and what is allowed.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, RunConfig)) from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Pydantic's findings as one line each: dotted path, value given, what is allowed."""
    return "\n".join(_describe_one(fault, model) for fault in error.errors())


def _describe_one(fault: dict[str, Any], model: type[BaseModel]) -> str:
    # A tagged union puts its tag into the location; users know the path without it.
    path = [str(part) for part in fault["loc"] if part not in OBJECTIVES]
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return _unknown_key(name, model, fault["loc"])
    if fault["type"] == "union_tag_invalid":
        return f"{name}.name = {fault['ctx']['tag']}: must be one of {', '.join(sorted(OBJECTIVES))}"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], (dict, BaseModel)):  # a rule over several fields, which its message names
        return f"{name}: {message}" if name else message
    return f"{name} = {fault['input']}: {message[0].lower()}{message[1:]}"


def _unknown_key(name: str, model: type[BaseModel], location: tuple) -> str:
    for part in location[:-1]:
        if part in OBJECTIVES:
            model = OBJECTIVES[part].config
        elif part in model.model_fields and part != "objective":
            model = model.model_fields[part].annotation
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name}: unknown key; {hint}known keys here are {', '.join(known)}"


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Plain nested dictionaries, ready for YAML and JSON; `parse` takes them back."""
    return config.model_dump(mode="json")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to one level with dotted paths, e.g. {"objective.r_end": 0.002}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def override(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested dictionaries with the values at some dotted paths replaced."""
    result = {key: override(value, {}) if isinstance(value, dict) else value for key, value in values.items()}
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return result


def config_hash(config: RunConfig) -> str:
    """Twelve hexadecimal digits that change whenever any field does."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]
