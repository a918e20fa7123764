"""Improved MeanFlow: the v-loss against its equation, its fixed point on Gaussian data, what its tangent depends on."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    NUM_CLASSES,
    SmoothNetwork,
    count_calls,
    given_draws,
    gradients,
    objective_config,
    random_batch,
    relative_error,
    velocity_and_derivative,
)
from torch import Tensor, nn

from soflow.interpolants import per_sample
from soflow.objectives.base import Draws
from soflow.objectives.improved_meanflow import ImprovedMeanFlow
from soflow.objectives.meanflow import MeanFlow
from tests.unit.soflow.test_exact_solution import LABELS, NULL, SHAPE, ExactNetwork, S, T, check, on_trajectories

JVPS = ("with_gradient", "separate", "subset")
KNOWN = 3


def imf(**fields) -> ImprovedMeanFlow:
    return ImprovedMeanFlow(objective_config("improved_meanflow", **fields), NUM_CLASSES, conditional=True)


def batch() -> tuple[Tensor, Tensor, Draws]:
    """Data, labels and draws of eight samples, three of them with s = t, some of either kind with dropped labels."""
    data, labels = random_batch((8, 1, 2, 2))
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0.95, 0.3, 0.8, 0.6, 0.9, 0.5, 1.0, 0.7], dtype=torch.float64)
    s = t * torch.tensor([1, 1, 1, 0.5, 0.2, 0.9, 0.0, 0.99], dtype=torch.float64)
    drop = torch.tensor([0, 1, 0, 1, 0, 0, 1, 0]).bool()
    return data, labels, given_draws(noise, t, t, s, drop, KNOWN)


def derivative(network, x: Tensor, v: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
    """v · ∂_x u + ∂_t u by reverse mode twice: the derivative with respect to w of (v, 1) · ∂(w · u)/∂(x, t)."""
    x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
    u = network(x, t, s, labels)
    w = torch.ones_like(u, requires_grad=True)
    to_x, to_t = torch.autograd.grad(u, (x, t), w, create_graph=True)
    return torch.autograd.grad((to_x * v).sum() + to_t.sum(), w)[0].detach()


def written_losses(objective: ImprovedMeanFlow, network, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """‖V_θ − v_g‖² / sg(‖V_θ − v_g‖² + ε)^p per sample, as it is written."""
    config, t, s = objective.config, draws.t, draws.s
    x_t = per_sample(1 - t, data) * data + per_sample(t, data) * draws.noise
    v_g = draws.noise - data
    null = torch.full_like(labels, NUM_CLASSES)
    given = torch.where(draws.drop, null, labels)
    omega, kappa = config.guidance_omega, config.guidance_kappa
    guided = omega * v_g + kappa * network(x_t, t, t, labels) + (1 - omega - kappa) * network(x_t, t, t, null)
    v_g = torch.where(per_sample(draws.drop, data), v_g, guided.detach())
    du_dt = derivative(network, x_t, network(x_t, t, t, given).detach(), t, s, given)
    compound = network(x_t, t, s, given) + per_sample(t - s, data) * du_dt
    squared = (compound - v_g).square().flatten(1).sum(1)
    return squared / (squared.detach() + config.weight_eps) ** config.weight_power


@pytest.mark.parametrize("power", [1.0, 0.75])
@pytest.mark.parametrize("guidance", [(1.0, 0.0), (1.0, 0.6), (1.5, 0.3)], ids=str)
@pytest.mark.parametrize("jvp", JVPS)
def test_loss_and_gradient_are_those_of_the_equation(jvp, guidance, power):
    omega, kappa = guidance
    objective = imf(guidance_omega=omega, guidance_kappa=kappa, jvp=jvp, weight_power=power)
    network, (data, labels, draws) = SmoothNetwork(), batch()
    losses = objective.losses(network, data, labels, draws)
    written = written_losses(objective, network, data, labels, draws)
    torch.testing.assert_close(losses.loss, written, rtol=1e-12, atol=0)  # a few hundred float64 operations
    for sample in range(8):
        expected = gradients(network, written[sample])
        for name, gradient in gradients(network, losses.loss[sample]).items():
            assert relative_error(gradient, expected[name]) < 1e-11, (sample, name)
    # MeanFlow's tangent makes another loss, except where s = t.
    other = MeanFlow(objective.config, NUM_CLASSES, conditional=True).losses(network, data, labels, draws)
    torch.testing.assert_close(other.loss[:KNOWN], losses.loss[:KNOWN], rtol=1e-12, atol=0)
    errors = losses.terms["average_velocity"], other.terms["average_velocity"]
    assert ((errors[0] - errors[1]).abs() > 1e-4 * errors[0]).all()


@pytest.mark.parametrize("jvp", JVPS)
def test_the_compound_function_depends_on_the_noised_sample_alone(jvp):
    """Other data and noise that meet in the same x_t change the target but neither u nor du/dt."""
    objective, network = imf(guidance_kappa=0, jvp=jvp), SmoothNetwork()
    data, labels, draws = batch()
    delta = torch.randn(data.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = per_sample(draws.t, data)
    given = objective.drop_labels(labels, draws.drop)
    results = []
    for shift in (torch.zeros_like(delta), delta):
        x_0, x_1 = data - t * shift, draws.noise + (1 - t) * shift
        x_t = objective.interpolant.x_t(x_0, x_1, draws.t)
        results.append(velocity_and_derivative(objective, network, x_t, x_1 - x_0, given, draws))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)  # x_t itself is off by rounding
    assert not results[0][1].requires_grad


class Disturbed(nn.Module):
    """scale · F + shift, with the parameters whose gradients the fixed point is about."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(SHAPE, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.scale * self.network(x, t, s, labels) + self.shift


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_expected_gradient_vanishes_at_the_exact_average_velocity(power):
    """Given x_t, Gaussian data's v_t scatters evenly about the marginal velocity: the mean over v ± δ is exact."""
    objective = ImprovedMeanFlow(objective_config("improved_meanflow", weight_power=power), NULL, conditional=False)
    network = Disturbed(ExactNetwork(objective.interpolant, objective.parameterization))
    data, noise = on_trajectories(objective.interpolant, T)
    delta = torch.randn(data.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = per_sample(T, data)

    def both() -> list[dict[str, Tensor]]:
        found = []
        for sign in (1, -1):
            draws = given_draws(noise + sign * (1 - t) * delta, T, T, S)
            losses = objective.losses(network, data - sign * t * delta, LABELS, draws)
            # V_θ is the marginal velocity, the error is v_t's scatter alone.
            if network.scale == 1:
                scatter = delta.square().flatten(1).mean(1)
                torch.testing.assert_close(losses.terms["average_velocity"], scatter, rtol=1e-12, atol=0)
            found.append(gradients(network, losses.loss.sum()))
        return found

    one, other = both()
    for name, gradient in one.items():
        assert (gradient + other[name]).abs().max() < 1e-12 * gradient.abs().max(), name
    with torch.no_grad():
        network.scale += 0.01
    one, other = both()
    for name, gradient in one.items():
        assert (gradient + other[name]).abs().max() > 1e-3 * gradient.abs().max(), name


CALLS = {"with_gradient": [5, 8], "separate": [8, 5, 8], "subset": [8, 5, 5]}


@pytest.mark.parametrize("jvp", JVPS)
def test_it_costs_one_more_call_where_s_differs_from_t(jvp):
    objective, network = imf(guidance_kappa=0, jvp=jvp), SmoothNetwork()
    data, labels, draws = batch()
    calls = count_calls(network)
    objective.losses(network, data, labels, draws)
    assert calls == CALLS[jvp]


@pytest.mark.parametrize("jvp", JVPS)
def test_a_batch_of_one_part_only(jvp):
    objective, network = imf(guidance_kappa=0, jvp=jvp), SmoothNetwork()
    data, labels, draws = batch()
    known = given_draws(draws.noise, draws.t, draws.t, draws.t, draws.drop, num_flow_matching=8)
    losses = objective.losses(network, data, labels, known)
    assert {name: len(values) for name, values in losses.terms.items()} == {"flow_matching": 8, "average_velocity": 0}
    rest = given_draws(draws.noise, draws.t, draws.t, draws.s / 2, draws.drop)
    losses = objective.losses(network, data, labels, rest)
    written = written_losses(objective, network, data, labels, rest)
    torch.testing.assert_close(losses.loss, written, rtol=1e-12, atol=0)


class Masked(nn.Module):
    """F = 2 · mask · x, with a mask of dropout's: u's derivative along v is 2 · mask · v."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


def test_the_tangent_is_the_velocity_of_the_network_with_the_same_dropout_mask():
    config = objective_config("improved_meanflow", guidance_kappa=0)
    objective = ImprovedMeanFlow(config, NUM_CLASSES, conditional=True)
    objective.dropout = True
    data, labels, draws = batch()
    u, du_dt = velocity_and_derivative(objective, Masked(), data, torch.zeros_like(data), labels, draws)
    dropped = (u[KNOWN:] == 0).sum().item()
    assert 0 < dropped < u[KNOWN:].numel()
    assert torch.equal(du_dt[KNOWN:], 2 * u[KNOWN:])


@pytest.mark.soak
def test_improved_meanflow_learns_the_solution():
    config = objective_config(
        "improved_meanflow", flow_matching_fraction=0.5, weight_power=0.5, time_mean=(0, 0), time_std=(1.5, 1.5)
    )
    check(ImprovedMeanFlow(config, NULL, conditional=False))
