"""Diagnostics: exact maps measure as exact, wrong ones by how wrong they are, everything the same on repetition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import NUM_CLASSES, SmoothNetwork, count_calls, golden_dit, objective_config, random_batch, tiny_config
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from soflow.diagnostics import (
    base,
    diagnose,
    fid_by_nfe,
    flow_distance,
    inference_guidance,
    ode_violation,
    semigroup_error,
    target_variance,
)
from soflow.diagnostics.base import PAIRS as TIME_PAIRS
from soflow.diagnostics.base import Probe, Subject, probes
from soflow.diagnostics.registry import DIAGNOSTICS
from soflow.guidance import GuidedNetwork
from soflow.interpolants import per_sample
from soflow.objectives.base import Objective, normals
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.meanflow import MeanFlow
from soflow.objectives.soflow import SoFlow
from soflow.plugins import load
from soflow.sampling import sample
from soflow.training.build import build_objective
from tests.unit.soflow.test_exact_solution import (
    MU,
    NULL,
    PAIRS,
    SHAPE,
    SIGMA,
    ExactNetwork,
    exact_solution,
    exact_velocity,
    variance,
)

MAPS = ("ode_violation", "semigroup_error", "flow_distance")


def no_fid(nfe: int, sampler: str) -> float:
    raise AssertionError("only fid_by_nfe asks for FID")


def subject_of(objective: Objective, network: nn.Module, data: Tensor, labels: Tensor, **fields: Any) -> Subject:
    return Subject(objective, network, data, labels, **{"seed": 0, "fid": no_fid} | fields)


def gaussian_subject(objective: Objective, samples: int = 600, **fields: Any) -> Subject:
    """The exact solution of Gaussian data in the objective's own interpolant and parameterization."""
    data = MU + SIGMA * torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = ExactNetwork(objective.interpolant, objective.parameterization)
    return subject_of(objective, network, data, torch.full((samples,), NULL), **fields)


def unguided(kind: type[Objective], name: str, **fields: Any) -> Objective:
    return kind(objective_config(name, **fields), NULL, conditional=False)


def whole(subject: Subject, name: str) -> Probe:
    """All of a diagnostic's samples in one piece."""
    parts = probes(subject, name)
    return Probe(*(torch.cat([getattr(part, field) for part in parts]) for field in ("data", "noise", "labels")))


def rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


# The exact solution.


def exact_objectives() -> list[Objective]:
    pairs = [{"interpolant": interpolant, "parameterization": name} for interpolant, name in PAIRS]
    return [*(unguided(SoFlow, "soflow", **pair) for pair in pairs), unguided(MeanFlow, "meanflow")]


@pytest.mark.parametrize("objective", exact_objectives())
def test_the_exact_solution_violates_nothing(objective):
    subject = gaussian_subject(objective)
    for module in (ode_violation, semigroup_error):
        figures = module.measure(subject)
        assert set(figures) == {"mean", *TIME_PAIRS}
        # Rounding 1e-16 of numbers up to 10 that went through a division by b, which is at least 0.25.
        assert max(figures.values()) < 1e-13, module.__name__
    figures = flow_distance.measure(subject)
    # What remains is the reference's own error, whose estimate the next order spoils by about a step, 1/32.
    assert figures["rms"] == pytest.approx(figures["reference_error"], rel=0.1)
    # Heun's error is below h²/6 times third derivatives up to 50, for h = 1/64.
    assert figures["rms"] < 50 / 6 / 64**2


