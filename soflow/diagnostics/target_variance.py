"""Variance of the velocity targets. Guidance amplifies it, velocity mixing reduces it.

The diagnostic is the mean squared deviation per element, over samples and times, of each target from the network's
velocity v_θ(x_t, t, label), that is the flow-matching error for this target. Targets are the conditional velocity v_t,
the guided v_g and, if the objective has it, the mixed v_mix (SoFlow, arXiv 2512.15657).

The velocity of a trained network is the conditional mean of v_g (and v_mix) given x_t, so their values are variances.
With guidance it is not the mean of v_t; the value for v_t then includes the squared distance of the two means. Without
guidance all targets equal v_t. ESC's plug-in velocity is not measured, because it needs a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from soflow.diagnostics.base import Probe, Subject, probes, root_mean_square
from soflow.objectives.base import Draws
from soflow.randomness import generator


@torch.no_grad()
def measure(subject: Subject) -> dict[str, float]:
    """Compute mean squared deviations "v_t", "v_g", "v_mix", and the ratios to "v_t" as "v_g_ratio", "v_mix_ratio".

    Times are drawn as in the last training step; no label is dropped.
    """
    objective, network = subject.objective, subject.network
    deviations: dict[str, list[Tensor]] = {}
    for probe, draws in probes_with_draws(subject):
        x_t = objective.interpolant.x_t(probe.data, probe.noise, draws.t)
        v_t = objective.interpolant.v_t(probe.data, probe.noise, draws.t)
        learned = objective.velocity(network, x_t, draws.t, probe.labels)
        targets = {"v_t": v_t} | objective.targets(network, x_t, v_t, probe.labels, draws)
        for name, target in targets.items():
            deviations.setdefault(name, []).append(target - learned)
    figures = {name: root_mean_square(values) ** 2 for name, values in deviations.items()}
    return figures | {f"{name}_ratio": value / figures["v_t"] for name, value in figures.items() if name != "v_t"}


def probes_with_draws(subject: Subject) -> Iterator[tuple[Probe, Draws]]:
    """Yield each probe with the objective's draws at the end of training, with the probe's noise and no label drop."""
    random = generator("cpu", subject.seed, "diagnostics", "target_variance", "times")
    for probe in probes(subject, "target_variance"):
        draws = subject.objective.draw(probe.noise, 1.0, random)
        t, l, s = (time.to(probe.data.dtype) for time in (draws.t, draws.l, draws.s))
        no_drop = torch.zeros_like(draws.drop)
        yield probe, replace(draws, t=t, l=l, s=s, drop=no_drop, guided=~no_drop).to(probe.data.device)
