"""α-Flow: the paper's loss as it is written, its two limits, its rounding, and data whose solution is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import (
    NUM_CLASSES,
    SmoothNetwork,
    count_calls,
    draw,
    given_draws,
    golden_dit,
    gradients,
    objective_config,
    random_batch,
    relative_error,
    slope,
    velocity_and_derivative,
)
from torch import Tensor, nn

from soflow.interpolants import per_sample
from soflow.objectives.alpha_flow import AlphaFlow
from soflow.objectives.base import Draws
from soflow.objectives.meanflow import MeanFlow
from soflow.precision import Precision
from soflow.schedules import step_ratio
from soflow.times import SMALLEST_GAP
from tests.unit.soflow.test_exact_solution import LABELS, NULL, ExactNetwork, S, T, check, on_trajectories

PLAIN = {"guidance_kappa": 0.0}
GUIDED = {"guidance_omega": 0.8, "guidance_kappa": 0.5, "guidance_interval": (0.2, 0.9)}


def alpha_flow(conditional: bool = True, dropout: bool = False, **fields) -> AlphaFlow:
    return AlphaFlow(objective_config("alpha_flow", **fields), NUM_CLASSES, conditional, dropout=dropout)


# The schedule and the draws.


@pytest.mark.parametrize(
    ("progress", "start", "end", "expected"),
    [
        (0.0, 0.0, 1.0, 1.0),  # 1 / (1 + exp(−12.5)) is within 0.005 of 1
        (0.28, 0.0, 1.0, 1.0),
        (0.3, 0.0, 1.0, 0.9933071490757153),
        (0.4, 0.0, 1.0, 0.9241418199787566),
        (0.5, 0.0, 1.0, 0.5),
        (0.6, 0.0, 1.0, 0.07585818002124355),
        (0.7, 0.0, 1.0, 0.0066928509242848554),
        (0.72, 0.0, 1.0, 0.0),
        (1.0, 0.0, 1.0, 0.0),
        (0.4, 0.5, 0.9, 1.0),
        (0.7, 0.5, 0.9, 0.5),
        (0.9, 0.5, 0.9, 0.0),
        (0.49, 0.5, 0.5, 1.0),  # one jump
        (0.5, 0.5, 0.5, 0.0),
    ],
)
def test_alpha_falls_from_one_to_zero(progress, start, end, expected):
    assert step_ratio(progress, start, end, temperature=25.0, clamp=0.005) == pytest.approx(expected, rel=1e-12)


def test_the_middle_time_carries_alpha_and_nothing_else_is_drawn_anew():
    objective, mean_flow = alpha_flow(), MeanFlow(objective_config("meanflow"), NUM_CLASSES, True)
    shape, seed = (4096, 1, 1, 1), 3
    expected = draw(mean_flow, shape, 0.5, torch.Generator().manual_seed(seed))
    known = expected.num_flow_matching
    for progress, alpha in ((0.0, 1.0), (0.4, 0.9241418), (0.6, 0.0758582), (0.9, 0.0)):
        draws = draw(objective, shape, progress, torch.Generator().manual_seed(seed))
        assert torch.equal(draws.noise, expected.noise)
        assert torch.equal(draws.drop, expected.drop)
        assert torch.equal(draws.t[:known], expected.t[:known])
        t, l, s = (time[known:] for time in (draws.t, draws.l, draws.s))
        # Times closer together than 1e-4 are moved apart, except in MeanFlow, which divides by no gap.
        torch.testing.assert_close(t, expected.t[known:], rtol=0, atol=0 if alpha == 0 else SMALLEST_GAP)
        torch.testing.assert_close(s, expected.s[known:], rtol=0, atol=0 if alpha == 0 else 1.1 * SMALLEST_GAP)
        if alpha in (0, 1):
            assert torch.equal(l, t if alpha == 0 else s)
            continue
        ratio = ((t - l) / (t - s)).double()
        # Times are rounded to 6e-8, here over gaps of at least 0.01; shorter gaps t − l are stretched to 1e-4.
        wide = t - s > 0.01
        assert wide.double().mean() > 0.9
        assert (ratio[wide] - alpha).abs().max() < 1e-5
        assert (ratio > alpha - 1e-3).all()
        assert (t - l).min() > 0.99 * SMALLEST_GAP


def test_settings_that_cannot_be_run():
    with pytest.raises(ValueError, match=r"anneal_start = 0.8 must not exceed anneal_end = 0.5"):
        objective_config("alpha_flow", anneal_start=0.8, anneal_end=0.5)
    with pytest.raises(ValueError, match="label_drop = 0 must be above 0"):  # MeanFlow's rules hold as well
        objective_config("alpha_flow", label_drop=0)


# Loss and gradient against the paper's equations.


def draws_at(alpha: float, num_flow_matching: int = 4) -> Draws:
    """Eight samples with l = α s + (1 − α) t, two of them dropped in each part, on both sides of GUIDED's interval."""
    noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0.95, 0.3, 0.81, 0.6, 0.95, 0.5, 0.83, 0.7], dtype=torch.float64)
    s = torch.tensor([0.5, 0.2, 0.1, 0.0, 0.3, 0.0, 0.8, 0.05], dtype=torch.float64)
    s = torch.where(torch.arange(8) < num_flow_matching, t, s)
    l = {0: t, 1: s}.get(alpha, alpha * s + (1 - alpha) * t)
    drop = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0]).bool()
    return dataclasses.replace(given_draws(noise, t, l, s, drop, num_flow_matching), gap_ratio=alpha)