def test_a_map_that_goes_one_percent_too_far():
    """f = x + 1.01 Δ, Δ being the exact change, with the exact velocity v."""
    subject = gaussian_subject(unguided(SoFlow, "soflow"))
    linear = subject.objective.interpolant
    subject.network.register_forward_hook(
        lambda module, inputs, output: output + 0.01 * output * per_sample(inputs[1] != inputs[2], output)
    )
    noise = whole(subject, "flow_distance").noise
    figures = flow_distance.measure(subject)
    expected = rms(0.01 * (MU + SIGMA * noise - noise))
    assert figures["rms"] == pytest.approx(expected, abs=1.1 * figures["reference_error"])
    assert figures["reference_error"] < 0.02 * expected

    violation, error = ode_violation.measure(subject), semigroup_error.measure(subject)
    for key, pair in TIME_PAIRS.items():
        seen = whole(subject, "ode_violation")
        t, s = (seen.times(value) for value in pair)
        x = linear.x_t(seen.data, seen.noise, t)
        # Along a trajectory x + Δ is constant, so d(x + 1.01 Δ)/dt = −0.01 v.
        assert violation[key] == pytest.approx(rms(0.01 * exact_velocity(linear, x, t)), rel=1e-10), key
        seen, parts = whole(subject, "semigroup_error"), []
        x = linear.x_t(seen.data, seen.noise, t)
        for l in (0.75 * t + 0.25 * s, (t + s) / 2):
            # The first jump's excess 0.01 Δ is stretched by the map from l to s and then taken 1 % further.
            stretch = (variance(linear, s) / variance(linear, l)).sqrt() - 1
            parts.append(1.01 * 0.01 * per_sample(stretch, x) * (exact_solution(linear, x, t, l) - x))
        assert error[key] == pytest.approx(rms(torch.stack(parts)), rel=1e-10), key


# A wrong map: flow matching's Euler step f = x + (s − t) v(x, t). Along its own trajectories
# df/dt = v − v + (s − t) dv/dt, and two steps differ from one by (s − l) (v(y, l) − v(x, t)), y = x + (l − t) v(x, t).


def curvature(t: float) -> float:
    """(√V)'' for the standard deviation √V = sqrt((1 − t)² σ² + t²) of x_t (linear interpolant)."""
    v, dv, ddv = (1 - t) ** 2 * SIGMA**2 + t**2, 2 * t - 2 * (1 - t) * SIGMA**2, 2 + 2 * SIGMA**2
    return ddv / (2 * math.sqrt(v)) - dv**2 / (4 * v**1.5)


def test_the_euler_step_for_gaussian_data():
    subject = gaussian_subject(unguided(FlowMatching, "flow_matching"))
    seen = whole(subject, "ode_violation")
    figures = ode_violation.measure(subject)
    for key, (t, s) in TIME_PAIRS.items():
        # x − (1 − t) μ = √V(t) z with z fixed along a trajectory, so dv/dt = (√V)'' z.
        x = (1 - t) * seen.data + t * seen.noise
        z = (x - (1 - t) * MU) / math.sqrt((1 - t) ** 2 * SIGMA**2 + t**2)
        assert figures[key] == pytest.approx((t - s) * abs(curvature(t)) * rms(z), rel=1e-12), key
    assert figures["mean"] == pytest.approx(sum(figures[key] for key in TIME_PAIRS) / 10, rel=1e-15)

    # At t = 1 v = x − μ: one step lands on the mean, the flow on μ + σ x.
    noise = whole(subject, "flow_distance").noise
    figures = flow_distance.measure(subject)
    assert figures["rms"] == pytest.approx(SIGMA * rms(noise), abs=1.1 * figures["reference_error"])
    expected = SIGMA * rms(noise) / rms(MU + SIGMA * noise)
    assert figures["relative"] == pytest.approx(expected, rel=3 * figures["reference_error"])


