"""Closer looks at a trained map, which any run can switch on: one file each, plus an entry here.

Each module has `measure(subject: Subject) -> dict[str, float]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from soflow.data.gaussians import Components
    from soflow.objectives.base import Objective

DIAGNOSTICS = {
    "ode_violation": "soflow.diagnostics.ode_violation",
    "semigroup_error": "soflow.diagnostics.semigroup_error",
    "flow_distance": "soflow.diagnostics.flow_distance",
    "true_distance": "soflow.diagnostics.true_distance",
    "target_variance": "soflow.diagnostics.target_variance",
    "fid_by_nfe": "soflow.diagnostics.fid_by_nfe",
    "inference_guidance": "soflow.diagnostics.inference_guidance",
}


@dataclass(frozen=True)
class Subject:
    """What a diagnostic looks at."""

    objective: Objective
    network: nn.Module
    """With averaged weights, in evaluation mode."""
    data: Tensor
    """Training samples as the network sees them [N, C, H, W]."""
    labels: Tensor
    """Their labels as the network sees them [N]."""
    seed: int
    """Of the run; diagnostics draw from soflow.randomness.generator(device, seed, name)."""
    fid: Callable[..., float]
    """FID of a number of steps with a sampler, as the run's own evaluation measures it; with another network, if that
    is given as a third argument."""
    components: Components | None = None
    """What the data is drawn from, where that is known."""


def diagnose(names: tuple[str, ...], subject: Subject) -> dict[str, float]:
    """The named diagnostics' figures, each under its diagnostic's name, e.g. "ode_violation/mean"."""
    figures = {}
    for name in names:
        found = importlib.import_module(DIAGNOSTICS[name]).measure(subject)
        figures |= {f"{name}/{key}": value for key, value in found.items()}
    return figures
