"""Configuration of a cost study: the optimizer steps to compare."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from orchestration.config import LaunchConfig, ResourcesConfig
from soflow.config import override, parse, to_dict
from soflow.config_base import Count, PrecisionName, one_of
from soflow.networks.registry import NETWORKS

_SOFLOW = {"flow_matching_fraction": 0.75, "guidance_strength": 2.5, "velocity_mix": 0.25}
_MEANFLOW = {"flow_matching_fraction": 0.75, "guidance_omega": 1.0, "guidance_kappa": 0.5}
VARIANTS: dict[str, dict[str, Any]] = {
    "flow_matching": {"name": "flow_matching", "guidance_strength": 2.5, "velocity_mix": 0.25},
    "soflow": {"name": "soflow", **_SOFLOW},
    "meanflow_a": {"name": "meanflow", "jvp": "with_gradient", **_MEANFLOW},
    "meanflow_b": {"name": "meanflow", "jvp": "separate", **_MEANFLOW},
    "meanflow_c": {"name": "meanflow", "jvp": "subset", **_MEANFLOW},
    "meanflow_d": {"name": "meanflow", "jvp": "finite_difference", **_MEANFLOW},
    "meanflow_flash": {"name": "meanflow", "jvp": "subset", "jvp_attention": "flash", **_MEANFLOW},
    "improved_meanflow": {"name": "improved_meanflow", **_MEANFLOW},
    "alpha_flow": {"name": "alpha_flow", **_MEANFLOW, "anneal_temperature": 1e-3},
    "esc": {"name": "esc", **_MEANFLOW},
    "shortcut": {"name": "shortcut", "flow_matching_fraction": 0.75, "smallest_steps": 128},
}
"""Objectives with the published settings for ImageNet; MeanFlow with its forms of Jacobian-vector product. α-Flow in
its transition, with α = 0.5; before, it costs as much as flow matching, and afterwards as MeanFlow."""
BEST = "meanflow"
"""Prefix of the variants of which the fastest is the one to beat."""
_UNGUIDED_MEANFLOW = {"guidance_omega": 1.0, "guidance_kappa": 0.0}
UNGUIDED = {
    "flow_matching": {"guidance_strength": 1.0},
    "soflow": {"guidance_strength": 1.0},
    "meanflow": _UNGUIDED_MEANFLOW,
    "improved_meanflow": _UNGUIDED_MEANFLOW,
    "alpha_flow": _UNGUIDED_MEANFLOW,
    "esc": _UNGUIDED_MEANFLOW,
    "shortcut": {"guidance_strength": 1.0},
}
REFERENCE = "flow_matching"
"""Variant that all others are compared with, without guidance."""


class CostStudyConfig(LaunchConfig):
    """Comparison of the costs of optimizer steps, on random data of the data set's shape."""

    variants: tuple[str, ...] = ("soflow", "meanflow_a", "meanflow_b", "meanflow_c", "meanflow_d")
    """Objectives to compare with unguided flow matching: flow_matching, soflow, meanflow_a (Jacobian-vector product and
    loss in one call), meanflow_b (Jacobian-vector product in a separate call), meanflow_c (separate call, only where
    r ≠ t), meanflow_d (finite difference of two calls, only where r ≠ t), meanflow_flash (c with fused attention, on
    CUDA), improved_meanflow, alpha_flow, esc, shortcut."""
    networks: tuple[str, ...] = ("DiT-XS/2", "DiT-S/2")
    """Networks by name."""
    batches: tuple[Annotated[int, Field(ge=2)], ...] = (8, 32)
    """Samples per step."""
    guidance: tuple[bool, ...] = (True,)
    """Training-time guidance, on or off."""
    attentions: tuple[Literal["fused", "math"], ...] = ("fused",)
    """Attention kernels: fused where the objective allows it, or always math."""
    precisions: tuple[PrecisionName, ...] = ("fp32",)
    """Precision of network calls and gradients, except the values in a finite difference."""
    compiled: tuple[bool, ...] = (False,)
    """torch.compile, on or off; `False True` compares compiled with eager steps as well."""
    resources: ResourcesConfig = Field(default_factory=lambda: ResourcesConfig(cpus_per_worker=os.cpu_count() or 1))
    rounds: Count = 7
    """Measurements of every variant; the variants alternate, so that drift of the machine affects all equally."""
    turn_s: Annotated[float, Field(ge=0)] = 0.5
    """Minimum seconds per measurement, which has at least two steps."""
    memory_gib: Annotated[float, Field(gt=0)] = 4.0
    """Memory for which the largest batch is predicted."""

    _variants = field_validator("variants")(lambda values: tuple(map(one_of(VARIANTS), values)))
    _networks = field_validator("networks")(lambda values: tuple(map(one_of(NETWORKS), values)))


@dataclass(frozen=True)
class Cell:
    """Setting in which all variants are compared with each other."""

    network: str
    batch: int
    guidance: bool
    attention: str
    precision: str


def cells(config: CostStudyConfig) -> list[Cell]:
    """List all combinations of the configured settings."""
    settings = (config.networks, config.batches, config.guidance, config.attentions, config.precisions)
    return [Cell(*values) for values in itertools.product(*settings)]


def run_values(config: CostStudyConfig, cell: Cell, variant: str, guided: bool, compiled: bool) -> dict[str, Any]:
    """Return the training run of a variant in a cell, as nested dictionaries.

    Raises:
        ConfigError: if the combination is invalid.
    """
    objective = dict(VARIANTS[variant])
    if not guided:
        objective |= UNGUIDED[objective["name"]]
    changes = {
        "objective": objective,
        "network.name": cell.network,
        "training.batch_size": cell.batch,
        "training.precision": cell.precision,
        "training.compile": compiled,
        "training.total_steps": 10**6,  # any large number: the cost does not depend on r(k, K)
    }
    return to_dict(parse(override(to_dict(config.run), changes)))
