"""Optional measurements of a trained solution map, which any run can switch on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from soflow.diagnostics.registry import DIAGNOSTICS

if TYPE_CHECKING:
    from soflow.diagnostics.base import Subject


def diagnose(names: tuple[str, ...], subject: Subject) -> dict[str, float]:
    """The named diagnostics' figures, each under its diagnostic's name, e.g. "ode_violation/mean"."""
    figures = {}
    for name in names:
        found = importlib.import_module(DIAGNOSTICS[name]).measure(subject)
        figures |= {f"{name}/{key}": value for key, value in found.items()}
    return figures
