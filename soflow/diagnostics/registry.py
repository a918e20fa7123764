"""Registry of the diagnostics: one module each, with `measure(subject: Subject) -> dict[str, float]`.

A plug-in is such a function.
"""

from __future__ import annotations

from typing import Any

from soflow.plugins import PluginError, Registry


def _plugin(reference: str, measure: Any) -> str:
    if not callable(measure):
        raise PluginError(f"is {measure!r:.60}, not a function")
    return reference


_INCLUDED = {
    "ode_violation": "soflow.diagnostics.ode_violation:measure",
    "semigroup_error": "soflow.diagnostics.semigroup_error:measure",
    "flow_distance": "soflow.diagnostics.flow_distance:measure",
    "true_distance": "soflow.diagnostics.true_distance:measure",
    "target_variance": "soflow.diagnostics.target_variance:measure",
    "fid_by_nfe": "soflow.diagnostics.fid_by_nfe:measure",
    "inference_guidance": "soflow.diagnostics.inference_guidance:measure",
}
DIAGNOSTICS = Registry("diagnostics", _INCLUDED, _plugin)
"""References to the functions, by the diagnostics' names."""
