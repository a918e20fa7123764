"""Translation of the SoFlow authors' YAML files to the configuration of this package.

Their training script takes one flat mapping and has additional hard-coded settings. Both are translated, so that a file
describes the same run here. The only intended difference is `quotient_precision`: they compute everything in
TensorFloat-32, whereas here the finite difference of the consistency loss, which amplifies rounding, is computed in
float32.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from soflow.config_base import ConfigError
from soflow.networks.registry import NETWORKS

CHOICES: dict[str, tuple[str, dict[str, str]]] = {
    "noising_type": (
        "objective.interpolant",
        {"Linear": "linear", "Trig": "trigonometric", "Triangular": "trigonometric"},
    ),
    "coefficient_type": (
        "objective.parameterization",
        {"Euler": "euler", "Trig": "trigonometric", "Triangular": "trigonometric"},
    ),
    "l_schedule": (
        "objective.gap_schedule",
        {"Const": "constant", "Linear": "linear", "Cosine": "cosine", "Exponent": "exponential"},
    ),
    "model_type": (
        "network.name",
        {"UNet": "U-Net"} | {name.replace("/", "-"): name for name in NETWORKS if name.startswith("DiT-")},
    ),
    "dataset_type": ("dataset.name", {"Imagenet": "latents", "CIFAR10": "cifar10"}),
}
"""Keys with a name as value: field here, and names here by their names. Triangular is their earlier name of Trig."""

NUMBERS: dict[str, str] = {
    "velocity_loss_ratio": "objective.flow_matching_fraction",
    "p": "objective.weight_power",
    "eps": "objective.weight_eps",
    "time_mean": "objective.time_mean",
    "time_std": "objective.time_std",
    "cfg_scale": "objective.guidance_strength",
    "mix_ratio": "objective.velocity_mix",
    "cfg_drop_rate": "objective.label_drop",
    "cfg_decay_time": "objective.guidance_decay_time",
    "l_init_ratio": "objective.r_init",
    "l_end_ratio": "objective.r_end",
    "learning_rate": "optimizer.learning_rate",
    "betas": "optimizer.betas",
    "weight_decay": "optimizer.weight_decay",
    "total_steps": "training.total_steps",
    "batch_size": "training.batch_size",
    "eval_steps": "training.report_every",
    "eval_batch_size": "evaluation.batch_size",
    "num_workers": "dataset.loading_processes",
    "seed": "seed",
}
"""Keys whose value is copied to a field."""

COMPUTED = ("data_size", "dataset_path", "ema_decay_rate", "eval_NFE")
"""Keys whose value depends on the dataset or is converted."""

WITHOUT_MEANING: dict[str, str] = {
    "working_dir": "--storage and --name set the folder of a run",
    "prefetch_factor": "loading processes always prefetch 4 batches",
    "eval_demo_steps": "every report draws a sample grid",
    "eval_demo_shape": "a sample grid has 8 rows of 10 images",
    "logging_steps": "learning curves have a point every training.log_every steps",
    "ckpt_saving_steps": "every report writes a checkpoint",
}
"""Keys that are ignored here, with the reason."""

DEFAULTS: dict[str, Any] = {
    "noising_type": "Linear",
    "coefficient_type": "Euler",
    "model_type": "DiT-B-4",
    "dataset_type": "Imagenet",
    "data_size": 32,
    "dataset_path": "./imagenet_latent",
    "velocity_loss_ratio": 0.75,
    "p": 1.0,
    "eps": 0.01,
    "time_mean": [-0.2, -1.0, 0.2],
    "time_std": [1.0, 0.8, 0.8],
    "cfg_scale": 1.0,
    "mix_ratio": 1.0,
    "cfg_drop_rate": 0.0,
    "cfg_decay_time": 1.0,
    "l_schedule": "Exponent",
    "l_init_ratio": 0.1,
    "l_end_ratio": 0.002,
    "total_steps": 400000,
    "ema_decay_rate": 0.9999,
    "learning_rate": 1e-4,
    "betas": [0.9, 0.99],
    "weight_decay": 0.0,
    "batch_size": 256,
    "num_workers": 12,
    "eval_steps": 25000,
    "eval_batch_size": 125,
    "eval_NFE": 1,
    "seed": 42,
}
"""Defaults of their training script."""

KEYS = {*CHOICES, *NUMBERS, *COMPUTED, *WITHOUT_MEANING}
MARKS = {
    "noising_type",
    "coefficient_type",
    "model_type",
    "dataset_type",
    "velocity_loss_ratio",
    "l_schedule",
    "cfg_scale",
}
"""Keys that identify a file of the authors."""

LATENTS_FILE = "imagenet_latent.hdf5"
LATENT_FACTOR = 8
EMA_STEPS_ON_CIFAR = 16


def is_authors(values: dict[str, Any]) -> bool:
    """Check whether a mapping is a configuration of the authors: flat, with keys that only they use."""
    return not MARKS.isdisjoint(values) and not any(isinstance(value, dict) for value in values.values())


def ignored(values: dict[str, Any]) -> dict[str, str]:
    """Return the keys of the file that are ignored here, with the reason."""
    return {key: reason for key, reason in WITHOUT_MEANING.items() if key in values}


def translate(values: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Translate their flat mapping to nested sections, including their defaults and hard-coded settings.

    Args:
        path: path of the file, for messages.

    Raises:
        ConfigError: if a key is unknown or a value cannot be translated; the message names file and key.
    """
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{path}: {key}: {_unknown(key)}")
    values = DEFAULTS | values
    sections: dict[str, Any] = {"objective": {"name": "soflow"}, "optimizer": {"warmup_steps": 0}}
    for key, (place, names) in CHOICES.items():
        if values[key] not in names:
            raise ConfigError(f"{path}: {key} = {values[key]}: must be one of {', '.join(names)}")
        _put(sections, place, names[values[key]])
    for key, place in NUMBERS.items():
        _put(sections, place, values[key])
    decay, latent_side, nfe = (_number(values, key, path) for key in ("ema_decay_rate", "data_size", "eval_NFE"))
    if values["l_schedule"] == "Const":  # has no initial value
        sections["objective"]["r_init"] = values["l_end_ratio"]
    sections["training"] |= {"precision": "tf32", "quotient_precision": "fp32"}
    sections["evaluation"] |= {"num_samples": 50000, "nfe": [int(nfe)], "feature_network": "inception"}
    if values["dataset_type"] == "Imagenet":
        root, size = str(Path(str(values["dataset_path"])) / LATENTS_FILE), LATENT_FACTOR * int(latent_side)
        sections["dataset"] |= {"root": root, "image_size": size, "conditional": True}
        sections["optimizer"]["name"] = "adamw"
        sections["training"] |= {"ema_decay": decay}
    else:
        root, size = str(values["dataset_path"]), int(latent_side)
        sections["dataset"] |= {"root": root, "image_size": size, "conditional": False, "augmentation": 0.12}
        sections["optimizer"]["name"] = "radam"
        if _number(values, "weight_decay", path):
            raise ConfigError(
                f"{path}: weight_decay = {values['weight_decay']}: must be 0 for CIFAR10; "
                "their RAdam adds it to the gradient, here it is decoupled"
            )
        decay **= EMA_STEPS_ON_CIFAR
        sections["training"] |= {"ema_decay": decay, "ema_every": EMA_STEPS_ON_CIFAR, "ema_dtype": "float64"}
    if values["model_type"] == "UNet":
        sections["network"]["dropout"] = 0.3
    return sections


def _put(sections: dict[str, Any], place: str, value: Any) -> None:
    section, _, field = place.rpartition(".")
    (sections.setdefault(section, {}) if section else sections)[field] = value


def _number(values: dict[str, Any], key: str, path: str | Path) -> float:
    try:
        return float(values[key])
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: {key} = {values[key]}: must be a number") from None


def _unknown(key: str) -> str:
    close = difflib.get_close_matches(str(key), sorted(KEYS), n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"is no key of the SoFlow authors' configurations; {hint}known keys are {', '.join(sorted(KEYS))}"