def paper_loss(config, network: nn.Module, data: Tensor, label: int, draws: Draws, i: int, alpha: float) -> Tensor:
    """weight · α⁻¹ ‖u(z_t, r, t) − (α ṽ + (1 − α) u⁻(z_s, r, s))‖² of sample i, in the paper's letters."""
    x, e = data[i : i + 1], draws.noise[i : i + 1]
    t, r = draws.t[i], draws.s[i]
    y = torch.tensor([NUM_CLASSES if draws.drop[i] else label])

    def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return network(z, t.view(1), r.view(1), y)

    with torch.no_grad():
        z_t, v = (1 - t) * x + t * e, e - x
        begin, end = config.guidance_interval
        if begin <= t <= end and not draws.drop[i]:
            omega, kappa = config.guidance_omega, config.guidance_kappa
            null = torch.tensor([NUM_CLASSES])
            v = omega * v + kappa * u(z_t, t, t, y) + (1 - omega - kappa) * u(z_t, t, t, null)
        s = alpha * r + (1 - alpha) * t
        z_s = z_t - (t - s) * v
        target = alpha * v + (1 - alpha) * u(z_s, r, s, y)
    squared = (u(z_t, r, t, y) - target).square().sum()
    # The weight belongs to the difference that stays finite as α falls to 0.
    weight = (squared.detach() / alpha**2 + config.weight_eps) ** -config.weight_power
    return weight * squared / alpha


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("guidance", [PLAIN, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.01])
def test_gradient_is_that_of_the_papers_loss(alpha, guidance, power):
    objective, network = alpha_flow(weight_power=power, **guidance), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    draws = draws_at(alpha)
    losses = objective.losses(network, data, labels, draws)
    errors = torch.cat([losses.terms["flow_matching"], losses.terms["average_velocity"]])
    for i in range(8):
        share = alpha if i >= 4 else 1.0  # at r = t the paper's loss is flow matching, the same for every α
        expected = paper_loss(objective.config, network, data, labels[i].item(), draws, i, share)
        # δ is a difference of numbers near 1 and the loss a square over α: 1e-16 becomes 1e-12 at α = 0.01.
        torch.testing.assert_close(losses.loss[i], expected / share, rtol=1e-10, atol=0)
        weight = (errors[i] * 4 + objective.config.weight_eps) ** -power
        torch.testing.assert_close(losses.loss[i].detach(), weight * errors[i] * 4, rtol=1e-12, atol=0)
        found = gradients(network, losses.loss[i])
        for name, gradient in gradients(network, expected).items():
            assert relative_error(found[name], gradient) < 1e-10, (i, name)


