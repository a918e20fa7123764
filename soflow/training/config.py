"""Configuration of the optimizer and the training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from soflow.config_base import Count, Positive, PrecisionName, Section


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
