"""Samplers: golden samples, exact composition, measured orders of convergence, what each asks of the objective."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import (
    NUM_CLASSES,
    SmoothNetwork,
    count_calls,
    golden,
    golden_dit,
    objective_config,
    relative_error,
    slope,
    tiny_objective,
)
from helpers import tiny_config as config_of
from torch import Tensor

from soflow.evaluation.generated import sampler_for
from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import normals
from soflow.objectives.registry import OBJECTIVES
from soflow.objectives.soflow import SoFlow
from soflow.sampling import SamplingOptions, compose, even_times, heun, renoise, sample
from soflow.training.build import build_objective

STORED = golden("sampling")


@pytest.mark.parametrize("nfe", [1, 2, 4])
@pytest.mark.parametrize("key", ["x", "x_nolabel"])
def test_samples_equal_the_published_ones(key, nfe):
    objective = SoFlow(objective_config("soflow"), NUM_CLASSES, conditional=True)
    labels = STORED["labels"] if key == "x" else torch.full((3,), NUM_CLASSES)
    network = golden_dit()
    calls = count_calls(network)
    found = renoise(
        lambda x, t, s: objective.solution(network, x, t, s, labels),
        objective.interpolant,
        STORED["x_init"],
        even_times(nfe),
        iter(STORED.get(f"nfe{nfe}.renoise", ())),
    )
    assert calls == [3] * nfe
    # Two implementations in float64, the output of one step being the input of the next.
    assert relative_error(found, STORED[f"nfe{nfe}.{key}"]) < 1e-9


# A linear equation dx/dt = A(t) x + c with its solution known: x(s) = e^{k(s − t)} (x − m(t)) + m(s), m(t) = sin 2t.

K = -1.3


def exact_solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    return per_sample(torch.exp(K * (s - t)), x) * (x - per_sample(torch.sin(2 * t), x)) + per_sample(
        torch.sin(2 * s), x
    )


def exact_velocity(x: Tensor, t: Tensor) -> Tensor:
    return K * (x - per_sample(torch.sin(2 * t), x)) + per_sample(2 * torch.cos(2 * t), x)


START = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ONE, ZERO = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
END = exact_solution(START, ONE, ZERO)


@pytest.mark.parametrize("nfe", [1, 2, 3, 7, 50])
def test_composing_an_exact_solution_is_exact(nfe):
    found = compose(exact_solution, START, even_times(nfe))
    torch.testing.assert_close(found, END, rtol=1e-13, atol=1e-13)  # rounding of up to 50 steps


def steps_of(sampler, nfe: int) -> list[tuple[float, float]]:
    """The (t, s) pairs that a sampler asks the solution for."""
    asked = []

    def solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        assert t.shape == s.shape == (len(x),)
        asked.append((t[0].item(), s[0].item()))
        return x

    sampler(solution, START, nfe)
    return asked


def test_the_times_that_samplers_visit():
    asked = steps_of(lambda solution, noise, nfe: compose(solution, noise, even_times(nfe)), 4)
    assert asked == [
        (1.0, 0.75),
        (0.75, 0.5),
        (0.5, 0.25),
        (0.25, 0.0),
    ]
    fresh = iter(torch.zeros(4, *START.shape, dtype=torch.float64))
    noising = INTERPOLANTS["linear"]
    asked = steps_of(lambda solution, noise, nfe: renoise(solution, noising, noise, even_times(nfe), fresh), 4)
    assert asked == [(1.0, 0.0), (0.75, 0.0), (0.5, 0.0), (0.25, 0.0)]


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_renoising_goes_back_with_the_interpolant(name):
    interpolant = INTERPOLANTS[name]
    fresh = torch.randn(2, *START.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = []

    def solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        seen.append(x)
        return 0.5 * x

    found = renoise(solution, interpolant, START, even_times(3), iter(fresh))
    expected = START
    for i, t in enumerate((2 / 3, 1 / 3)):
        t = torch.full((5,), t, dtype=torch.float64)
        expected = interpolant.x_t(0.5 * expected, fresh[i], t)
        torch.testing.assert_close(seen[i + 1], expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(found, 0.5 * seen[2])


def euler(velocity, noise: Tensor, nfe: int) -> Tensor:
    """What composing means for an objective whose solution is one Euler step."""
    return compose(lambda x, t, s: x + per_sample(s - t, x) * velocity(x, t), noise, even_times(nfe))


@pytest.mark.parametrize(("method", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence(method, order):
    nfes = [16, 32, 64, 128, 256]
    errors = [(method(exact_velocity, START, nfe) - END).abs().max().item() for nfe in nfes]
    # Higher-order terms still count a few per cent at 16 evaluations.
    assert slope(nfes, errors) == pytest.approx(-order, abs=0.1)


def test_heun_takes_two_evaluations_a_step():
    times = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(t[0].item())
        return exact_velocity(x, t)

    heun(velocity, START, 4)
    assert times == [1.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("nfe", [1, 3, 51])
def test_heun_needs_an_even_number(nfe):
    with pytest.raises(ValueError, match=f"nfe = {nfe}: must be even for the heun sampler"):
        heun(exact_velocity, START, nfe)


# Through an objective.


def draw(objective, network, nfe: int, sampler: str, seed: int = 0, labels: Tensor | None = None) -> Tensor:
    labels = torch.arange(5) if labels is None else labels
    fresh = normals(tuple(START.shape), torch.Generator().manual_seed(seed))
    return sample(objective, network, START, labels, nfe, sampler, fresh)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("sampler", "nfe"), [("renoise", 3), ("compose", 3), ("heun", 4)])
def test_every_objective_samples_with_exactly_nfe_evaluations(name, sampler, nfe):
    objective, network = build_objective(config_of(name), NUM_CLASSES), SmoothNetwork()
    calls = count_calls(network)
    found = draw(objective, network, nfe, sampler)
    assert calls == [5] * nfe
    assert found.shape == START.shape
    assert not found.requires_grad
    assert found.isfinite().all()
    assert torch.equal(found, draw(objective, network, nfe, sampler))
    other_seed = draw(objective, network, nfe, sampler, seed=1)
    assert torch.equal(found, other_seed) == (sampler != "renoise")  # only that one draws fresh noise
    assert not torch.equal(found, draw(objective, network, nfe, sampler, labels=torch.full((5,), NUM_CLASSES)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_evaluation_is_the_same_jump_for_every_sampler(name):
    objective, network = build_objective(config_of(name), NUM_CLASSES), SmoothNetwork()
    jump = objective.solution(network, START, ONE, ZERO, torch.arange(5))
    for sampler in ("compose", "renoise"):
        torch.testing.assert_close(draw(objective, network, 1, sampler), jump, rtol=0, atol=0)
    for sampler in ("compose", "renoise", "heun"):
        assert sampler_for(config_of(name, evaluation={"sampler": sampler, "nfe": (1,)}), objective, 1) == "compose"
    assert sampler_for(config_of(name), objective, 2) == objective.default_sampler


def test_flow_matching_composes_to_euler_and_converges():
    objective, network = build_objective(config_of("flow_matching"), NUM_CLASSES), SmoothNetwork()
    labels = torch.arange(5)
    reference = draw(objective, network, 2000, "heun")
    for method, order in (("compose", 1), ("heun", 2)):
        nfes = [16, 32, 64, 128]
        errors = [(draw(objective, network, nfe, method) - reference).abs().max().item() for nfe in nfes]
        assert slope(nfes, errors) == pytest.approx(-order, abs=0.15)
    with torch.no_grad():
        step = euler(lambda x, t: objective.velocity(network, x, t, labels), START, 7)
    torch.testing.assert_close(draw(objective, network, 7, "compose"), step, rtol=1e-14, atol=1e-14)


def test_an_unknown_sampler_is_refused():
    objective = build_objective(config_of("soflow"), NUM_CLASSES)
    with pytest.raises(ValueError, match="sampler = ddim: must be compose, heun or renoise"):
        draw(objective, SmoothNetwork(), 2, "ddim")


def test_the_closed_form_solves_its_equation():
    """Guards the tests above."""
    t, h = torch.full((5,), 0.4, dtype=torch.float64), 1e-5
    slope_at_t = (exact_solution(START, t, t + h) - exact_solution(START, t, t - h)) / (2 * h)
    # A central difference: h² times third derivatives below 10.
    torch.testing.assert_close(slope_at_t, exact_velocity(START, t), rtol=0, atol=1e-8)
    assert math.isclose(exact_solution(START, t, t)[0, 0, 0, 0].item(), START[0, 0, 0, 0].item(), rel_tol=1e-15)


# Choices at inference.


def drawn(options: SamplingOptions, nfe: int, sampler: str, network=None) -> Tensor:
    objective = tiny_objective("soflow")
    fresh = normals(tuple(START.shape), torch.Generator().manual_seed(0))
    return sample(objective, network or SmoothNetwork(), START, torch.arange(5), nfe, sampler, fresh, options)


@pytest.mark.parametrize("sampler", ["renoise", "compose"])
def test_equal_times_are_the_default(sampler):
    equal = drawn(SamplingOptions(), 4, sampler)
    assert torch.equal(drawn(SamplingOptions(times=(0.75, 0.5, 0.25)), 4, sampler), equal)
    assert not torch.equal(drawn(SamplingOptions(times=(0.9, 0.5, 0.2)), 4, sampler), equal)
    assert torch.equal(drawn(SamplingOptions(times=(0.3,)), 4, sampler), equal)  # times of another number of steps


def test_given_times_are_visited():
    network, times = SmoothNetwork(), []
    network.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1][0].item()))
    drawn(SamplingOptions(times=(0.8, 0.3)), 3, "renoise", network)
    assert times == pytest.approx([1.0, 0.8, 0.3], abs=1e-12)


def test_temperature_scales_all_noise():
    objective, network = tiny_objective("soflow"), SmoothNetwork()
    fresh = [torch.randn(START.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)]
    labels = torch.arange(5)
    scaled = sample(objective, network, 0.7 * START, labels, 2, "renoise", iter([0.7 * fresh[0]]))
    found = sample(objective, network, START, labels, 2, "renoise", iter(fresh), SamplingOptions(temperature=0.7))
    assert torch.equal(found, scaled)


@pytest.mark.parametrize(("interval", "guided"), [((0.0, 1.0), [True, True]), ((0.6, 1.0), [True, False])])
def test_guidance_applies_in_its_interval_and_costs_an_evaluation(interval, guided):
    network = SmoothNetwork()
    calls = count_calls(network)
    options = SamplingOptions(guidance=2.0, guidance_interval=interval)
    found = drawn(options, 2, "compose", network)
    assert calls == [10 if inside else 5 for inside in guided]

    objective, x, labels = tiny_objective("soflow"), START, torch.arange(5)
    for (t, s), inside in zip(((1.0, 0.5), (0.5, 0.0)), guided, strict=True):
        t, s = torch.full((5,), t, dtype=torch.float64), torch.full((5,), s, dtype=torch.float64)
        of_label = objective.solution(network, x, t, s, labels)
        of_null = objective.solution(network, x, t, s, torch.full((5,), objective.num_classes))
        x = of_null + 2 * (of_label - of_null) if inside else of_label
    torch.testing.assert_close(found, x.detach(), rtol=1e-12, atol=1e-12)
