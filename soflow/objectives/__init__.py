"""Training objectives behind one interface, `base.Objective`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from soflow.config_base import PrecisionName, Section
from soflow.objectives.registry import OBJECTIVES

if TYPE_CHECKING:
    from soflow.objectives.base import Objective


def build(
    objective: Section,
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
        precision: of all network calls, except those whose difference is divided by t − l.
        quotient_precision: of the two calls of that finite difference.
        dropout: whether the network has dropout.
    """
    from soflow.precision import Precision  # imports torch

    module, name = OBJECTIVES[objective.name].implementation.split(":")
    build_class = getattr(importlib.import_module(module), name)
    return build_class(
        objective, num_classes, conditional, Precision(precision), Precision(quotient_precision), dropout
    )
