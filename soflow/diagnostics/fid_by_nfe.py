"""FID as a function of NFE: 1 to 16 function evaluations, with both samplers that use the solution map."""

from __future__ import annotations

from soflow.diagnostics.base import Subject

NFE = (1, 2, 4, 8, 16)
SAMPLERS = ("renoise", "compose")


def measure(subject: Subject) -> dict[str, float]:
    """Compute FID by sampler and NFE, e.g. "renoise_4"; NFE 1 is equal for both samplers and computed once."""
    one = subject.fid(1, "compose")
    return {f"{sampler}_{nfe}": one if nfe == 1 else subject.fid(nfe, sampler) for sampler in SAMPLERS for nfe in NFE}
