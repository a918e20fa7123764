"""Configuration of the optimizer and the training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from soflow.config_base import Count, Positive, PrecisionName, Section, in_one_line
from soflow.posthoc_ema import LONGEST


class OptimizerConfig(Section):
    name: Literal["adamw", "radam"] = "adamw"
    """Optimizer: adamw, or radam as in the CIFAR-10 experiments."""
    learning_rate: Positive = 3e-3
    """Learning rate, constant after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Optimizer steps of linear learning-rate warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """Decay rates (beta1, beta2) of the optimizer's first and second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""


class TrainingConfig(Section):
    total_steps: Count = 1600
    """K, number of optimizer steps."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Global batch size: samples per optimizer step, summed over all workers."""
    report_every: Count = 200
    """Optimizer steps between reports. Each report evaluates the model, draws a sample grid and writes a checkpoint."""
    checkpoint_every_s: Positive = 600.0
    """Seconds between checkpoints if reports are farther apart: what a lost worker may have to train again."""
    log_every: Count = 50
    """Optimizer steps between points of the learning curves `train/…`: losses, gradient norm and learning rate, logged
    with the next report."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay per update of the exponential moving average (EMA) of the weights, which is evaluated and sampled. In
    short runs its length is about a tenth of the steps so far, if that is less."""
    ema_every: Count = 1
    """Optimizer steps between EMA updates."""
    ema_dtype: Literal["float32", "float64"] = "float32"
    """Data type of the EMA weights; float64 takes twice the memory."""
    snapshot_every: Count | None = None
    """Optimizer steps between snapshots of averages of the weights, from which experiments/sweep_checkpoint.py makes
    averages of any length after the training; 1/16 or 1/32 of the steps is a good choice. Default: no snapshots."""
    snapshot_lengths: tuple[Annotated[float, Field(gt=0, le=LONGEST)], ...] = (0.05, 0.1)
    """Lengths of these averages: standard deviation of their weights over the steps, as a fraction of the steps so far
    (sigma_rel of arXiv 2312.02696). Each needs memory for one copy of the weights."""
    snapshot_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Data type of the snapshots' files."""
    snapshot_gib: Positive = 50.0
    """Limit of the disk space of a run's snapshots; a run that would need more is refused before it starts."""
    precision: PrecisionName = "fp32"
    """Precision of network calls: fp32, tf32 (CUDA tensor cores) or bf16."""
    quotient_precision: PrecisionName = "fp32"
    """Precision of the network outputs in a finite difference, which amplifies their rounding by 1 / r(k, K)."""
    compile: Annotated[bool | Literal["auto"], in_one_line("must be true, false or auto")] = False
    """Compile the network and MeanFlow's Jacobian-vector product with torch.compile: up to minutes of start-up, then
    faster steps. auto = before the first step, compare the seconds that the steps to go can save with those that
    compilation takes, measure both kinds of steps if it may pay off, and use the faster. Compiled steps round
    differently, so two runs with auto may differ in the last bits; a resumed run keeps its choice."""

    @field_validator("snapshot_lengths")
    @classmethod
    def _are_different(cls, lengths: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(lengths)) < len(lengths) or not lengths:
            raise ValueError("must list different lengths, at least one")
        return lengths