class Square(nn.Module):
    """v(x, t) = x²."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        return x**2


def test_the_euler_step_of_a_nonlinear_field():
    data, labels = random_batch((300, 1, 2, 2))
    subject = subject_of(unguided(FlowMatching, "flow_matching"), Square(), data, labels)
    violation, error = ode_violation.measure(subject), semigroup_error.measure(subject)
    for key, (t, s) in TIME_PAIRS.items():
        seen = whole(subject, "ode_violation")
        x = (1 - t) * seen.data + t * seen.noise
        assert violation[key] == pytest.approx(rms((t - s) * 2 * x**3), rel=1e-12), key
        seen = whole(subject, "semigroup_error")
        x = (1 - t) * seen.data + t * seen.noise
        parts = []
        for l in (t - (t - s) / 4, t - (t - s) / 2):
            y = x + (l - t) * x**2
            parts.append((s - l) * (y**2 - x**2))
        assert error[key] == pytest.approx(rms(torch.stack(parts)), rel=1e-12), key


def test_the_reference_flow_against_another_solver():
    config = objective_config("soflow", guidance_strength=1)
    objective, network = SoFlow(config, NUM_CLASSES, conditional=True), SmoothNetwork()
    data, labels = random_batch((12, 1, 2, 2))
    subject = subject_of(objective, network, data, labels)
    (probe,) = probes(subject, "flow_distance")

    @torch.no_grad()
    def slope(t: float, x) -> Any:
        x = torch.from_numpy(x).view_as(probe.noise)
        return objective.velocity(network, x, probe.times(t), probe.labels).flatten().numpy()

    solved = solve_ivp(slope, (1, 0), probe.noise.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    exact = torch.from_numpy(solved.y[:, -1]).view_as(probe.noise)
    figures = flow_distance.measure(subject)
    with torch.no_grad():
        fine = flow_distance.flow(subject, probe, flow_distance.REFERENCE_NFE)
        jump = objective.solution(network, probe.noise, probe.times(1), probe.times(0), probe.labels)
    # The estimate of the second-order error is right up to the next order, some steps of 1/64.
    assert figures["reference_error"] == pytest.approx(rms(fine - exact), rel=0.1)
    assert figures["reference_error"] > 1e-9  # far above the other solver's
    assert figures["rms"] == pytest.approx(rms(jump - exact), abs=1.1 * figures["reference_error"])
    assert figures["relative"] == pytest.approx(rms(jump - exact) / rms(exact), rel=1e-3)


@pytest.mark.parametrize("name", ["soflow", "meanflow", "flow_matching"])
def test_ode_violation_of_a_transformer_is_its_difference_quotient(name):
    objective, network = build_objective(tiny_config(name), NUM_CLASSES), golden_dit()
    data, labels = random_batch((4, 4, 8, 8))
    subject = subject_of(objective, network, data, labels)
    figures = ode_violation.measure(subject)
    (probe,) = probes(subject, "ode_violation")
    t, s, h = probe.times(0.5), probe.times(0.25), 1e-4
    x = objective.interpolant.x_t(probe.data, probe.noise, t)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        v = objective.velocity(network, x, t, probe.labels)
        ahead, behind = (objective.solution(network, x + step * v, t + step, s, probe.labels) for step in (h, -h))
    # A central difference: h² times third derivatives, with rounding 1e-16 / h.
    assert figures["t0.50_s0.25"] == pytest.approx(rms((ahead - behind) / (2 * h)), rel=1e-5)
    assert figures["t0.50_s0.25"] > 1e-2


# Variance of the targets.


class ByLabel(nn.Module):
    """F is one number for the null label and another for all others, wherever and whenever."""

    CLASS, NULL = 0.25, -0.5

    def forward(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor) -> Tensor:
        value = torch.where(labels == NUM_CLASSES, self.NULL, self.CLASS).to(x.dtype)
        return per_sample(value, x).expand_as(x)


def noise_only(objective: Objective, samples: int = 600) -> Subject:
    """Data of zeros, so that with the linear interpolant v_t is the noise."""
    data = torch.zeros(samples, 1, 2, 2, dtype=torch.float64)
    return subject_of(objective, ByLabel(), data, torch.arange(samples) % NUM_CLASSES)


@pytest.mark.parametrize(("kind", "name"), [(FlowMatching, "flow_matching"), (SoFlow, "soflow")])
def test_target_variance_by_hand(kind, name):
    config = objective_config(name, guidance_strength=2.5, velocity_mix=0.25, guidance_decay_time=1)
    subject = noise_only(kind(config, NUM_CLASSES, conditional=True))
    v_t = whole(subject, "target_variance").noise
    figures = target_variance.measure(subject)
    v_g = v_t + 1.5 * (v_t - -0.5)
    v_mix = 0.25 * v_g + 0.75 * 0.25
    expected = {target: rms(value - 0.25) ** 2 for target, value in (("v_t", v_t), ("v_g", v_g), ("v_mix", v_mix))}
    for target, value in expected.items():
        assert figures[target] == pytest.approx(value, rel=1e-12)
        if target != "v_t":
            assert figures[f"{target}_ratio"] == pytest.approx(value / expected["v_t"], rel=1e-12)
    assert len(figures) == 5
    # v_mix − v_θ = m (v_g − v_θ): mixing scales the deviation, whatever the network.
    assert figures["v_mix"] == pytest.approx(0.25**2 * figures["v_g"], rel=1e-12)


def test_target_variance_by_hand_for_meanflow():
    config = objective_config("meanflow", guidance_omega=1.5, guidance_kappa=0.25)
    subject = noise_only(MeanFlow(config, NUM_CLASSES, conditional=True))
    v_t = whole(subject, "target_variance").noise
    figures = target_variance.measure(subject)
    v_g = 1.5 * v_t + 0.25 * 0.25 + (1 - 1.5 - 0.25) * -0.5
    assert set(figures) == {"v_t", "v_g", "v_g_ratio"}
    assert figures["v_g"] == pytest.approx(rms(v_g - 0.25) ** 2, rel=1e-12)
    assert figures["v_g_ratio"] == pytest.approx(rms(v_g - 0.25) ** 2 / rms(v_t - 0.25) ** 2, rel=1e-12)


def test_guidance_that_has_faded_adds_no_variance():
    """Times above T take part with c(t): with T = 0 the scale c is nearly 0 everywhere, v_g nearly v_t."""
    figures = {}
    for decay_time in (0.0, 0.5, 1.0):
        config = objective_config("flow_matching", guidance_strength=2.5, guidance_decay_time=decay_time)
        subject = noise_only(FlowMatching(config, NUM_CLASSES, conditional=True))
        figures[decay_time] = target_variance.measure(subject)["v_g_ratio"]
    assert 1 < figures[0.0] < figures[0.5] < figures[1.0]


@pytest.mark.parametrize(
    "objective",
    [unguided(FlowMatching, "flow_matching"), unguided(SoFlow, "soflow"), unguided(MeanFlow, "meanflow")],
)
def test_without_guidance_all_targets_are_the_conditional_velocity(objective):
    subject = gaussian_subject(objective)
    figures = target_variance.measure(subject)
    for name, value in figures.items():
        assert value == (1.0 if name.endswith("_ratio") else figures["v_t"])
    # Given x_t, v_t has variance (α β' − α' β)² σ² / V = σ² / V. Each squared deviation is that times a chi-square
    # of one degree, of variance 2; the mean over 2,048 elements stays within five of its standard deviations.
    t = torch.cat([draws.t for _, draws in target_variance.probes_with_draws(subject)])
    expected = SIGMA**2 / ((1 - t) ** 2 * SIGMA**2 + t**2)
    deviation = (2 * expected.square().sum() * 4).sqrt() / (4 * len(t))
    assert abs(figures["v_t"] - expected.mean().item()) < 5 * deviation.item()


# FID by number of evaluations.


def test_fid_is_asked_for_each_pair_once():
    asked = []

    def fid(nfe: int, sampler: str) -> float:
        asked.append((nfe, sampler))
        return nfe + len(sampler) / 100

    objective = unguided(SoFlow, "soflow")
    figures = fid_by_nfe.measure(gaussian_subject(objective, fid=fid))
    assert sorted(asked) == [(1, "compose"), *((n, name) for n in (2, 4, 8, 16) for name in ("compose", "renoise"))]
    assert figures == {f"{name}_{n}": n + 0.07 for name in ("compose", "renoise") for n in (1, 2, 4, 8, 16)}


def test_fid_of_real_samplers():
    """Fréchet distance of the elements to N(μ, σ²), in closed form, for samples of an exact solution."""
    objective = unguided(SoFlow, "soflow")
    network = ExactNetwork(objective.interpolant, objective.parameterization)
    noise = torch.randn(2000, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def fid(nfe: int, sampler: str) -> float:
        fresh = normals(tuple(noise.shape), torch.Generator().manual_seed(nfe))
        made = sample(objective, network, noise, torch.full((2000,), NULL), nfe, sampler, fresh)
        return ((made.mean(0) - MU).square() + (made.std(0) - SIGMA).square()).sum().item()

    figures = fid_by_nfe.measure(gaussian_subject(objective, fid=fid))
    for nfe in fid_by_nfe.NFE:  # an exact map composes exactly; fresh noise makes new samples of the same law
        assert figures[f"compose_{nfe}"] == pytest.approx(figures["compose_1"], rel=1e-9)
        # Four means of variance σ²/2000 and four deviations of half that: mean 6 σ²/2000, a sum of χ² that exceeds
        # five times its mean with a probability below 1e-4.
        assert figures[f"renoise_{nfe}"] < 5 * 6 * SIGMA**2 / 2000
    assert figures["renoise_2"] != figures["renoise_4"]


# Inference-time guidance.


@pytest.mark.parametrize("interpolant", ["linear", "trigonometric"])
@pytest.mark.parametrize("parameterization", ["euler", "trigonometric"])
def test_guiding_the_network_guides_solution_and_velocity(interpolant, parameterization):
    """Extrapolating F_θ is extrapolating f_θ and v_θ, which is what guidance means."""
    objective = unguided(SoFlow, "soflow", interpolant=interpolant, parameterization=parameterization)
    random = torch.Generator().manual_seed(5)
    x, per_class = (torch.randn(n, *SHAPE, generator=random, dtype=torch.float64) for n in (6, NULL + 1))
    t, s = torch.full((6,), 0.7, dtype=torch.float64), torch.full((6,), 0.2, dtype=torch.float64)
    labels = torch.arange(6) % NULL

    class Linear(nn.Module):
        def forward(self, x, t, s, labels):
            return x * (1 + labels[:, None, None, None]) + per_class[labels] * (t - s)[:, None, None, None]

    plain, null = Linear(), torch.full((6,), NULL)
    for strength in (0.0, 1.0, 2.5):
        guided = GuidedNetwork(plain, strength, NULL)
        for call in (
            lambda network, labels: objective.solution(network, x, t, s, labels),
            lambda network, labels: objective.velocity(network, x, t, labels),
        ):
            expected = call(plain, null) + strength * (call(plain, labels) - call(plain, null))
            assert torch.allclose(call(guided, labels), expected, rtol=1e-12, atol=1e-12)


def test_inference_guidance_counts_both_evaluations_of_a_step():
    asked = []

    def fid(steps: int, sampler: str, network: nn.Module) -> float:
        asked.append((steps, sampler, network.strength))
        return steps + network.strength

    figures = inference_guidance.measure(gaussian_subject(unguided(SoFlow, "soflow"), fid=fid))
    assert asked == [(n, "compose" if n == 1 else "renoise", w) for w in (1.5, 2.0, 3.0) for n in (1, 2)]
    assert figures == {f"w{w:g}_{2 * n}nfe": n + w for w in (1.5, 2.0, 3.0) for n in (1, 2)}


# What all of them promise.


@pytest.mark.parametrize("name", ["soflow", "meanflow", "flow_matching"])
def test_repetition_gives_the_same_and_leaves_no_trace(name):
    objective, network = build_objective(tiny_config(name), NUM_CLASSES), SmoothNetwork(dtype=torch.float32)
    data, labels = random_batch((600, 1, 2, 2), dtype=torch.float32)
    names = (*MAPS, "target_variance")
    state = torch.get_rng_state()
    calls = count_calls(network)
    first = diagnose(names, subject_of(objective, network, data, labels))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(calls) <= {256, 512}  # 512 of the 600 samples, in two chunks; two labels may share a call
    assert first == diagnose(names, subject_of(objective, network, data, labels))
    assert all(type(value) is float and math.isfinite(value) for value in first.values())
    assert {key.split("/")[0] for key in first} == set(names)
    other = diagnose(names, subject_of(objective, network, data, labels, seed=1))
    assert all(
        other[f"{name}/{key}"] != first[f"{name}/{key}"]
        for name, key in (
            ("ode_violation", "mean"),
            ("semigroup_error", "mean"),
            ("flow_distance", "rms"),
            ("target_variance", "v_t"),
        )
    )


def test_chunks_change_memory_not_figures(monkeypatch):
    objective, network = build_objective(tiny_config("soflow"), NUM_CLASSES), SmoothNetwork()
    subject = subject_of(objective, network, *random_batch((90, 1, 2, 2)))
    before = diagnose(MAPS, subject)
    monkeypatch.setattr(base, "CHUNK", 40)
    after = diagnose(MAPS, subject)
    assert [len(probe.data) for probe in probes(subject, "x")] == [40, 40, 10]
    assert after == pytest.approx(before, rel=1e-12)  # sums in another order


def test_samples_keep_their_labels():
    data = torch.arange(700.0).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    subject = subject_of(unguided(SoFlow, "soflow"), SmoothNetwork(), data, torch.arange(700))
    seen = whole(subject, "x")
    assert torch.equal(seen.data[:, 0, 0, 0].long(), seen.labels)
    assert len(set(seen.labels.tolist())) == 512
    assert not torch.equal(seen.labels.sort().values, torch.arange(512))  # not the first ones


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_every_diagnostic_has_its_module(name):
    assert callable(load(DIAGNOSTICS[name]))
