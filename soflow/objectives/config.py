"""Configuration of the objectives: hyperparameters, ranges and defaults.

Separate from the objectives themselves, so that parsing a configuration does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from soflow.config_base import Fraction, GapRatio, InputPath, Positive, Section, one_of
from soflow.schedules import GAP_SCHEDULES


class ObjectiveFields(Section):
    """Fields of every objective. Each section declares them itself, in its own order."""

    if TYPE_CHECKING:
        name: str
        label_drop: float

    @property
    def progress_schedule(self) -> str | None:
        """The quantity that follows training progress k/K, so that more steps change all before; None if none does."""
        return None

    @property
    def fused_jvp(self) -> bool:
        """True if the Jacobian-vector product uses fused attention."""
        return False

    @property
    def arithmetic_varies(self) -> bool:
        """True if the operations of a step depend on training progress."""
        return False

    @property
    def same_class_images(self) -> int | None:
        """Number of images of the same class in a batch; None to draw batches from all images."""
        return None


class InterpolantFields(Section):
    interpolant: Literal["linear", "trigonometric"] = "linear"
    """Noising schedule alpha_t, beta_t."""
    parameterization: Literal["euler", "trigonometric"] = "euler"
    """Solution parameterization a(t, s), b(t, s)."""


class GuidanceFields(Section):
    guidance_strength: Annotated[float, Field(ge=1)] = 1.5
    """w, scale of training-time classifier-free guidance; 1 switches it off."""
    velocity_mix: Fraction = 0.3
    """m, weight of the guided conditional velocity in the target; the network's velocity gets weight 1 - m."""
    label_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability of replacing a sample's label by the null label."""
    guidance_decay_time: Annotated[float, Field(ge=0, le=1)] = 0.8
    """T, time above which guidance decays to zero; 1 switches the decay off."""

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
    """p, exponent of the adaptive loss weight."""
    weight_eps: Positive = 0.01
    """eps, constant added to the error in the adaptive loss weight."""


class FlowMatchingConfig(WeightFields, GuidanceFields, InterpolantFields, ObjectiveFields):
    """Flow-matching baseline: only SoFlow's flow-matching loss."""

    name: Literal["flow_matching"] = "flow_matching"
    time_mean: float = -0.2
    """Mean of the logit-normal draw of t."""
    time_std: Positive = 1.0
    """Standard deviation of the logit-normal draw of t."""


class SoFlowFields(WeightFields, GuidanceFields, InterpolantFields, ObjectiveFields):
    name: str
    flow_matching_fraction: Fraction = 0.3
    """lambda, fraction of the batch on the flow-matching loss; the rest is on the consistency loss (paper: 0.75)."""
    gap_schedule: str = "exponential"
    """Schedule of the gap ratio r(k, K) = (t - l) / (t - s) over training step k of K: constant, linear, cosine,
    exponential, or your own function of k/K, r_init and r_end as package.module:name."""
    r_init: GapRatio = 0.1
    """Gap ratio r at the first step; unused by the constant schedule."""
    r_end: GapRatio = 0.002
    """Gap ratio r at the last step."""
    time_mean: tuple[float, float, float] = (-0.2, -1.0, 0.2)
    """Means of the logit-normal draws: flow-matching t, consistency s, consistency t."""
    time_std: tuple[Positive, Positive, Positive] = (1.0, 0.8, 0.8)
    """Standard deviations of the logit-normal draws: flow-matching t, consistency s, consistency t."""

    _schedule = field_validator("gap_schedule")(one_of(GAP_SCHEDULES))

    @model_validator(mode="after")
    def _gap_shrinks(self) -> SoFlowFields:
        if self.r_end > self.r_init:
            raise ValueError(f"r_end = {self.r_end:g} must not exceed r_init = {self.r_init:g}")
        return self

    @property
    def progress_schedule(self) -> str | None:
        return None if self.gap_schedule == "constant" else "r(k, K)"


class SoFlowConfig(SoFlowFields):
    """Solution flow models (arXiv 2512.15657)."""

    name: Literal["soflow"] = "soflow"


class MeanFlowFields(WeightFields, ObjectiveFields):
    name: str
    flow_matching_fraction: Fraction = 0.4
    """Fraction of the batch with r = t (paper: 0.75)."""
    jvp: Literal["with_gradient", "separate", "subset", "finite_difference"] = "subset"
    """Computation of du/dt: with_gradient = in one call with u, separate = in a separate call without gradient,
    subset = in a separate call for the samples with r < t only, finite_difference = for these samples from two network
    calls, approximately."""
    jvp_attention: Literal["math", "flash"] = "math"
    """Attention in the Jacobian-vector product: math = torch's unfused kernel, flash = the fused kernel of
    jvp_flash_attention, on CUDA only, not compiled."""
    finite_difference_step: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """h of the finite difference between t + h and t - h. Default: the cube root of the distance from 1 to the next
    number in training.quotient_precision: 0.0049 in fp32."""
    guidance_omega: Annotated[float, Field(ge=0)] = 1.0
    """omega, weight of the conditional velocity v_t in the guided velocity."""
    guidance_kappa: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """kappa, weight of the network's class-conditional velocity in the guided velocity."""
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Closed interval of times t in which guidance is active."""
    label_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability of replacing a sample's label by the null label."""
    time_mean: tuple[float, float] = (-0.4, -0.4)
    """Means of the two logit-normal draws; the larger draw is t, the smaller r."""
    time_std: tuple[Positive, Positive] = (1.0, 1.0)
    """Standard deviations of the two logit-normal draws."""

    @property
    def fused_jvp(self) -> bool:
        return self.jvp_attention == "flash"

    @model_validator(mode="after")
    def _attention_is_used(self) -> MeanFlowFields:
        if self.jvp == "finite_difference" and self.jvp_attention == "flash":
            raise ValueError("jvp_attention = flash: must be math with jvp = finite_difference, which has no product")
        return self

    @model_validator(mode="after")
    def _guidance_is_possible(self) -> MeanFlowFields:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval = {self.guidance_interval} must not end before it starts")
        if self.label_drop == 0 and (self.guidance_omega, self.guidance_kappa) != (1, 0):
            raise ValueError(
                f"label_drop = 0 must be above 0 when guidance is on (guidance_omega = {self.guidance_omega:g}, "
                f"guidance_kappa = {self.guidance_kappa:g}), because guidance needs the null label's velocity"
            )
        return self


