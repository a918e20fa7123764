"""Training objectives with one common interface, `base.Objective`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soflow.config_base import PrecisionName
from soflow.objectives.config import ObjectiveFields
from soflow.objectives.registry import OBJECTIVES
from soflow.plugins import load

if TYPE_CHECKING:
    from soflow.objectives.base import Objective


def build(
    objective: ObjectiveFields,
    num_classes: int,
    conditional: bool,
    precision: PrecisionName = "fp32",
    quotient_precision: PrecisionName = "fp32",
    dropout: bool = False,
) -> Objective:
    """Build the objective of a configuration section.

    Args:
        num_classes: index of the null label.
        conditional: train with class labels.
        precision: precision of all network calls and gradients, except the values in a finite difference over t − l.
        quotient_precision: precision of these values.
        dropout: true if the network has dropout.
    """
    from soflow.precision import Precision  # imports torch

    return load(OBJECTIVES[objective.name].implementation)(
        objective, num_classes, conditional, Precision(precision), Precision(quotient_precision), dropout
    )
