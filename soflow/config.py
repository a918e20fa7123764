"""Configuration of one training run: a typed tree, validated as a whole before training starts.

A field has the same name everywhere: command-line flag, YAML key, search-space path and MLflow parameter. This module
imports neither torch nor any other slow package, so that invalid values are reported immediately.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, PlainValidator, SerializeAsAny, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from soflow.config_base import ConfigError, Section, one_of, without_password
from soflow.data.config import DatasetConfig
from soflow.data.registry import SOURCES
from soflow.evaluation.config import EvaluationConfig
from soflow.evaluation.registry import FEATURE_NETWORKS, feature_network_info
from soflow.networks.config import NetworkConfig
from soflow.networks.registry import NETWORKS
from soflow.objectives.config import ObjectiveFields, SoFlowConfig
from soflow.objectives.registry import OBJECTIVES
from soflow.training.config import OptimizerConfig, TrainingConfig

GUIDANCE_OFF = {"guidance_strength": 1, "guidance_omega": 1, "guidance_kappa": 0}
"""Guidance fields of the objectives and the value at which each switches guidance off."""
NAMED_SECTIONS: dict[str, Mapping[str, object]] = {"objective": OBJECTIVES, "dataset": SOURCES, "network": NETWORKS}
"""Registries of the sections that are chosen by a `name`; `--objective meanflow` is `--objective.name meanflow`."""


def _objective_section(values: Any) -> ObjectiveFields:
    """Validate the fields of the objective that `name` says; default soflow."""
    if isinstance(values, ObjectiveFields):
        return values
    if not isinstance(values, dict):
        return SoFlowConfig.model_validate(values)  # raises
    name = str(values.get("name", "soflow"))
    try:
        one_of(OBJECTIVES)(name)
    except ValueError as error:
        raise PydanticCustomError("unknown_objective", "{why}", {"name": name, "why": str(error)}) from None
    try:
        return OBJECTIVES[name].config.model_validate(values | {"name": name})
    except ValidationError as error:
        # With the name in its location, a fault says which fields were allowed.
        faults = [
            InitErrorDetails(
                type=fault["type"], loc=(name, *fault["loc"]), input=fault["input"], ctx=fault.get("ctx", {})
            )
            for fault in error.errors()
        ]
        raise ValidationError.from_exception_data(error.title, faults) from None


ObjectiveConfig = Annotated[SerializeAsAny[ObjectiveFields], PlainValidator(_objective_section)]


class RunConfig(Section):
    """Complete specification of one training run. The defaults train on digits in about a minute on one CPU core."""

    seed: int = 0
    """Random seed of initial weights, data order, noise, times and evaluation noise."""
    dataset: DatasetConfig = Field(default_factory=DatasetConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    objective: ObjectiveConfig = Field(default_factory=SoFlowConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

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
        if self.network.gradient_checkpointing and not network.checkpointing:
            raise ValueError(
                f"network.gradient_checkpointing = True: must be false, {self.network.name} has no such parameter"
            )
        if self.dataset.augmentation and not network.augmentation:
            supported = ", ".join(name for name, spec in NETWORKS.included.items() if spec.augmentation)
            raise ValueError(
                f"dataset.augmentation = {self.dataset.augmentation:g}: must be 0 for network.name = "
                f"{self.network.name}; only {supported} take augmentation parameters as input"
            )
        return self

    @model_validator(mode="after")
    def _derivatives_are_possible(self) -> RunConfig:
        if self.network.gradient_checkpointing and getattr(self.objective, "jvp", None) == "with_gradient":
            raise ValueError(
                "network.gradient_checkpointing = True: cannot be combined with objective.jvp = with_gradient, whose "
                "derivative torch cannot recompute; choose subset or separate"
            )
        if self.training.compile is True and self.objective.fused_jvp:
            raise ValueError(
                "training.compile = True: cannot be combined with objective.jvp_attention = flash, whose derivative "
                "torch's compiler drops; choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _images_fit_the_feature_network(self) -> RunConfig:
        if self.feature_network not in FEATURE_NETWORKS and not Path(self.feature_network).exists():
            return self
        try:
            required_shape = feature_network_info(self.feature_network).image_shape
        except ValueError as error:
            raise ValueError(f"evaluation.feature_network = {self.feature_network}: {error}") from None
        if required_shape is None and self.dataset.image_shape[0] not in (1, 3):
            raise ValueError(
                f"evaluation.feature_network = {self.feature_network}: takes images of 1 or 3 channels, not of "
                f"{self.dataset.image_shape[0]} as in dataset.name = {self.dataset.name}"
            )
        if required_shape not in (None, self.dataset.image_shape):
            raise ValueError(
                f"evaluation.feature_network = {self.feature_network}: takes images of shape {required_shape}, "
                f"not {self.dataset.image_shape} of dataset.name = {self.dataset.name}"
            )
        return self

    @model_validator(mode="after")
    def _labels_exist(self) -> RunConfig:
        if (labels := self.evaluation.labels) != "balanced" and not self.dataset.conditional:
            raise ValueError(f"evaluation.labels = {labels}: must be balanced with dataset.conditional = False")
        return self

    @model_validator(mode="after")
    def _guidance_has_a_null_label(self) -> RunConfig:
        if self.evaluation.guidance != 1 and (reason := self.lacks_null_label):
            raise ValueError(f"evaluation.guidance = {self.evaluation.guidance:g}: must be 1 with {reason}")
        return self

    @property
    def lacks_null_label(self) -> str:
        """Why the network cannot be guided at sampling; empty if it can."""
        if not self.dataset.conditional:
            return "dataset.conditional = False, guidance compares a label with none"
        if not getattr(self.objective, "label_drop", 1):
            return "objective.label_drop = 0, the network has learned no null label"
        return ""

    @model_validator(mode="after")
    def _the_true_solution_is_known(self) -> RunConfig:
        if "true_distance" not in self.evaluation.diagnostics:
            return self
        if not SOURCES[self.dataset.name].closed_form:
            supported = ", ".join(name for name, source in SOURCES.included.items() if source.closed_form)
            raise ValueError(
                f"evaluation.diagnostics = true_distance: needs data whose flow is known, dataset.name = {supported}, "
                f"not {self.dataset.name}"
            )
        for name, off in GUIDANCE_OFF.items() if self.dataset.conditional else ():
            if (value := getattr(self.objective, name, off)) != off:
                raise ValueError(
                    f"objective.{name} = {value:g}: must be {off} with evaluation.diagnostics = true_distance, "
                    "because the exact flow is known only without guidance"
                )
        return self

    @property
    def feature_network(self) -> str:
        """Name of the feature network used for FID."""
        return self.evaluation.feature_network or SOURCES[self.dataset.name].feature_network


def check_training(config: RunConfig) -> None:
    """Check what only a training needs: runs that earlier versions trained differently can be sampled all the same.

    Raises:
        ConfigError: naming the field.
    """
    training = config.training
    if training.ema_every > (first := min(training.report_every, training.total_steps)):
        raise ConfigError(
            f"training.ema_every = {training.ema_every}: must be at most {first}, the step of the first report, which "
            "would evaluate the initial weights"
        )
    if "inference_guidance" in config.evaluation.diagnostics and (reason := config.lacks_null_label):
        raise ConfigError(f"evaluation.diagnostics = inference_guidance: must be left out with {reason}")


def parse(values: dict[str, Any]) -> RunConfig:
    """Build and validate a configuration from nested dictionaries.

    Raises:
        ConfigError: one line per error, with the field, its value and the allowed values.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, RunConfig)) from None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Format pydantic's errors, one per line: dotted path, value, allowed values."""
    return "\n".join(without_password(_describe_one(fault, model)) for fault in error.errors())


