"""The configuration of one training run: a typed tree, validated as a whole before anything starts.

A field has one name everywhere: command-line flag, YAML key, search-space path and MLflow parameter. This module
imports neither torch nor anything else that is slow, so that a wrong value is reported at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from soflow.data import SOURCES
from soflow.evaluation import FEATURE_NETWORKS
from soflow.networks import NETWORKS

Fraction = Annotated[float, Field(ge=0, le=1)]
GapRatio = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Sampler = Literal["renoise", "compose", "heun"]


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field, its value and what is allowed."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def one_of(names: dict[str, Any]):
    """A field validator that accepts the keys of a registry."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(sorted(names))}")
        return value

    return check


class DatasetConfig(Section):
    name: str = "digits"
    """Where the images come from: digits (8x8, inside scikit-learn), fashion_mnist or image_folder."""
    root: Path | None = None
    """Folder with the data set's files; digits needs none, fashion_mnist also finds Debian's package."""
    conditional: bool = True
    """Train with class labels; without them every sample gets the null label."""
    image_size: Count | None = None
    """Side in pixels to which image_folder crops and resizes; the other sources have a fixed size."""
    download: bool = False
    """Let the source fetch missing files from the internet."""

    _name = field_validator("name")(one_of(SOURCES))

    @model_validator(mode="after")
    def _size_is_known(self) -> DatasetConfig:
        fixed = SOURCES[self.name].image_size
        if fixed is None and self.image_size is None:
            raise ValueError(f"image_size must be given for {self.name}, a number of pixels")
        if fixed is not None and self.image_size not in (None, fixed):
            raise ValueError(f"image_size = {self.image_size} must be {fixed} or left out for {self.name}")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        source = SOURCES[self.name]
        side = source.image_size or self.image_size
        return source.channels, side, side


class NetworkConfig(Section):
    name: str = "DiT-XXS/4"
    """Backbone by size name, DiT-<size>/<patch>: XXS, XS for small images, S, B, M, L, XL as published."""

    _name = field_validator("name")(one_of(NETWORKS))


class InterpolantFields(Section):
    interpolant: Literal["linear", "trigonometric"] = "linear"
    """Noising schedule alpha, beta."""
    parameterization: Literal["euler", "trigonometric"] = "euler"
    """Solution parameterisation a, b."""


class GuidanceFields(Section):
    guidance_strength: Annotated[float, Field(ge=1)] = 1.5
    """w, strength of training-time classifier-free guidance; 1 switches it off."""
    velocity_mix: Fraction = 0.3
    """m, share of the guided conditional velocity in the target; the rest is the network's own velocity."""
    label_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability that a sample's label is replaced by the null label."""
    guidance_decay_time: Annotated[float, Field(ge=0, le=1)] = 0.8
    """T, time above which guidance fades out; 1 switches the fading off."""

    @model_validator(mode="after")
    def _guidance_needs_dropped_labels(self):
        if self.guidance_strength > 1 and self.label_drop == 0:
            raise ValueError(
                f"label_drop = 0 must be above 0 when guidance_strength = {self.guidance_strength:g} exceeds 1, "
                "because guidance needs the velocity learned under the null label"
            )
        return self


class WeightFields(Section):
    weight_power: Annotated[float, Field(ge=0)] = 1.0
    """p, power of the adaptive loss weight."""
    weight_eps: Positive = 0.01
    """eps, floor inside the adaptive loss weight."""


class FlowMatchingConfig(WeightFields, GuidanceFields, InterpolantFields):
    """The flow-matching baseline: SoFlow's flow-matching part alone."""

    name: Literal["flow_matching"] = "flow_matching"
    time_mean: float = -0.2
    """Mean of the logit-normal draw of t."""
    time_std: Positive = 1.0
    """Standard deviation of the logit-normal draw of t."""


class SoFlowConfig(WeightFields, GuidanceFields, InterpolantFields):
    """Solution flow models (arXiv 2512.15657)."""

    name: Literal["soflow"] = "soflow"
    flow_matching_fraction: Fraction = 0.3
    """lambda, share of the batch on the flow-matching loss; the rest is on the consistency loss (paper: 0.75)."""
    gap_schedule: Literal["constant", "linear", "cosine", "exponential"] = "exponential"
    """How r(k, K), and with it the gap t - l, shrinks over training."""
    r_init: GapRatio = 0.1
    """r at the first step (unused by the constant schedule)."""
    r_end: GapRatio = 0.002
    """r at the last step."""
    time_mean: tuple[float, float, float] = (-0.2, -1.0, 0.2)
    """Means of the logit-normal draws: flow-matching t, consistency s, consistency t."""
    time_std: tuple[Positive, Positive, Positive] = (1.0, 0.8, 0.8)
    """Standard deviations of the same three draws."""

    @model_validator(mode="after")
    def _gap_shrinks(self) -> SoFlowConfig:
        if self.r_end > self.r_init:
            raise ValueError(f"r_end = {self.r_end:g} must not exceed r_init = {self.r_init:g}")
        return self


