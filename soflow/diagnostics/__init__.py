"""Optional measurements of a trained solution map, available for every run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from soflow.diagnostics.registry import DIAGNOSTICS

if TYPE_CHECKING:
    from soflow.diagnostics.base import Subject


def diagnose(names: tuple[str, ...], subject: Subject) -> dict[str, float]:
    """Compute the named diagnostics; prefix each value with the diagnostic's name, e.g. "ode_violation/mean"."""
    figures: dict[str, float] = {}
    for name in names:
        measured = importlib.import_module(DIAGNOSTICS[name]).measure(subject)
        figures |= {f"{name}/{key}": value for key, value in measured.items()}
    return figures
