"""What do more network evaluations buy? FID at 1 to 16 evaluations, with both samplers that use the solution map."""

from __future__ import annotations

from soflow.diagnostics.base import Subject

NFE = (1, 2, 4, 8, 16)
SAMPLERS = ("renoise", "compose")


def measure(subject: Subject) -> dict[str, float]:
    """FID by sampler and number of evaluations, e.g. "renoise_4"; one evaluation, the same for both, is made once."""
    one = subject.fid(1, "compose")
    return {f"{sampler}_{nfe}": one if nfe == 1 else subject.fid(nfe, sampler) for sampler in SAMPLERS for nfe in NFE}
