"""Training objectives behind one interface (`base.Objective`): one file each, plus an entry here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soflow.config import RunConfig
    from soflow.objectives.base import Objective

OBJECTIVES = {
    "soflow": "soflow.objectives.soflow:SoFlow",
    "meanflow": "soflow.objectives.meanflow:MeanFlow",
    "flow_matching": "soflow.objectives.flow_matching:FlowMatching",
}


def build(config: RunConfig, num_classes: int) -> Objective:
    """The configured objective for data with this many classes."""
    module, name = OBJECTIVES[config.objective.name].split(":")
    return getattr(importlib.import_module(module), name)(config.objective, num_classes, config.dataset.conditional)
