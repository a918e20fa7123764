"""Optional measurements of a trained solution map, available for every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soflow.diagnostics.registry import DIAGNOSTICS
from soflow.plugins import label, load

if TYPE_CHECKING:
    from soflow.diagnostics.base import Subject


def diagnose(names: tuple[str, ...], subject: Subject) -> dict[str, float]:
    """Compute the named diagnostics; prefix each value with the diagnostic's name, e.g. "ode_violation/mean".

    A plug-in's prefix is the name of its function.
    """
    figures: dict[str, float] = {}
    for name in names:
        measured = load(DIAGNOSTICS[name])(subject)
        figures |= {f"{label(name)}/{key}": value for key, value in measured.items()}
    return figures
