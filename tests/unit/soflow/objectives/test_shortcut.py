"""Shortcut models: times, targets chained by hand, guidance, and data whose solution is known."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import (
    NUM_CLASSES,
    SmoothNetwork,
    count_calls,
    draw,
    given_draws,
    gradients,
    objective_config,
    random_batch,
    slope,
)
from torch import Tensor, nn

from soflow.interpolants import per_sample
from soflow.objectives.base import Draws, mean_square
from soflow.objectives.shortcut import Shortcut, shortcut_times
from tests.unit.soflow import test_exact_solution as test_gaussian
from tests.unit.soflow.test_exact_solution import NULL, ExactNetwork, check, on_trajectories


def shortcut(conditional: bool = True, **fields) -> Shortcut:
    return Shortcut(objective_config("shortcut", **fields), NUM_CLASSES, conditional)


# Times.


def test_steps_and_their_places_are_all_pairs_on_the_grid():
    fine = torch.linspace(0, 1, 481)[:-1]
    level, place = (axis.flatten() for axis in torch.meshgrid(fine, fine, indexing="ij"))
    found = set(zip(*(time.tolist() for time in shortcut_times(level, place, smallest_steps=8)), strict=True))
    assert found == {
        (1.0, 0.5, 0.0),
        (1.0, 0.75, 0.5),
        (0.5, 0.25, 0.0),
        (1.0, 0.875, 0.75),
        (0.75, 0.625, 0.5),
        (0.5, 0.375, 0.25),
        (0.25, 0.125, 0.0),
    }


@pytest.mark.parametrize("smallest_steps", [2, 128])
def test_step_sizes_are_drawn_equally_often(smallest_steps):
    batch, levels = 40_000, int(math.log2(smallest_steps))
    objective = shortcut(smallest_steps=smallest_steps, flow_matching_fraction=0.5)
    draws = draw(objective, (batch, 1, 1, 1), 0.3, torch.Generator().manual_seed(0))
    known = draws.num_flow_matching
    assert known == batch // 2
    t, l, s = (time[known:] for time in (draws.t, draws.l, draws.s))
    sizes, counts = (t - s).unique(return_counts=True)
    assert sizes.tolist() == [2.0**-level for level in range(levels - 1, -1, -1)]
    share = 1 / levels
    # Five standard deviations of a binomial count.
    assert ((counts / known - share).abs() <= 5 * math.sqrt(share * (1 - share) / known)).all()
    assert torch.equal(t - l, (t - s) / 2)
    assert torch.equal(t / (t - s), (t / (t - s)).round())
    times, counts = draws.t[:known].unique(return_counts=True)
    assert times.tolist() == [i / smallest_steps for i in range(1, smallest_steps + 1)]
    share = 1 / smallest_steps
    assert ((counts / known - share).abs() <= 5 * math.sqrt(share * (1 - share) / known)).all()


def test_settings_that_cannot_be_run():
    with pytest.raises(ValueError, match="smallest_steps = 12 must be a power of 2"):
        objective_config("shortcut", smallest_steps=12)
    with pytest.raises(ValueError, match="label_drop = 0 must be above 0 when guidance_strength = 2"):
        objective_config("shortcut", label_drop=0, guidance_strength=2)
    objective_config("shortcut", label_drop=0, guidance_strength=1)


# Loss and target against two steps chained by hand; M = 8.

TIMES = [(0.25, 0.25), (0.375, 0.375), (1.0, 1.0), (0.5, 0.5), (1.0, 0.0), (0.5, 0.25), (1.0, 0.75), (0.75, 0.5)]
"""(t, s): four samples of flow matching, a whole step of 1, three of 2/M = 1/4."""
DROPPED = [False, True, False, False, False, False, True, False]


def eight_draws(num_flow_matching: int = 4) -> Draws:
    noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, s = torch.tensor(TIMES, dtype=torch.float64).unbind(1)
    return given_draws(noise, t, (t + s) / 2, s, torch.tensor(DROPPED), num_flow_matching)


def chained_target(network: nn.Module, data: Tensor, noise: Tensor, i: int, label: int, strength: float) -> Tensor:
    """The target of sample i, one sample and one network call at a time."""
    t, s = TIMES[i]
    if t == s:
        return noise[i : i + 1] - data[i : i + 1]
    x, half, travelled = (1 - t) * data[i : i + 1] + t * noise[i : i + 1], (t - s) / 2, 0
    for time in (t, t - half):
        smallest = half == 1 / 8

        def u(label: int, time: float = time, x: Tensor = x, asked: float = 0 if smallest else half) -> Tensor:
            now = torch.tensor([time], dtype=torch.float64)
            return network(x, now, now - asked, torch.tensor([label])).detach()

        step = u(NUM_CLASSES if DROPPED[i] else label)
        if smallest and not DROPPED[i]:
            step = strength * u(label) + (1 - strength) * u(NUM_CLASSES)
        x, travelled = x - half * step, travelled + half * step
    return travelled / (t - s)


@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_loss_and_gradient_are_those_of_hand_chained_steps(strength):
    objective, network = shortcut(smallest_steps=8, guidance_strength=strength), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    draws = eight_draws()
    losses = objective.losses(network, data, labels, draws)
    assert {name: len(values) for name, values in losses.terms.items()} == {"flow_matching": 4, "self_consistency": 4}
    given = torch.where(draws.drop, NUM_CLASSES, labels)
    for i in range(8):
        target = chained_target(network, data, draws.noise, i, labels[i].item(), strength)
        t, s = (torch.tensor([time], dtype=torch.float64) for time in TIMES[i])
        x_t = (1 - t) * data[i : i + 1] + t * draws.noise[i : i + 1]
        expected = mean_square(network(x_t, t, s, given[i : i + 1]) - target)[0]
        torch.testing.assert_close(losses.loss[i], expected, rtol=1e-12, atol=0)
        found = gradients(network, losses.loss[i])
        for name, gradient in gradients(network, expected).items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-14, msg=f"{name}, sample {i}")
    assert torch.equal(torch.cat(list(losses.terms.values())), losses.loss.detach())


@pytest.mark.parametrize(("known", "strength", "expected"), [(8, 2, [8]), (4, 1, [8, 4, 4]), (4, 2, [8] + 4 * [4])])
def test_calls_of_the_network(known, strength, expected):
    objective, network = shortcut(smallest_steps=8, guidance_strength=strength), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    calls = count_calls(network)
    losses = objective.losses(network, data, labels, eight_draws(known))
    assert calls == expected
    assert losses.loss.shape == (8,)
    unconditional, calls = shortcut(conditional=False, guidance_strength=strength), count_calls(network)
    unconditional.losses(network, data, labels, eight_draws(known))
    assert calls == ([8] if known == 8 else [8, 4, 4])  # guidance needs labels


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_either_part_may_be_empty(fraction):
    objective, network = shortcut(flow_matching_fraction=fraction), SmoothNetwork(dtype=torch.float32)
    data, labels = random_batch((8, 1, 2, 2), dtype=torch.float32)
    draws = draw(objective, (8, 1, 2, 2), 0.0, torch.Generator().manual_seed(0))
    losses = objective.losses(network, data, labels, draws)
    assert [len(values) for values in losses.terms.values()] == [8 * fraction, 8 - 8 * fraction]
    assert losses.loss.isfinite().all()


def test_smallest_steps_of_the_solution_follow_the_velocity():
    objective, network = shortcut(smallest_steps=8), SmoothNetwork()
    x, labels = random_batch((3, 1, 2, 2))
    t = torch.tensor([1.0, 0.5, 0.5], dtype=torch.float64)
    s = torch.tensor([0.875, 0.45, 0.25], dtype=torch.float64)
    found = objective.solution(network, x, t, s, labels)
    straight = x - per_sample(t - s, x) * objective.velocity(network, x, t, labels)
    jump = x - per_sample(t - s, x) * network(x, t, s, labels)
    torch.testing.assert_close(found, torch.cat([straight[:2], jump[2:]]), rtol=1e-12, atol=0)
    assert (straight - jump).abs().flatten(1).amax(1).min() > 1e-4


# Gaussian data.


def exact_error(smallest_steps: int, whole: float) -> float:
    """Root of the mean squared self-consistency error of the exact network, for steps of length `whole`."""
    objective = Shortcut(objective_config("shortcut", smallest_steps=smallest_steps), NULL, conditional=False)
    network = ExactNetwork(objective.interpolant, objective.parameterization)
    t = torch.tensor([1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125], dtype=torch.float64)
    t = t.clamp(min=whole)
    data, noise = on_trajectories(objective.interpolant, t)
    draws = given_draws(noise, t, t - whole / 2, t - whole)
    losses = objective.losses(network, data, torch.full((len(t),), NULL), draws)
    return losses.terms["self_consistency"].mean().sqrt().item()


def test_the_exact_average_velocity_is_self_consistent():
    for whole in (1.0, 0.5, 0.25, 0.125):
        assert exact_error(32, whole) < 1e-13  # rounding of numbers up to 3
    # Two smallest steps follow the velocity at their beginning: Euler's method, first order in 1/M.
    steps = [16, 32, 64, 128]
    assert slope(steps, [exact_error(m, 2 / m) for m in steps]) == pytest.approx(-1, abs=0.05)


@pytest.mark.soak
def test_shortcut_learns_the_solution(monkeypatch):
    # The steps that are trained; the bound covers Euler's error over 128 steps too, below 1 % of the way.
    monkeypatch.setattr(test_gaussian, "POINTS", [(1.0, 0.0), (0.5, 0.0), (1.0, 0.5), (0.75, 0.5)])
    check(Shortcut(objective_config("shortcut", smallest_steps=128), NULL, conditional=False))
