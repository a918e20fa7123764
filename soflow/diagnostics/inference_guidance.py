"""FID with classifier-free guidance at inference.

F_θ(null) + w (F_θ(label) − F_θ(null)) replaces F_θ(label). All solutions and velocities here are affine in F_θ, with
coefficients that do not depend on the label, so this guides f_θ and v_θ alike. A step evaluates the network twice: one
step costs 2 NFE, as many as two steps with training-time guidance (SoFlow, arXiv 2512.15657).
"""

from __future__ import annotations

from soflow.diagnostics.base import Subject
from soflow.guidance import GuidedNetwork

STRENGTHS = (1.5, 2.0, 3.0)
STEPS = (1, 2)


def measure(subject: Subject) -> dict[str, float]:
    """Compute FID by strength w and NFE, e.g. "w2_2nfe"; more than one step uses the "renoise" sampler."""
    figures = {}
    for strength in STRENGTHS:
        network = GuidedNetwork(subject.network, strength, subject.objective.num_classes).eval()
        for steps in STEPS:
            sampler = "compose" if steps == 1 else "renoise"
            figures[f"w{strength:g}_{2 * steps}nfe"] = subject.fid(steps, sampler, network)
    return figures