def _describe_one(fault: ErrorDetails, model: type[BaseModel]) -> str:
    path = [str(part) for part in fault["loc"]]
    if path[:1] == ["objective"] and len(path) > 1:
        objective = path.pop(1)  # see `_objective_section`
        if fault["type"] == "extra_forbidden":
            return _unknown_key(".".join(path), OBJECTIVES[objective].config, path)
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return _unknown_key(name, model, path)
    if fault["type"] == "unknown_objective":
        return f"{name}.name = {fault['ctx']['name']}: {fault['msg']}"
    if fault["type"] == "model_type":
        return f"{name} = {fault['input']}: must be a mapping of configuration keys"
    if fault["type"] == "missing":
        return f"{name}: must be given"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], (dict, BaseModel)):  # a rule over several fields; the message already names them
        return f"{name}: {message}" if name else message
    message = message.replace("Input should be a valid ", "must be a ").replace("Input should be ", "must be ")
    message = message.replace("must be a integer", "must be an integer").partition(", unable to parse")[0]
    return f"{name} = {fault['input']}: {message[0].lower()}{message[1:]}"


def _unknown_key(name: str, model: type[BaseModel], location: list[str]) -> str:
    for part in location[:-1]:
        if part in model.model_fields and isinstance(section := model.model_fields[part].annotation, type):
            model = section
    known = list(model.model_fields)
    close = difflib.get_close_matches(location[-1], known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name}: unknown key; {hint}known keys here are {', '.join(known)}"


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Convert to plain nested dictionaries for YAML and JSON; the inverse of `parse`."""
    return config.model_dump(mode="json")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to one level with dotted paths, e.g. {"objective.r_end": 0.002}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def override(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Copy nested dictionaries, with the values at the dotted paths in `changes` replaced."""
    result = {key: override(value, {}) if isinstance(value, dict) else value for key, value in values.items()}
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return result


def merge(old: dict[str, Any], new: dict[str, Any], model: type[Section] = RunConfig) -> dict[str, Any]:
    """Put `new` over `old`, section by section; an objective, data set or network of another name starts afresh."""
    merged = dict(old)
    for key, value in new.items():
        field = model.model_fields.get(key)
        default = field.get_default(call_default_factory=True) if field else None
        if not isinstance(default, Section):
            merged[key] = value
            continue
        if not isinstance(value, dict):
            hint = f"; did you mean {key}.name?" if key in NAMED_SECTIONS else ""
            raise ConfigError(f"{key} = {value}: must be a mapping of configuration keys{hint}")
        before = merged.get(key, {})
        same = key not in NAMED_SECTIONS or value.get("name") in (
            None,
            before.get("name", getattr(default, "name", None)),
        )
        merged[key] = (before if same else {}) | value
    return merged


def extends(longer: RunConfig, config: RunConfig) -> bool:
    """Check that a run begins with all the steps of another, so that it can continue from its checkpoints.

    True for equal configurations, and for more steps unless the objective follows training progress.
    """
    steps = config.training.total_steps
    if longer.training.total_steps < steps or (longer != config and config.objective.progress_schedule):
        return False
    return override(to_dict(longer), {"training.total_steps": steps}) == to_dict(config)


def config_hash(config: RunConfig) -> str:
    """Compute a hash of all fields: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]
