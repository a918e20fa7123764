"""SoFlow loss written directly from the paper's equations (arXiv 2512.15657), a reference for `objectives.soflow`.

It makes one network call per quantity and computes the solutions f_θ explicitly. `SoFlow` has the same gradient with
fewer network calls and less rounding error.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soflow.guidance import decay
from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import Draws, mean_square
from soflow.objectives.config import SoFlowConfig
from soflow.parameterizations import PARAMETERIZATIONS


def soflow_loss(
    network: nn.Module, data: Tensor, labels: Tensor, draws: Draws, config: SoFlowConfig, num_classes: int
) -> Tensor:
    """Compute the scalar loss λ · flow matching + (1 − λ) · consistency.

    Args:
        network: F_θ(x, t, s, labels), without dropout.
        data: x_0 [B, C, H, W].
        labels: original labels [B], before label drop.
        draws: noise x_1, times and label drop; at least one sample of each kind.
        num_classes: index of the null label.
    """
    interpolant, p = INTERPOLANTS[config.interpolant], PARAMETERIZATIONS[config.parameterization]
    w, m, eps, power = config.guidance_strength, config.velocity_mix, config.weight_eps, config.weight_power
    n, t, l, s = draws.num_flow_matching, draws.t, draws.l, draws.s
    x_t, v_t = interpolant.x_t(data, draws.noise, t), interpolant.v_t(data, draws.noise, t)
    null = torch.full_like(labels, num_classes)
    y = torch.where(draws.drop, null, labels)

    # Target velocity v_mix; plain v_t without guidance and for dropped labels.
    with torch.no_grad():
        v_null = p.velocity(network(x_t, t, t, null))
        v_label = p.velocity(network(x_t, t, t, labels))
    v_g = v_t + per_sample(decay(t, config.guidance_decay_time), v_t) * (w - 1) * (v_t - v_null)
    guided = ~draws.drop & (w > 1)
    v_mix = torch.where(per_sample(guided, v_t), m * v_g + (1 - m) * v_label, v_t)

    # Flow matching: mean δ² with δ = v_θ(x_t, t) − v_mix, adaptively weighted.
    squared = mean_square(p.velocity(network(x_t[:n], t[:n], t[:n], y[:n])) - v_mix[:n])
    flow_matching = squared / (abs(p.velocity_scale) * (squared.detach() + eps) ** power)

    # Solution consistency: ‖f_θ(x_t, t, s) − f_θ⁻(x_l, l, s)‖² / (2 |b(t, s)| (t − l)), adaptively weighted.
    x_t, v_mix, y, t, l, s = (value[n:] for value in (x_t, v_mix, y, t, l, s))
    x_l = x_t + per_sample(l - t, x_t) * v_mix
    with torch.no_grad():
        f_l = p.solution(x_l, network(x_l, l, s, y), l, s)
    squared = mean_square(p.solution(x_t, network(x_t, t, s, y), t, s) - f_l)
    weight = (squared.detach() / (t - l) ** 2 + eps) ** -power
    consistency = weight * squared / (2 * p.b(t, s).abs() * (t - l))

    fraction = config.flow_matching_fraction
    return fraction * flow_matching.mean() + (1 - fraction) * consistency.mean()