class MeanFlowConfig(WeightFields):
    """MeanFlow (arXiv 2505.13447)."""

    name: Literal["meanflow"] = "meanflow"
    flow_matching_fraction: Fraction = 0.4
    """Share of the batch with r = t (paper: 0.75)."""
    jvp: Literal["with_gradient", "separate", "subset"] = "subset"
    """How du/dt is computed: in one call with u, in its own call, or in its own call where r differs from t."""
    guidance_omega: Annotated[float, Field(ge=0)] = 1.0
    """omega, weight of the conditional velocity v_t in the guided velocity."""
    guidance_kappa: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """kappa, weight of the network's own class-conditional velocity."""
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Times t between which guidance acts, both ends included."""
    label_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability that a sample's label is replaced by the null label."""
    time_mean: float = -0.4
    """Mean of the logit-normal draws of t and r."""
    time_std: Positive = 1.0
    """Standard deviation of the logit-normal draws of t and r."""

    @model_validator(mode="after")
    def _guidance_is_possible(self) -> MeanFlowConfig:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval = {self.guidance_interval} must not end before it begins")
        if self.label_drop == 0 and (self.guidance_omega, self.guidance_kappa) != (1, 0):
            raise ValueError(
                f"label_drop = 0 must be above 0 when guidance is on (guidance_omega = {self.guidance_omega:g}, "
                f"guidance_kappa = {self.guidance_kappa:g}), because guidance needs the null label's velocity"
            )
        return self


ObjectiveConfig = Annotated[SoFlowConfig | MeanFlowConfig | FlowMatchingConfig, Field(discriminator="name")]
OBJECTIVE_CONFIGS = {"soflow": SoFlowConfig, "meanflow": MeanFlowConfig, "flow_matching": FlowMatchingConfig}


class OptimizerConfig(Section):
    name: Literal["adamw", "radam"] = "adamw"
    """Optimiser: AdamW, or RAdam as in the CIFAR-10 experiments."""
    learning_rate: Positive = 3e-3
    """Learning rate, constant after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Optimiser steps over which the learning rate grows linearly to its value."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """Decay rates of the two moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""


class TrainingConfig(Section):
    total_steps: Count = 1600
    """K, number of optimiser steps."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Samples per optimiser step, over all workers together."""
    report_every: Count = 200
    """Optimiser steps between reports; each report evaluates, draws a sample grid and writes a checkpoint."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay per step of the weights' exponential moving average, which is what gets evaluated and sampled."""


class EvaluationConfig(Section):
    num_samples: Annotated[int, Field(ge=16)] = 2000
    """Generated samples per FID."""
    nfe: tuple[Count, ...] | None = None
    """Numbers of network evaluations to measure FID at, the first is `fid`; by default what the objective is for."""
    sampler: Sampler | None = None
    """Sampler for more than one evaluation: renoise, compose (Euler for flow matching) or heun."""
    feature_network: str | None = None
    """FID features: digits-cnn, fashion-cnn or inception; by default the data set's own."""
    inception_weights: Path | None = None
    """File with torch-fidelity's Inception weights, for machines that cannot fetch them."""
    batch_size: Count = 500
    """Samples generated at a time."""

    @field_validator("feature_network")
    @classmethod
    def _feature_network_is_known(cls, value: str | None) -> str | None:
        return value if value is None else one_of(FEATURE_NETWORKS)(value)

    @model_validator(mode="after")
    def _evaluations_are_possible(self) -> EvaluationConfig:
        if self.nfe is not None and (not self.nfe or len(set(self.nfe)) < len(self.nfe)):
            raise ValueError(f"nfe = {list(self.nfe)} must list distinct numbers, at least one")
        if self.sampler == "heun" and any(n > 1 and n % 2 for n in self.nfe or ()):
            raise ValueError(f"nfe = {list(self.nfe)} must be even or 1 with sampler = heun, two evaluations a step")
        return self


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
        side, patch = self.dataset.image_shape[1], NETWORKS[self.network.name].patch
        if side % patch:
            raise ValueError(
                f"network.name = {self.network.name}: its patch {patch} must divide the image size {side} "
                f"of dataset.name = {self.dataset.name}"
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
    path = [str(part) for part in fault["loc"] if part not in OBJECTIVE_CONFIGS]
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return _unknown_key(name, model, fault["loc"])
    if fault["type"] == "union_tag_invalid":
        return f"{name}.name = {fault['ctx']['tag']}: must be one of {', '.join(sorted(OBJECTIVE_CONFIGS))}"
    message = fault["msg"].removeprefix("Value error, ")
    if isinstance(fault["input"], (dict, BaseModel)):  # a rule over several fields, which its message names
        return f"{name}: {message}" if name else message
    return f"{name} = {fault['input']}: {message[0].lower()}{message[1:]}"


def _unknown_key(name: str, model: type[BaseModel], location: tuple) -> str:
    for part in location[:-1]:
        if part in OBJECTIVE_CONFIGS:
            model = OBJECTIVE_CONFIGS[part]
        elif part in model.model_fields and part != "objective":
            model = model.model_fields[part].annotation
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{name}: unknown key; {hint}known keys here are {', '.join(known)}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: if the file cannot be read or holds something else than a mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of configuration keys, not a {type(values).__name__}")
    return values


def to_dict(config: BaseModel) -> dict[str, Any]:
    """Plain nested dictionaries, ready for YAML and JSON; `parse` takes them back."""
    return config.model_dump(mode="json")


def to_yaml(config: BaseModel) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)


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
