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
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from soflow.config_base import ConfigError, Count, Fraction, InputPath, Positive, Section, one_of
from soflow.data import SOURCES
from soflow.diagnostics import DIAGNOSTICS
from soflow.evaluation import FEATURE_NETWORKS
from soflow.interop import authors_config
from soflow.networks import NETWORKS
from soflow.objectives import OBJECTIVES
from soflow.objectives.config import SoFlowConfig

Sampler = Literal["renoise", "compose", "heun"]
PrecisionName = Literal["fp32", "tf32", "bf16"]
GUIDANCE_OFF = {"guidance_strength": 1, "guidance_omega": 1, "guidance_kappa": 0}
"""The objectives' fields that guide training, and where they do not."""


LATENT_CHANNELS, LATENT_FACTOR = 4, 8
"""Stable Diffusion's autoencoder: channels of a latent, and pixels per latent side."""


class DatasetConfig(Section):
    name: str = "digits"
    """Where samples come from: digits (8x8, inside scikit-learn), fashion_mnist, cifar10, image_folder, latents or
    gaussians (8x8, whose flow is known)."""
    root: InputPath | None = None
    """Folder of the data set's files, for latents the HDF5 file; digits and gaussians need none, fashion_mnist finds
    Debian's."""
    conditional: bool = True
    """Train with class labels; without them every sample gets the null label."""
    image_size: Count | None = None
    """Side in pixels, for image_folder what it crops and resizes to, for latents that of the encoded images."""
    download: bool = False
    """Let the source fetch missing files from the internet."""
    augmentation: Fraction = 0.0
    """Probability of each of EDM's augmentations (0.12 in the CIFAR-10 experiments), of which the network is told."""
    augmentations: Literal["upright", "edm"] = "upright"
    """Which: all of EDM's, or those that keep images upright, as in the SoFlow and MeanFlow experiments."""
    vae: str = "stabilityai/sd-vae-ft-mse"
    """Folder or hub id of the AutoencoderKL that turns latents into images."""
    loading_processes: Annotated[int, Field(ge=0)] = 0
    """Processes per worker that read batches ahead; 0 reads in the worker itself, best for data in memory."""

    _name = field_validator("name")(one_of(SOURCES))

    @field_validator("vae")
    @classmethod
    def _folder_is_absolute(cls, vae: str) -> str:
        return str(Path(vae).absolute()) if Path(vae).exists() else vae

    @model_validator(mode="after")
    def _size_is_known(self) -> DatasetConfig:
        fixed = SOURCES[self.name].image_size
        if fixed is None and self.image_size is None:
            raise ValueError(f"image_size must be given for {self.name}, a number of pixels")
        if fixed is not None and self.image_size not in (None, fixed):
            raise ValueError(f"image_size = {self.image_size} must be {fixed} or left out for {self.name}")
        if self.latent and self.image_size % LATENT_FACTOR:
            raise ValueError(f"image_size = {self.image_size} must be a multiple of {LATENT_FACTOR} for {self.name}")
        if self.latent and self.augmentation:
            raise ValueError(f"augmentation = {self.augmentation:g} must be 0 for {self.name}: it acts on images")
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        source = SOURCES[self.name]
        side = source.image_size or self.image_size
        return source.channels, side, side

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network generates: images, or latents of them."""
        channels, side, _ = self.image_shape
        return (
            (LATENT_CHANNELS, side // LATENT_FACTOR, side // LATENT_FACTOR) if self.latent else (channels, side, side)
        )

    @property
    def latent(self) -> bool:
        return SOURCES[self.name].latent


class NetworkConfig(Section):
    name: str = "DiT-XXS/4"
    """Backbone by name: DiT-<size>/<patch> (XXS, XS for small images, S, B, M, L, XL as published), U-Net, U-Net-XS."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropout inside a U-Net (0.3 in the CIFAR-10 experiments)."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass in place of keeping its activations: less memory, about 1/3 slower."""

    _name = field_validator("name")(one_of(NETWORKS))


ObjectiveConfig = Annotated[
    functools.reduce(operator.or_, (spec.config for spec in OBJECTIVES.values())), Field(discriminator="name")
]


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
    """Decay per update of the weights' exponential moving average, which is what gets evaluated and sampled."""
    ema_every: Count = 1
    """Optimiser steps between updates of the average."""
    ema_dtype: Literal["float32", "float64"] = "float32"
    """In what the average is kept; float64 takes twice the memory."""
    precision: PrecisionName = "fp32"
    """How networks compute: fp32, tf32 (CUDA tensor cores) or bf16."""
    quotient_precision: PrecisionName = "fp32"
    """The same for a consistency loss's two calls, whose rounding is amplified 1 / r(k, K) times."""
    compile: bool = False
    """Compile the network (torch.compile): minutes at the start, faster steps. Jacobian-vector products stay eager."""


class EvaluationConfig(Section):
    num_samples: Annotated[int, Field(ge=16)] = 2000
    """Generated samples per FID."""
    nfe: tuple[Count, ...] | None = None
    """Numbers of network evaluations to measure FID at, the first is `fid`; by default what the objective is for."""
    sampler: Sampler | None = None
    """Sampler for more than one evaluation: renoise, compose (Euler for flow matching) or heun."""
    feature_network: str | None = None
    """FID features: digits-cnn, fashion-cnn or inception; by default the data set's own."""
    inception_weights: InputPath | None = None
    """File with torch-fidelity's Inception weights, for machines that cannot fetch them."""
    batch_size: Count = 500
    """Samples generated at a time."""
    reference: InputPath | None = None
    """File of statistics for FID to compare with in place of the data: .npz (mu, sigma) or torch-fidelity's .pt."""
    precision_recall: bool = False
    """Also measure precision and recall."""
    inception_score: bool = False
    """Also measure the Inception score."""
    diagnostics: tuple[str, ...] = ()
    """Closer looks at the trained map: ode_violation, semigroup_error, flow_distance, target_variance, fid_by_nfe,
    inference_guidance; with gaussians also true_distance."""
    diagnose_every_report: bool = False
    """Take them at every report; by default after the last step only."""

    @field_validator("feature_network")
    @classmethod
    def _feature_network_is_known(cls, value: str | None) -> str | None:
        return value if value is None else one_of(FEATURE_NETWORKS)(value)

    @field_validator("diagnostics")
    @classmethod
    def _diagnostics_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            one_of(DIAGNOSTICS)(name)
        return value

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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, translated if the file is one of the SoFlow authors'.

    Raises:
        ConfigError: if the file cannot be read, holds something else than a mapping or cannot be translated.
    """
    values = _mapping(path)
    return authors_config.translate(values, path) if authors_config.is_authors(values) else values


def unused_keys(path: str | Path) -> dict[str, str]:
    """Keys in a file of the SoFlow authors' that mean nothing here, and why; none in other files.

    Raises:
        ConfigError: if the file cannot be read or holds something else than a mapping.
    """
    values = _mapping(path)
    return authors_config.ignored(values) if authors_config.is_authors(values) else {}


def _mapping(path: str | Path) -> dict[str, Any]:
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
