"""The reference loss: its gradient equals that of the fast SoFlow objective."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import NUM_CLASSES, SmoothNetwork, draw, gradients, objective_config, random_batch, relative_error

from soflow.interpolants import INTERPOLANTS
from soflow.objectives.base import Draws
from soflow.objectives.reference import soflow_loss
from soflow.objectives.soflow import SoFlow
from soflow.parameterizations import PARAMETERIZATIONS

TOLERANCE = 1e-9
"""Relative to a gradient's largest element. The reference amplifies float64 rounding, 1e-16, by 1 / (t − l) ≤ 1e4."""
SHAPE = (32, 1, 2, 2)


def float64_draws(objective: SoFlow) -> Draws:
    """Draws of a batch in float64, with weights λ / n_fm and (1 − λ) / (B − n_fm)."""
    draws = draw(objective, SHAPE, 0.5, torch.Generator().manual_seed(1))
    noise, t, l, s = (value.double() for value in (draws.noise, draws.t, draws.l, draws.s))
    fraction, n_fm = objective.config.flow_matching_fraction, draws.num_flow_matching
    weight = torch.full((len(noise),), (1 - fraction) / (len(noise) - n_fm), dtype=torch.float64)
    weight[:n_fm] = fraction / n_fm
    return dataclasses.replace(draws, noise=noise, t=t, l=l, s=s, weight=weight)


@pytest.mark.parametrize("strength", [1.0, 2.0])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_gradients_equal_those_of_the_fast_objective(interpolant, parameterization, strength):
    config = objective_config(
        "soflow", interpolant=interpolant, parameterization=parameterization, guidance_strength=strength
    )
    objective, network = SoFlow(config, NUM_CLASSES, conditional=True), SmoothNetwork()
    data, labels = random_batch(SHAPE)
    draws = float64_draws(objective)
    assert 0 < draws.num_flow_matching < len(data)
    assert draws.drop.any()
    fast = (draws.weight * objective.losses(network, data, labels, draws).loss).sum()
    reference = soflow_loss(network, data, labels, draws, config, NUM_CLASSES)
    expected = gradients(network, reference)
    for name, gradient in gradients(network, fast).items():
        assert relative_error(gradient, expected[name]) < TOLERANCE, name


def test_flow_matching_values_are_equal():
    """The consistency term is left out: the fast objective's value is that of a surrogate."""
    config = objective_config("soflow", flow_matching_fraction=0.97)
    objective, network = SoFlow(config, NUM_CLASSES, conditional=True), SmoothNetwork()
    data, labels = random_batch(SHAPE)
    draws = float64_draws(objective)
    n_fm = draws.num_flow_matching
    assert n_fm == len(data) - 1
    losses = objective.losses(network, data, labels, draws)
    reference = soflow_loss(network, data, labels, draws, config, NUM_CLASSES)
    t, l, s = draws.t[-1], draws.l[-1], draws.s[-1]
    # For the Euler parameterization ‖f_θ − f_θ⁻‖² / (2 |b| (t − l)) is q² (t − l) / (2 (t − s)).
    q_squared = losses.terms["consistency"][0]
    consistency = q_squared * (t - l) / (2 * (t - s)) / (q_squared + config.weight_eps) ** config.weight_power
    expected = (draws.weight[:n_fm] * losses.loss[:n_fm]).sum() + draws.weight[-1] * consistency
    assert relative_error(reference.detach(), expected.detach()) < TOLERANCE
