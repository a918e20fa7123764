"""Configuration of the evaluation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from soflow.config_base import Count, Fraction, InputPath, Positive, Section, one_of
from soflow.diagnostics.registry import DIAGNOSTICS
from soflow.evaluation.registry import FEATURE_NETWORKS, SUFFIX, feature_network_info
from soflow.plugins import label

Sampler = Literal["renoise", "compose", "heun"]
Protocol = Literal["torch-fidelity", "adm", "jax"]


class EvaluationConfig(Section):
    num_samples: Annotated[int, Field(ge=16)] = 2000
    """Number of generated samples per FID."""
    nfe: tuple[Count, ...] | None = None
    """NFE values (number of function evaluations) to evaluate. The first is logged as `fid`, the others as
    `fid_{n}nfe`. Default: depends on the objective."""
    sampler: Sampler | None = None
    """Sampler for NFE above 1: renoise, compose (Euler steps for flow matching) or heun. Default: depends on the
    objective."""
    times: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Times between the steps of the NFE that has one step more, decreasing, e.g. 0.3 for 2 NFE: where renoise adds
    noise again, and compose stops. Default, and at other NFE: equal steps."""
    temperature: Positive = 1.0
    """Factor of the noise at sampling."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Strength w of classifier-free guidance at sampling, in addition to what was trained; 1 = none. A guided step
    evaluates the network twice."""
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Least and greatest t of guided network evaluations."""
    feature_network: str | None = None
    """Feature network for FID: digits-cnn, fashion-cnn, inception, dinov2 (its fid is FD-DINOv2), clip (also measures
    cmmd), a .safetensors file that experiments/train_feature_network.py made from your own images, or your own class as
    package.module:name. Default: the one that fits the dataset."""
    feature_weights: InputPath | None = None
    """File with the weights of dinov2 or clip, or of torch-fidelity's Inception where it cannot be downloaded."""
    batch_size: Count = 500
    """Number of samples generated per batch."""
    reference: InputPath | None = None
    """File of reference statistics for FID, used instead of the data: .npz (mu, sigma) or torch-fidelity's .pt."""
    reference_sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{8,64}$")] | None = None
    """Beginning of the SHA-256 of `reference`, 8 digits or more: another file is refused."""
    protocol: Protocol = "torch-fidelity"
    """FID protocol. It sets the rounding of pixels to whole levels: torch-fidelity = to the nearest, adm = downward as
    guided-diffusion saves samples, jax = to the nearest and up from the middle, as DiT and MeanFlow's JAX code do. The
    last two need `reference` and `reference_sha256`, as their published FIDs are against such a file."""
    labels: Literal["balanced", "data", "random"] = "balanced"
    """Classes of the generated samples: balanced = equally many of each, data = in the proportions of the data, random
    = each drawn at random, all equally likely, as guided-diffusion and DiT do."""
    precision_recall: bool = False
    """Also compute precision, recall, density and coverage."""
    inception_score: bool = False
    """Also compute the Inception score."""
    diagnostics: tuple[str, ...] = ()
    """Diagnostics of the trained map: ode_violation, semigroup_error, flow_distance, target_variance, fid_by_nfe,
    inference_guidance; for gaussians also true_distance."""
    diagnose_every_report: bool = False
    """Run the diagnostics at every report. If false, only after the last step."""

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        """Take the field's former name from saved configurations."""
        if isinstance(values, dict) and "inception_weights" in values:
            return {"feature_weights" if name == "inception_weights" else name: values[name] for name in values}
        return values

    @field_validator("feature_network")
    @classmethod
    def _feature_network_is_known(cls, value: str | None) -> str | None:
        if value is None or value in FEATURE_NETWORKS:
            return value
        if not value.endswith(SUFFIX):
            feature_network_info(value)  # raises
        # Its existence is checked when it is used: sampling from a run needs no features.
        return str(Path(value).expanduser().absolute())

    @field_validator("diagnostics")
    @classmethod
    def _diagnostics_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            one_of(DIAGNOSTICS)(name)
        if len(set(map(label, value))) < len(value):
            raise ValueError("must have different names, as their values are named after them")
        return value

    @model_validator(mode="after")
    def _evaluations_are_possible(self) -> EvaluationConfig:
        if self.nfe is not None and (not self.nfe or len(set(self.nfe)) < len(self.nfe)):
            raise ValueError(f"nfe = {list(self.nfe)} must list distinct numbers, at least one")
        if self.sampler == "heun" and self.nfe is not None and any(n > 1 and n % 2 for n in self.nfe):
            raise ValueError(f"nfe = {list(self.nfe)} must be even or 1 with sampler = heun (two evaluations per step)")
        network = self.feature_network or ""
        if self.inception_score and network in FEATURE_NETWORKS and FEATURE_NETWORKS[network].logits is None:
            raise ValueError(f"inception_score = True: {network} has no classes to predict")
        if self.protocol != "torch-fidelity" and not (self.reference and self.reference_sha256):
            missing = "reference_sha256" if self.reference else "reference"
            raise ValueError(
                f"protocol = {self.protocol}: needs {missing}, its FIDs are distances from one file of statistics"
            )
        if any(later >= earlier for earlier, later in pairwise(self.times)):
            raise ValueError(f"times = {list(self.times)} must decrease, from noise at 1 to data at 0")
        if self.times and self.sampler == "heun":
            raise ValueError(f"times = {list(self.times)} must be left out with sampler = heun, which has equal steps")
        if self.times and self.nfe is not None and len(self.times) + 1 not in self.nfe:
            raise ValueError(
                f"times = {list(self.times)} are for {len(self.times) + 1} NFE, which nfe = {list(self.nfe)} lacks"
            )
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval = {list(self.guidance_interval)} must list the least t first")
        if self.guidance != 1 and "inference_guidance" in self.diagnostics:
            raise ValueError(
                f"guidance = {self.guidance:g} must be 1 with diagnostics = inference_guidance, which varies it"
            )
        return self