def test_at_alpha_one_the_target_is_the_velocity_and_costs_no_call():
    objective, network = alpha_flow(**PLAIN, weight_power=0.0), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    draws = draws_at(1.0)
    calls = count_calls(network)
    losses = objective.losses(network, data, labels, draws)
    assert calls == [8]
    x_t = (1 - per_sample(draws.t, data)) * data + per_sample(draws.t, data) * draws.noise
    u = network(x_t, draws.t, draws.s, objective.drop_labels(labels, draws.drop))
    expected = (u - (draws.noise - data)).square().flatten(1).sum(1)
    torch.testing.assert_close(losses.loss, expected, rtol=1e-12, atol=0)


def test_calls_of_the_network_in_between():
    objective, network = alpha_flow(**PLAIN), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    for draws, expected in ((draws_at(0.1), [8, 4]), (draws_at(0.0), [8, 4]), (draws_at(0.1, 0), [8, 8])):
        calls = count_calls(network)
        objective.losses(network, data, labels, draws)
        assert calls == expected
    calls = count_calls(network)  # a worker without any sample of the second part
    objective.losses(network, data[:4], labels[:4], draws_at(0.1).share(0, 2))
    objective.losses(network, data[:1], labels[:1], draws_at(0.1, 4).share(0, 8))
    assert calls == [4, 2, 1]


