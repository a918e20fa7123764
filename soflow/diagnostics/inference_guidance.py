"""What does classifier-free guidance at inference give? FID of the same network, extrapolated away from the null label.

F_θ(null) + w (F_θ(label) − F_θ(null)) stands for F_θ(label). All solutions and velocities here are affine in F_θ, with
coefficients that do not depend on the label, so that this is guidance of f_θ and of v_θ alike. A step evaluates the
network twice: one step is 2 NFE, which training-time guidance (SoFlow, arXiv 2512.15657) spends on two steps.
"""

from __future__ import annotations

from soflow.diagnostics.base import Subject
from soflow.guidance import GuidedNetwork

STRENGTHS = (1.5, 2.0, 3.0)
STEPS = (1, 2)


def measure(subject: Subject) -> dict[str, float]:
    """FID by strength w and number of network evaluations, e.g. "w2_2nfe"; more than one step is "renoise"."""
    figures = {}
    for strength in STRENGTHS:
        network = GuidedNetwork(subject.network, strength, subject.objective.num_classes).eval()
        for steps in STEPS:
            sampler = "compose" if steps == 1 else "renoise"
            figures[f"w{strength:g}_{2 * steps}nfe"] = subject.fid(steps, sampler, network)
    return figures