class MeanFlowConfig(MeanFlowFields):
    """MeanFlow (arXiv 2505.13447)."""

    name: Literal["meanflow"] = "meanflow"


class ImprovedMeanFlowConfig(MeanFlowFields):
    """Improved MeanFlow with the v-loss (arXiv 2512.02012)."""

    name: Literal["improved_meanflow"] = "improved_meanflow"


class DistillationConfig(SoFlowFields):
    """SoFlow with a trained teacher's velocity in place of the conditional velocity."""

    name: Literal["distillation"] = "distillation"
    teacher: InputPath | None = None
    """Trained run to distill: its folder or one of its checkpoint-*.pt files. Every start uses the folder's newest
    checkpoint: give a file if the teacher may train on."""
    guidance_strength: Annotated[float, Field(ge=1)] = 1.0
    """w, scale of classifier-free guidance by the teacher, in addition to its training-time guidance; 1 adds none."""
    velocity_mix: Fraction = 1.0
    """m, weight of the teacher's velocity in a guided target; the student's velocity gets weight 1 - m."""


class AlphaFlowConfig(MeanFlowFields):
    """alpha-Flow (arXiv 2510.20771): from trajectory flow matching (alpha = 1) to MeanFlow (alpha = 0)."""

    name: Literal["alpha_flow"] = "alpha_flow"
    flow_matching_fraction: Fraction = 0.4
    """Fraction of the batch with r = t (authors: 0.25 to 0.5)."""
    anneal_start: Fraction = 0.0
    """k_s / K, training progress at which alpha starts to decrease from 1 (authors: 0; largest model: 0.5)."""
    anneal_end: Fraction = 1.0
    """k_e / K, training progress from which alpha is 0 (authors: 1; largest model: 0.83)."""
    anneal_temperature: Positive = 25.0
    """gamma, steepness of the sigmoid between anneal_start and anneal_end (authors: 25)."""
    alpha_clamp: Annotated[float, Field(gt=0, lt=0.5)] = 0.005
    """eta, distance from 0 or 1 below which alpha is set to exactly 0 or 1 (authors: 0.005)."""

    @model_validator(mode="after")
    def _alpha_falls(self) -> AlphaFlowConfig:
        if self.anneal_start > self.anneal_end:
            raise ValueError(f"anneal_start = {self.anneal_start:g} must not exceed anneal_end = {self.anneal_end:g}")
        return self

    @property
    def progress_schedule(self) -> str | None:
        return "alpha(k)"

    @property
    def arithmetic_varies(self) -> bool:
        return True


class ESCConfig(MeanFlowFields):
    """ESC, explicit shortcut models (arXiv 2512.11831)."""

    name: Literal["esc"] = "esc"
    marginal_fraction: Fraction = 0.5
    """Probability that the batch's marginal velocity replaces a sample's conditional velocity: the paper's plug-in
    velocity (authors: 0.2 to 0.5). Augmentations with continuous parameters prevent it."""
    images_per_class: Annotated[int, Field(ge=1)] | None = 32
    """Images of the same class in each batch, about; null draws batches from all images. Unused without labels
    (authors: a worker's batch, 32 or 64; in other runs null)."""
    anneal_end: Fraction = 0.03
    """Training progress k/K until which the probability of r = 0, for samples with r < t, falls from 1 to 0 (authors:
    0.017 to 0.033)."""

    @property
    def progress_schedule(self) -> str | None:
        return "the probability of r = 0" if self.anneal_end else None

    @property
    def same_class_images(self) -> int | None:
        return self.images_per_class


class ShortcutConfig(ObjectiveFields):
    """Shortcut models (arXiv 2410.12557)."""

    name: Literal["shortcut"] = "shortcut"
    flow_matching_fraction: Fraction = 0.5
    """Fraction of the batch on the flow-matching loss; the rest is on self-consistency (paper: 0.75)."""
    smallest_steps: Annotated[int, Field(ge=2)] = 16
    """M, a power of 2: the smallest step has size 1/M and is doubled log2 M times up to one step (paper: 128)."""
    guidance_strength: Annotated[float, Field(ge=1)] = 1.5
    """w, scale of classifier-free guidance in the smallest steps; 1 switches it off (paper: 1.5)."""
    label_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability of replacing a sample's label by the null label."""

    @model_validator(mode="after")
    def _steps_double(self) -> ShortcutConfig:
        if self.smallest_steps & (self.smallest_steps - 1):
            raise ValueError(f"smallest_steps = {self.smallest_steps} must be a power of 2, so that steps can double")
        return self

    @model_validator(mode="after")
    def _guidance_needs_dropped_labels(self) -> ShortcutConfig:
        if self.guidance_strength > 1 and self.label_drop == 0:
            raise ValueError(
                f"label_drop = 0 must be above 0 when guidance_strength = {self.guidance_strength:g} exceeds 1, "
                "because guidance needs the velocity learned under the null label"
            )
        return self