@pytest.mark.parametrize("guidance", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_gradient_goes_over_into_meanflows(guidance):
    network, (data, labels) = SmoothNetwork(), random_batch((8, 1, 2, 2))
    objective = alpha_flow(**guidance)
    mean_flow = MeanFlow(objective_config("meanflow", **guidance), NUM_CLASSES, True)
    exact = gradients(network, mean_flow.losses(network, data, labels, draws_at(0.0)).loss[4:].sum())
    limit = gradients(network, objective.losses(network, data, labels, draws_at(0.0)).loss[4:].sum())
    alphas = [0.04, 0.02, 0.01, 0.005]
    found = [gradients(network, objective.losses(network, data, labels, draws_at(a)).loss[4:].sum()) for a in alphas]
    for name, gradient in exact.items():
        assert torch.equal(limit[name], gradient)
        # A one-sided difference over t − l = α (t − s), and a second term α du/dt: first order in α.
        errors = [relative_error(other[name], gradient) for other in found]
        assert slope(alphas, errors) == pytest.approx(1, abs=0.1), name


# Rounding and precision.


def test_rounding_is_amplified_by_one_over_alpha_and_no_more():
    alpha, objective = 0.005, alpha_flow(flow_matching_fraction=0.0, **PLAIN)
    drawn = draw(objective, (8, 4, 8, 8), 0.5, torch.Generator().manual_seed(0))
    t, l, s = drawn.t, drawn.t + (drawn.s - drawn.t) * alpha, drawn.s
    data, labels = random_batch((8, 4, 8, 8), dtype=torch.float32)
    x_t, v_t = objective.interpolant.x_t(data, drawn.noise, t), drawn.noise - data

    def computed(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(t − s) times what stands for du/dt, and both outputs, from the same float32 numbers."""
        x, v, *times = (value.to(dtype) for value in (x_t, v_t, t, l, s))
        network = golden_dit(dtype)
        draws = dataclasses.replace(given_draws(x, *times), gap_ratio=alpha)
        _, found = velocity_and_derivative(objective, network, x, v, labels, draws)
        x_l = (x_t - per_sample(t - l, x_t) * v_t).to(dtype)
        outputs = network(x, times[0], times[2], labels), network(x_l, times[1], times[2], labels)
        return per_sample(times[0] - times[2], x) * found, *outputs

    exact, *exact_outputs = computed(torch.float64)
    rounded, *outputs = computed(torch.float32)
    noise = max((output - other).abs().max().item() for output, other in zip(outputs, exact_outputs, strict=True))
    error = (rounded - exact).abs().max().item()
    # Two outputs are off by `noise` each; the second one's input is rounded too and moves it by about as much.
    assert error < 4 * noise / alpha
    assert error > 10 * noise  # why these calls have a precision of their own


def test_only_the_two_calls_of_the_difference_take_the_quotients_precision():
    network, (data, labels) = golden_dit(torch.float32), random_batch((8, 4, 8, 8), dtype=torch.float32)
    config = objective_config("alpha_flow", **PLAIN)
    full, low = Precision("fp32"), Precision("bf16")
    draws = draw(AlphaFlow(config, NUM_CLASSES, True), data.shape, 0.6, torch.Generator().manual_seed(0))
    known = draws.num_flow_matching

    def errors(*precisions: Precision) -> dict[str, Tensor]:
        return AlphaFlow(config, NUM_CLASSES, True, *precisions).losses(network, data, labels, draws).terms

    reference, mixed, coarse = errors(full, full), errors(low, full), errors(low, low)
    assert 0 < known < 8
    # Other batch sizes may round float32 sums in another order, which 1 / α = 13 amplifies.
    torch.testing.assert_close(mixed["average_velocity"], reference["average_velocity"], rtol=1e-3, atol=0)
    assert not torch.allclose(mixed["flow_matching"], reference["flow_matching"], rtol=1e-5, atol=0)
    assert not torch.allclose(coarse["average_velocity"], reference["average_velocity"], rtol=1e-2, atol=0)


class MaskedNetwork(nn.Module):
    """F = dropout(1) · x: two calls with different masks differ however near they are."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return self.scale * self.dropout(torch.ones_like(x)) * x


@pytest.mark.parametrize("known", [0, 4])
def test_both_calls_of_the_difference_share_their_dropout_masks(known):
    objective, network = alpha_flow(dropout=True, **PLAIN), MaskedNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    draws = draws_at(1e-4, known)
    x_t, v_t = objective.interpolant.x_t(data, draws.noise, draws.t), draws.noise - data
    u, found = velocity_and_derivative(objective, network, x_t, v_t, labels, draws)
    # u = mask · x has the derivative mask · v along v, at any distance.
    mask = (u / x_t).detach()
    assert set(mask[known:].flatten().round(decimals=9).tolist()) == {0.0, 2.0}
    torch.testing.assert_close(found[known:], (1 - 1e-4) * (mask * v_t)[known:], rtol=1e-9, atol=1e-9)
    assert torch.equal(found[:known], torch.zeros_like(found[:known]))


# Gaussian data.


def test_error_of_the_exact_average_velocity_vanishes_with_alpha():
    objective = AlphaFlow(objective_config("alpha_flow"), NULL, conditional=False)
    network = ExactNetwork(objective.interpolant, objective.parameterization)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    network.register_forward_hook(lambda module, inputs, output: scale * output)
    data, noise = on_trajectories(objective.interpolant, T)
    alphas, errors = [0.04, 0.02, 0.01, 0.005, 0.0025], []
    for alpha in alphas:
        draws = dataclasses.replace(given_draws(noise, T, alpha * S + (1 - alpha) * T, S), gap_ratio=alpha)
        errors.append(objective.losses(network, data, LABELS, draws).terms["average_velocity"].mean().sqrt().item())
    # One Euler step of length t − l along a curved trajectory: the error over the gap is first order in it.
    assert slope(alphas, errors) == pytest.approx(1, abs=0.05)
    losses = objective.losses(network, data, LABELS, given_draws(noise, T, T, S))
    assert losses.terms["average_velocity"].max().sqrt() < 1e-13  # rounding of numbers up to 3


@pytest.mark.soak
@pytest.mark.parametrize(("temperature", "clamp"), [(25.0, 0.005), (13.0, 0.001)], ids=["paper", "discrete"])
def test_alpha_flow_learns_the_solution(temperature, clamp):
    """With the paper's schedule, MeanFlow at last, and with one that ends at α = 0.0015, without any derivative."""
    config = objective_config(
        "alpha_flow",
        flow_matching_fraction=0.5,
        weight_power=0.5,
        time_mean=(0.0, 0.0),
        time_std=(1.5, 1.5),
        anneal_temperature=temperature,
        alpha_clamp=clamp,
    )
    check(AlphaFlow(config, NULL, conditional=False))
