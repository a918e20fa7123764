"""Which optimiser steps a cost study compares."""

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
}
"""Objectives with the published settings for ImageNet; MeanFlow's Jacobian-vector product in its three ways."""
UNGUIDED = {
    "flow_matching": {"guidance_strength": 1.0},
    "soflow": {"guidance_strength": 1.0},
    "meanflow": {"guidance_omega": 1.0, "guidance_kappa": 0.0},
}
REFERENCE = "flow_matching"
"""Without guidance: what every step is compared with."""


class CostStudyConfig(LaunchConfig):
    """A comparison of what optimiser steps cost; data are random numbers of the data set's shape."""

    variants: tuple[str, ...] = ("soflow", "meanflow_a", "meanflow_b", "meanflow_c")
    """What is compared with flow matching without guidance: flow_matching, soflow, meanflow_a (Jacobian-vector product
    in one call with the loss), meanflow_b (in a call of its own), meanflow_c (in a call of its own, where r ≠ t)."""
    networks: tuple[str, ...] = ("DiT-XS/2", "DiT-S/2")
    """Backbones by name."""
    batches: tuple[Annotated[int, Field(ge=2)], ...] = (8, 32)
    """Samples per step."""
    guidance: tuple[bool, ...] = (True,)
    """With and without training-time guidance."""
    attentions: tuple[Literal["fused", "math"], ...] = ("fused",)
    """Attention kernels: fused where the objective allows it, or math throughout."""
    precisions: tuple[PrecisionName, ...] = ("fp32",)
    """Precision of all network calls but a quotient's."""
    compiled: tuple[bool, ...] = (False,)
    """With and without torch.compile."""
    resources: ResourcesConfig = Field(default_factory=lambda: ResourcesConfig(cpus_per_worker=os.cpu_count() or 1))
    rounds: Count = 7
    """Times that every variant is measured, in turn, so that drift of the machine meets all alike."""
    turn_s: Annotated[float, Field(ge=0)] = 0.5
    """Seconds that a turn lasts at least; it has two steps at least."""
    memory_gib: Annotated[float, Field(gt=0)] = 4.0
    """Memory for which the largest batch is sought."""

    _variants = field_validator("variants")(lambda values: tuple(map(one_of(VARIANTS), values)))
    _networks = field_validator("networks")(lambda values: tuple(map(one_of(NETWORKS), values)))


@dataclass(frozen=True)
class Cell:
    """One setting in which all variants are compared with each other."""

    network: str
    batch: int
    guidance: bool
    attention: str
    precision: str
    compiled: bool


def cells(config: CostStudyConfig) -> list[Cell]:
    """Every combination of the study's settings."""
    settings = (config.networks, config.batches, config.guidance, config.attentions, config.precisions, config.compiled)
    return [Cell(*values) for values in itertools.product(*settings)]


def run_values(config: CostStudyConfig, cell: Cell, variant: str, guided: bool) -> dict[str, Any]:
    """The training run, as nested dictionaries, whose steps stand for a variant in a cell.

    Raises:
        ConfigError: if it is impossible.
    """
    objective = dict(VARIANTS[variant])
    if not guided:
        objective |= UNGUIDED[objective["name"]]
    changes = {
        "objective": objective,
        "network.name": cell.network,
        "training.batch_size": cell.batch,
        "training.precision": cell.precision,
        "training.compile": cell.compiled,
        "training.total_steps": 10**6,  # halfway nowhere: r(k, K) does not matter to the cost
    }
    return to_dict(parse(override(to_dict(config.run), changes)))
