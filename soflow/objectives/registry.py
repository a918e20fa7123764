"""Registry of the training objectives: one module each, a section in `config`, an entry here.

A plug-in is a subclass of `objectives.base.Objective` with a nested class `Config`, its section, and maybe `search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from soflow.objectives import config
from soflow.plugins import PluginError, Registry


@dataclass(frozen=True)
class ObjectiveSpec:
    """Registered objective."""

    implementation: str
    """Module and class, "package.module:Class"."""
    config: type[config.ObjectiveFields]
    search: tuple[str, ...]
    """Default search space of a sweep, in the syntax of its `search` field."""


def _plugin(reference: str, objective: Any) -> ObjectiveSpec:
    section = getattr(objective, "Config", None)
    if not (isinstance(section, type) and issubclass(section, config.ObjectiveFields)):
        raise PluginError("needs a nested class Config, a subclass of soflow.objectives.config.ObjectiveFields")
    for name, kind in (("name", str), ("label_drop", float)):
        field = section.model_fields.get(name)
        if field is None or field.annotation is not kind:
            raise PluginError(
                f"its Config needs a field {name}: {kind.__name__}, not a Literal; inherit from SoFlowFields, "
                "MeanFlowFields or ObjectiveFields in soflow.objectives.config"
            )
    return ObjectiveSpec(reference, section, tuple(getattr(objective, "search", ())))


_INCLUDED = {
    "soflow": ObjectiveSpec(
        "soflow.objectives.soflow:SoFlow",
        config.SoFlowConfig,
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
        config.MeanFlowConfig,
        (
            "objective.flow_matching_fraction=0.25:0.9",
            "objective.guidance_omega=0.8:1.4",
            "objective.guidance_kappa=0:0.6",
        ),
    ),
    "flow_matching": ObjectiveSpec(
        "soflow.objectives.flow_matching:FlowMatching",
        config.FlowMatchingConfig,
        (
            "objective.guidance_strength=1:4",
            "objective.velocity_mix=0.1:1",
        ),
    ),
    "improved_meanflow": ObjectiveSpec(
        "soflow.objectives.improved_meanflow:ImprovedMeanFlow",
        config.ImprovedMeanFlowConfig,
        (
            "objective.flow_matching_fraction=0.25:0.9",
            "objective.guidance_omega=0.8:1.4",
            "objective.guidance_kappa=0:0.6",
        ),
    ),
    "distillation": ObjectiveSpec(
        "soflow.objectives.distillation:Distillation",
        config.DistillationConfig,
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
        config.AlphaFlowConfig,
        (
            "objective.flow_matching_fraction=0.1:0.9",
            "objective.anneal_end=0.3:1",
            "objective.anneal_temperature=5:50:log",
            "objective.guidance_omega=0.8:1.4",
            "objective.guidance_kappa=0:0.6",
        ),
    ),
    "esc": ObjectiveSpec(
        "soflow.objectives.esc:ESC",
        config.ESCConfig,
        (
            "objective.flow_matching_fraction=0.25:0.9",
            "objective.marginal_fraction=0:1",
            "objective.guidance_omega=0.8:1.4",
            "objective.guidance_kappa=0:0.6",
        ),
    ),
    "shortcut": ObjectiveSpec(
        "soflow.objectives.shortcut:Shortcut",
        config.ShortcutConfig,
        (
            "objective.flow_matching_fraction=0.25:0.9",
            "objective.smallest_steps=4,8,16,32,64,128",
            "objective.guidance_strength=1:2.5",
        ),
    ),
}
OBJECTIVES = Registry("objectives", _INCLUDED, _plugin)
