"""Training objectives behind one interface (`base.Objective`): one file each, a section in `configs`, an entry here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from soflow.objectives import config as configs

if TYPE_CHECKING:
    from soflow.config import RunConfig
    from soflow.config_base import Section
    from soflow.objectives.base import Objective


@dataclass(frozen=True)
class ObjectiveSpec:
    """One objective by name."""

    implementation: str
    """Module and class, "package.module:Class"."""
    config: type[Section]
    search: tuple[str, ...]
    """What a sweep searches unless told otherwise, in the words of its `search` field."""


OBJECTIVES = {
    "soflow": ObjectiveSpec(
        "soflow.objectives.soflow:SoFlow",
        configs.SoFlowConfig,
        (
            "objective.flow_matching_fraction=0.2:0.9",
            "objective.gap_schedule=constant,linear,cosine,exponential",
            "objective.r_init=0.05:1:log",
            "objective.r_end=0.001:0.05:log",
            "objective.guidance_strength=1:2.5",
            "objective.velocity_mix=0.1:1",
        ),
    ),
    "meanflow": ObjectiveSpec(
        "soflow.objectives.meanflow:MeanFlow",
        configs.MeanFlowConfig,
        (
            "objective.flow_matching_fraction=0.25:0.9",
            "objective.guidance_omega=0.8:1.4",
            "objective.guidance_kappa=0:0.6",
        ),
    ),
    "flow_matching": ObjectiveSpec(
        "soflow.objectives.flow_matching:FlowMatching",
        configs.FlowMatchingConfig,
        (
            "objective.guidance_strength=1:4",
            "objective.velocity_mix=0.1:1",
        ),
    ),
    "improved_meanflow": ObjectiveSpec(
        "soflow.objectives.improved_meanflow:ImprovedMeanFlow",
        configs.ImprovedMeanFlowConfig,
        (
            "objective.flow_matching_fraction=0.25:0.9",
            "objective.guidance_omega=0.8:1.4",
            "objective.guidance_kappa=0:0.6",
        ),
    ),
    "distillation": ObjectiveSpec(
        "soflow.objectives.distillation:Distillation",
        configs.DistillationConfig,
        (
            "objective.flow_matching_fraction=0.1:0.9",
            "objective.gap_schedule=constant,linear,cosine,exponential",
            "objective.r_init=0.05:1:log",
            "objective.r_end=0.001:0.05:log",
            "objective.guidance_strength=1:2.5",
        ),
    ),
    "alpha_flow": ObjectiveSpec(
        "soflow.objectives.alpha_flow:AlphaFlow",
        configs.AlphaFlowConfig,
        (
            "objective.flow_matching_fraction=0.1:0.9",
            "objective.anneal_end=0.3:1",
            "objective.anneal_temperature=5:50:log",
            "objective.guidance_omega=0.8:1.4",
            "objective.guidance_kappa=0:0.6",
        ),
    ),
    "shortcut": ObjectiveSpec(
        "soflow.objectives.shortcut:Shortcut",
        configs.ShortcutConfig,
        (
            "objective.flow_matching_fraction=0.25:0.9",
            "objective.smallest_steps=4,8,16,32,64,128",
            "objective.guidance_strength=1:2.5",
        ),
    ),
}


def build(config: RunConfig, num_classes: int) -> Objective:
    """The configured objective for data with this many classes."""
    from soflow.precision import Precision  # imports torch

    module, name = OBJECTIVES[config.objective.name].implementation.split(":")
    return getattr(importlib.import_module(module), name)(
        config.objective,
        num_classes,
        config.dataset.conditional,
        Precision(config.training.precision),
        Precision(config.training.quotient_precision),
        config.network.dropout > 0,
    )
