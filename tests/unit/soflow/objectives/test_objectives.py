"""Objectives: golden losses and gradients, the surrogate against its defining form, and what all of them promise."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from helpers import (
    NUM_CLASSES,
    SmoothNetwork,
    count_calls,
    draw,
    given_draws,
    golden,
    golden_dit,
    gradients,
    hyper_parameters,
    objective_config,
    random_batch,
    relative_error,
    tiny_config,
    tiny_objective,
    velocity_and_derivative,
)
from torch import Tensor

from soflow.guidance import decay
from soflow.interpolants import INTERPOLANTS, per_sample
from soflow.objectives.base import Draws, Objective, mean_square
from soflow.objectives.flow_matching import FlowMatching
from soflow.objectives.meanflow import MeanFlow
from soflow.objectives.registry import OBJECTIVES
from soflow.objectives.soflow import SoFlow
from soflow.parameterizations import PARAMETERIZATIONS
from soflow.training.build import build_objective

SOFLOW_CASES = ("soflow_uncond", "soflow_cond_noguidance", "soflow_guided", "soflow_guided_p075")
MEANFLOW_CASES = ("meanflow_noguidance", "meanflow_guided")
JVPS = ("with_gradient", "separate", "subset")
PAIRS = list(itertools.product(INTERPOLANTS, PARAMETERIZATIONS))

FLOAT64 = 1e-9
"""Relative to a tensor's largest element; two implementations in float64 differ by about 1e-14."""
FLOAT32 = 1e-4
"""As above in float32, rounding 6e-8 amplified by some hundred operations and, in consistency, by 1/r."""
STORED_FLOAT32 = 1e-6
"""Gradients that the golden file holds in float32 are off by up to 6e-8."""


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def soflow_case(name: str, part: str, dtype: torch.dtype) -> tuple[SoFlow, dict[str, Tensor], Tensor, Draws]:
    """The objective, the stored numbers, labels and draws of one part of a golden SoFlow file."""
    h, stored = hyper_parameters(name), {key: cast(value, dtype) for key, value in golden(name).items()}
    config = objective_config(
        "soflow",
        guidance_strength=h["cfg_scale"],
        velocity_mix=h["mix_ratio"],
        guidance_decay_time=h["cfg_decay_time"],
        weight_power=h["p"],
        weight_eps=h["eps"],
    )
    objective = SoFlow(config, NUM_CLASSES, conditional="labels" in stored)
    labels = stored.get("labels", torch.full((8,), NUM_CLASSES))
    drop = stored["cfg_mask"] if objective.guided else None  # the published code ignores the mask without guidance
    if part == "velocity":
        draws = given_draws(stored["x_1"], stored["t"], stored["t"], stored["t"], drop, num_flow_matching=8)
    else:
        draws = given_draws(stored["x_1"], stored["t"], stored["l"], stored["s"], drop)
    return objective, stored, labels, draws


TERMS = {"velocity": "flow_matching", "consistency": "consistency"}


@pytest.mark.parametrize("part", TERMS)
@pytest.mark.parametrize("name", SOFLOW_CASES)
def test_soflow_equals_the_published_losses_and_gradients(name, part):
    network = golden_dit()
    objective, stored, labels, draws = soflow_case(name, part, torch.float64)
    losses = objective.losses(network, stored["x_0"], labels, draws)
    loss = (draws.weight * losses.loss).sum()
    assert relative_error(loss, stored[f"{part}.loss"]) < FLOAT64
    assert relative_error(losses.terms[TERMS[part]].mean(), stored[f"{part}.mse"]) < FLOAT64
    raw = golden(name)
    for parameter, gradient in gradients(network, loss).items():
        expected = raw[f"{part}.grad.{parameter}"]
        exact = expected.dtype == torch.float64
        assert relative_error(gradient, expected) < (FLOAT64 if exact else STORED_FLOAT32), parameter
        if not exact:
            g = gradient.flatten()
            norm = g.square().sum().sqrt()
            weighted = (g * torch.arange(len(g), dtype=torch.float64).cos()).sum()
            found = torch.stack([g.sum() / norm, norm**2, weighted / norm])
            sums = raw[f"{part}.gradsum.{parameter}"] / torch.stack([norm, torch.ones_like(norm), norm])
            torch.testing.assert_close(found, sums, rtol=FLOAT64, atol=FLOAT64, msg=parameter)


@pytest.mark.parametrize("part", TERMS)
@pytest.mark.parametrize("name", SOFLOW_CASES)
def test_soflow_in_float32(name, part):
    network = golden_dit(torch.float32)
    objective, stored, labels, draws = soflow_case(name, part, torch.float32)
    losses = objective.losses(network, stored["x_0"], labels, draws)
    assert losses.loss.dtype == torch.float32
    found = {"loss": (draws.weight * losses.loss).sum(), "mse": losses.terms[TERMS[part]].mean()}
    raw = golden(name)
    for key, value in found.items():
        assert relative_error(value, raw[f"{part}.{key}"]) < FLOAT32
        assert relative_error(value, raw[f"{part}.{key}_f32"]) < FLOAT32


def meanflow_case(name: str, jvp: str, dtype: torch.dtype) -> tuple[MeanFlow, dict[str, Tensor], Draws]:
    h, stored = hyper_parameters(name), {key: cast(value, dtype) for key, value in golden(name).items()}
    config = objective_config(
        "meanflow",
        guidance_omega=h["omega"],
        guidance_kappa=h["kappa"],
        guidance_interval=(h["t_start"], h["t_end"]),
        weight_power=h["norm_p"],
        weight_eps=h["norm_eps"],
        jvp=jvp,
    )
    objective = MeanFlow(config, NUM_CLASSES, conditional=True)
    assert objective.guided == h["guidance"]
    known = int((stored["r"] == stored["t"]).sum())
    t, r = stored["t"], stored["r"]
    return objective, stored, given_draws(stored["noise"], t, t, r, stored["drop_mask"], known)


@pytest.mark.parametrize("jvp", JVPS)
@pytest.mark.parametrize("name", MEANFLOW_CASES)
def test_meanflow_equals_its_equations(name, jvp):
    network = golden_dit()
    objective, stored, draws = meanflow_case(name, jvp, torch.float64)
    x_t = INTERPOLANTS["linear"].x_t(stored["x_0"], stored["noise"], stored["t"])
    v_t = stored["noise"] - stored["x_0"]
    v_g = objective.guided_velocity(network, x_t, v_t, None, stored["labels"], draws)
    assert relative_error(v_g, stored["v_g"]) < FLOAT64
    given = objective.drop_labels(stored["labels"], draws.drop)
    assert torch.equal(given, stored["y_in"])
    u, du_dt = velocity_and_derivative(objective, network, x_t, v_g, given, draws)
    assert relative_error(u, stored["u"]) < FLOAT64
    assert not du_dt.requires_grad
    first = draws.num_flow_matching if jvp == "subset" else 0  # "subset" leaves out what is multiplied by zero
    assert relative_error(du_dt[first:], stored["du_dt"][first:]) < FLOAT64
    target = v_g - per_sample(draws.t - draws.s, x_t) * du_dt
    assert relative_error(target, stored["target"]) < FLOAT64

    # At p = 1 the loss is near 1 whatever du/dt is: errors and gradients decide.
    losses = objective.losses(network, stored["x_0"], stored["labels"], draws)
    squared = torch.cat([losses.terms["flow_matching"], losses.terms["average_velocity"]]) * x_t[0].numel()
    assert relative_error(squared, stored["loss_per_sample"]) < FLOAT64
    loss = (draws.weight * losses.loss).sum()
    assert relative_error(loss, stored["loss"]) < FLOAT64
    for parameter, gradient in gradients(network, loss).items():
        assert relative_error(gradient, stored[f"grad.{parameter}"]) < FLOAT64, parameter


@pytest.mark.parametrize("name", MEANFLOW_CASES)
def test_meanflow_by_finite_differences_approaches_its_equations(name):
    """du/dt of the golden network; halving the step divides the error by four."""
    errors = []
    for step in (4e-3, 2e-3, 1e-3):
        objective, stored, draws = meanflow_case(name, "finite_difference", torch.float64)
        objective.config = objective.config.model_copy(update={"finite_difference_step": step})
        x_t = INTERPOLANTS["linear"].x_t(stored["x_0"], stored["noise"], stored["t"])
        rest = slice(draws.num_flow_matching, None)
        inside = ((stored["t"] - stored["r"] > 4e-3) & (stored["t"] < 1 - 4e-3))[rest]
        assert inside.any()  # one-sided differences elsewhere
        du_dt = objective.derivative(golden_dit(), x_t, stored["v_g"], None, stored["y_in"], draws)
        assert (du_dt[: draws.num_flow_matching] == 0).all()
        errors.append(relative_error(du_dt[rest][inside], stored["du_dt"][rest][inside]))
    assert errors[-1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_finite_differences_stay_within_the_trained_times():
    """At t = 1 and where t − s is below the step, no time leaves [s, 1]."""
    config = objective_config("meanflow", jvp="finite_difference", finite_difference_step=0.1)
    objective, seen = MeanFlow(config, NUM_CLASSES, conditional=True), []

    class Recorder(SmoothNetwork):
        def forward(self, x, t, s, labels):
            seen.append((t, s))
            return super().forward(x, t, s, labels)

    t = torch.tensor([1.0, 0.95, 0.5, 0.3], dtype=torch.float64)
    s = torch.tensor([0.2, 0.0, 0.48, 0.3 - 1e-9], dtype=torch.float64)
    noise, (data, labels) = torch.randn(4, 1, 2, 2, dtype=torch.float64), random_batch((4, 1, 2, 2))
    network, draws = Recorder(), given_draws(noise, t, t, s)
    error = objective.derivative_error(network, data, labels, draws)
    assert all(((time <= 1) & (time >= start)).all() for time, start in seen)
    assert 0 < error < 0.1


@pytest.mark.parametrize("jvp", JVPS)
@pytest.mark.parametrize("name", MEANFLOW_CASES)
def test_meanflow_in_float32(name, jvp):
    network = golden_dit(torch.float32)
    objective, stored, draws = meanflow_case(name, jvp, torch.float32)
    losses = objective.losses(network, stored["x_0"], stored["labels"], draws)
    squared = torch.cat([losses.terms["flow_matching"], losses.terms["average_velocity"]]) * stored["x_0"][0].numel()
    assert relative_error(squared, golden(name)["loss_per_sample"]) < FLOAT32
    found = gradients(network, (draws.weight * losses.loss).sum())
    for parameter, gradient in found.items():
        assert relative_error(gradient, golden(name)[f"grad.{parameter}"]) < FLOAT32, parameter


# The surrogate and the guided target in their defining form, for every interpolant and parameterization.


def ordered_draws(batch: int = 8, num_flow_matching: int = 4) -> Draws:
    """Times on both sides of the decay time, gaps t − l from 1e-3 to 0.3, two dropped samples in each part."""
    noise = torch.randn(batch, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0.95, 0.3, 0.81, 0.6, 0.9, 0.5, 0.83, 0.7], dtype=torch.float64)
    l = t - torch.tensor([0.1, 0.1, 0.1, 0.1, 0.3, 0.001, 0.01, 0.1], dtype=torch.float64)
    s = l * torch.tensor([0.5, 0.5, 0.5, 0.5, 0.2, 0.9, 0.0, 1.0], dtype=torch.float64)
    leading = torch.arange(batch) < num_flow_matching
    drop = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0]).bool()
    return given_draws(noise, t, torch.where(leading, t, l), torch.where(leading, t, s), drop, num_flow_matching)


def defining_target(objective: FlowMatching, network, x_t: Tensor, v_t: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """v_mix as it is written."""
    config = objective.config
    if not (objective.conditional and config.guidance_strength > 1):
        return v_t
    null = torch.full_like(labels, NUM_CLASSES)
    scale, t = objective.parameterization.velocity_scale, draws.t
    v_null, v_label = scale * network(x_t, t, t, null), scale * network(x_t, t, t, labels)
    strength = per_sample(decay(t, config.guidance_decay_time), x_t) * (config.guidance_strength - 1)
    guided = v_t + strength * (v_t - v_null)
    mixed = config.velocity_mix * guided + (1 - config.velocity_mix) * v_label
    return torch.where(per_sample(draws.drop, x_t), v_t, mixed).detach()


def defining_losses(objective: SoFlow, network, data: Tensor, labels: Tensor, draws: Draws) -> Tensor:
    """Per-sample losses as they are written, [B]: flow matching, then weight · ‖f − f⁻‖² / (2 |b| (t − l))."""
    p, config, known = objective.parameterization, objective.config, draws.num_flow_matching
    x_t = objective.interpolant.x_t(data, draws.noise, draws.t)
    v_t = objective.interpolant.v_t(data, draws.noise, draws.t)
    given = torch.where(draws.drop, torch.full_like(labels, NUM_CLASSES), labels)
    v_mix = defining_target(objective, network, x_t, v_t, labels, draws)

    first = slice(None, known)
    delta = p.velocity_scale * network(x_t[first], draws.t[first], draws.t[first], given[first]) - v_mix[first]
    error = mean_square(delta)
    velocity_loss = error / (p.velocity_scale * (error.detach() + config.weight_eps) ** config.weight_power)

    x_t, v_mix, given, t, l, s = (value[known:] for value in (x_t, v_mix, given, draws.t, draws.l, draws.s))
    x_l = x_t + per_sample(l - t, x_t) * v_mix
    f_t = per_sample(p.a(t, s), x_t) * x_t + per_sample(p.b(t, s), x_t) * network(x_t, t, s, given)
    f_l = (per_sample(p.a(l, s), x_t) * x_l + per_sample(p.b(l, s), x_t) * network(x_l, l, s, given)).detach()
    q = (f_t - f_l).detach() / per_sample(t - l, x_t)
    weight = (mean_square(q) + config.weight_eps) ** -config.weight_power
    return torch.cat([velocity_loss, weight * mean_square(f_t - f_l) / (2 * p.b(t, s).abs() * (t - l))])


@pytest.mark.parametrize("power", [1.0, 0.75])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize(("interpolant", "parameterization"), PAIRS)
def test_gradient_is_that_of_the_defining_form(interpolant, parameterization, guided, power):
    config = objective_config(
        "soflow",
        interpolant=interpolant,
        parameterization=parameterization,
        guidance_strength=2.5 if guided else 1.0,
        weight_power=power,
    )
    objective, network = SoFlow(config, NUM_CLASSES, conditional=True), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    draws = ordered_draws()
    losses = objective.losses(network, data, labels, draws).loss
    defining = defining_losses(objective, network, data, labels, draws)
    torch.testing.assert_close(losses[:4], defining[:4], rtol=1e-12, atol=0)
    assert (losses[4:] - defining[4:]).abs().min() > 1e-3  # the surrogate shares the gradient, not the value
    for sample in range(8):
        expected = gradients(network, defining[sample])
        for name, gradient in gradients(network, losses[sample]).items():
            # Solutions 1e-3 apart are subtracted in the defining form: rounding 1e-16 becomes 1e-13.
            assert relative_error(gradient, expected[name]) < 1e-10, (sample, name)


@pytest.mark.parametrize(("interpolant", "parameterization"), PAIRS)
def test_consistency_error_is_the_mean_square_of_the_plain_quotient(interpolant, parameterization):
    config = objective_config("soflow", interpolant=interpolant, parameterization=parameterization)
    objective, network = SoFlow(config, NUM_CLASSES, conditional=True), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    draws = ordered_draws(num_flow_matching=0)
    error = objective.losses(network, data, labels, draws).terms["consistency"]
    p, (t, l, s) = objective.parameterization, (draws.t, draws.l, draws.s)
    x_t = objective.interpolant.x_t(data, draws.noise, t)
    v_t = objective.interpolant.v_t(data, draws.noise, t)
    v_mix = defining_target(objective, network, x_t, v_t, labels, draws)
    given = objective.drop_labels(labels, draws.drop)
    x_l = x_t + per_sample(l - t, x_t) * v_mix
    f_t = objective.solution(network, x_t, t, s, given)
    f_l = p.solution(x_l, network(x_l, l, s, given), l, s)
    expected = mean_square((f_t - f_l) / per_sample(t - l, x_t))
    torch.testing.assert_close(error, expected.detach(), rtol=1e-10, atol=0)


def total_loss(objective: Objective, network, data, labels, draws) -> Tensor:
    return (draws.weight * objective.losses(network, data, labels, draws).loss).sum()


def double(draws: Draws) -> Draws:
    """Drawn numbers in float64, for networks in float64."""
    return dataclasses.replace(
        draws, **{name: getattr(draws, name).double() for name in ("noise", "t", "l", "s", "weight")}
    )


def drawn(objective: Objective, batch: int, seed: int = 0, progress: float = 0.5) -> Draws:
    return double(draw(objective, (batch, 1, 2, 2), progress, torch.Generator().manual_seed(seed)))


def test_total_is_the_weighted_sum_of_the_two_parts_means():
    objective = SoFlow(objective_config("soflow", flow_matching_fraction=0.6), NUM_CLASSES, conditional=True)
    network, (data, labels) = SmoothNetwork(), random_batch((8, 1, 2, 2))
    draws = drawn(objective, 8)
    assert draws.num_flow_matching == 4  # the floor of 0.6 · 8
    defining = defining_losses(objective, network, data, labels, draws)
    expected = gradients(network, 0.6 * defining[:4].mean() + 0.4 * defining[4:].mean())
    found = gradients(network, total_loss(objective, network, data, labels, draws))
    for name in expected:
        assert relative_error(found[name], expected[name]) < 1e-6, name  # the weights are float32


def test_without_flow_matching_part():
    objective = SoFlow(objective_config("soflow", flow_matching_fraction=0), NUM_CLASSES, conditional=True)
    network, (data, labels) = SmoothNetwork(), random_batch((8, 1, 2, 2))
    draws = drawn(objective, 8)
    losses = objective.losses(network, data, labels, draws)
    assert draws.num_flow_matching == 0
    assert {name: len(values) for name, values in losses.terms.items()} == {"flow_matching": 0, "consistency": 8}
    expected = gradients(network, defining_losses(objective, network, data, labels, draws).mean())
    found = gradients(network, (draws.weight * losses.loss).sum())
    for name in expected:
        assert relative_error(found[name], expected[name]) < 1e-6, name  # the weights are float32


def test_without_consistency_part_it_is_flow_matching():
    fields = {"guidance_strength": 2.5, "velocity_mix": 0.25}
    objective = SoFlow(objective_config("soflow", flow_matching_fraction=1, **fields), NUM_CLASSES, True)
    baseline = FlowMatching(objective_config("flow_matching", **fields), NUM_CLASSES, True)
    network, (data, labels) = SmoothNetwork(), random_batch((8, 1, 2, 2))
    draws = drawn(objective, 8)
    losses = objective.losses(network, data, labels, draws)
    assert draws.num_flow_matching == 8
    assert {name: len(values) for name, values in losses.terms.items()} == {"flow_matching": 8, "consistency": 0}
    assert torch.equal(losses.loss, baseline.losses(network, data, labels, draws).loss)
    calls = count_calls(network)
    objective.losses(network, data, labels, draws)
    assert calls == [8, len(draws.guided_indices)]  # the loss and the null label's velocity; none for consistency


# Guidance: what it costs, where it acts.

CALLS = [
    # objective, its settings, labels used, batch sizes of the network's calls for 4 + 4 samples, 2 dropped in each
    ("soflow", {"guidance_strength": 1}, True, [8, 4]),
    ("soflow", {"guidance_strength": 2}, False, [8, 4]),
    ("soflow", {"guidance_strength": 2}, True, [8, 6, 4]),
    ("flow_matching", {"guidance_strength": 1}, True, [8]),
    ("flow_matching", {"guidance_strength": 2}, False, [8]),
    ("flow_matching", {"guidance_strength": 2}, True, [8, 4]),
    ("meanflow", {"guidance_kappa": 0, "jvp": "with_gradient"}, True, [8]),
    ("meanflow", {"guidance_kappa": 0, "jvp": "separate"}, True, [8, 8]),
    ("meanflow", {"guidance_kappa": 0, "jvp": "subset"}, True, [8, 4]),
    ("meanflow", {"guidance_kappa": 0, "jvp": "finite_difference"}, True, [8, 4, 4]),
    ("meanflow", {"guidance_kappa": 0.5, "jvp": "subset"}, False, [8, 4]),
    ("meanflow", {"guidance_kappa": 0.5, "jvp": "subset"}, True, [8, 6, 4]),
    ("meanflow", {"guidance_kappa": 0, "guidance_omega": 2, "jvp": "subset"}, True, [8, 4, 4]),
    ("meanflow", {"guidance_kappa": 0.5, "guidance_omega": 0.5, "jvp": "subset"}, True, [8, 2, 4]),
    ("meanflow", {"guidance_kappa": 0.5, "jvp": "with_gradient"}, True, [8, 8]),
    ("soflow", {"guidance_strength": 2, "velocity_mix": 1}, True, [8, 4, 4]),
    ("soflow", {"guidance_strength": 2, "velocity_mix": 0}, True, [8, 2, 4]),
]


@pytest.mark.parametrize(("name", "settings", "conditional", "expected"), CALLS)
def test_guidance_costs_network_calls_only_where_it_acts(name, settings, conditional, expected):
    config = tiny_config(name, objective=settings, dataset={"conditional": conditional})
    objective, network = build_objective(config, NUM_CLASSES), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    known = 8 if name == "flow_matching" else 4
    draws = ordered_draws(num_flow_matching=known)
    calls = count_calls(network)
    objective.losses(network, data, labels, draws)
    assert calls == expected


def test_dropped_samples_use_the_plain_velocity():
    objective = SoFlow(objective_config("soflow", guidance_strength=3.0), NUM_CLASSES, conditional=True)
    network, (data, labels) = SmoothNetwork(), random_batch((8, 1, 2, 2))
    draws = ordered_draws()
    x_t = objective.interpolant.x_t(data, draws.noise, draws.t)
    v_t = objective.interpolant.v_t(data, draws.noise, draws.t)
    output = network(x_t, draws.t, draws.s, objective.drop_labels(labels, draws.drop)).detach()
    target = objective.target_velocity(network, x_t, v_t, output, labels, draws)
    assert torch.equal(target[draws.drop], v_t[draws.drop])
    expected = defining_target(objective, network, x_t, v_t, labels, draws)
    torch.testing.assert_close(target, expected, rtol=1e-12, atol=1e-12)
    changed = (target - v_t).flatten(1).abs().amax(1) > 1e-3
    assert torch.equal(changed, ~draws.drop)


def test_meanflow_guidance_acts_inside_its_interval_only():
    fields = {"guidance_omega": 1.0, "guidance_kappa": 0.5, "guidance_interval": (0.7, 0.9)}
    objective = MeanFlow(objective_config("meanflow", **fields), NUM_CLASSES, conditional=True)
    network, (data, labels) = SmoothNetwork(), random_batch((8, 1, 2, 2))
    draws = ordered_draws()
    x_t, v_t = objective.interpolant.x_t(data, draws.noise, draws.t), draws.noise - data
    v_g = objective.guided_velocity(network, x_t, v_t, None, labels, draws)
    null = torch.full_like(labels, NUM_CLASSES)
    expected = v_t + 0.5 * (network(x_t, draws.t, draws.t, labels) - network(x_t, draws.t, draws.t, null))
    # t = 0.95, 0.3, 0.81, 0.6, 0.9, 0.5, 0.83, 0.7: both ends count, dropped samples do not.
    active = torch.tensor([False, False, True, False, True, False, False, True])
    torch.testing.assert_close(v_g[active], expected[active].detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(v_g[~active], v_t[~active])


# Shapes, and the share of a batch.


def test_one_value_per_sample_is_enforced():
    x = torch.randn(4, 1, 4, 4)
    assert per_sample(torch.arange(4), x).shape == (4, 1, 1, 1)
    for wrong in (torch.ones(3), torch.ones(4, 1), torch.ones(1), torch.ones(()), torch.ones(4, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"one value per sample, shape \(4,\), got"):
            per_sample(wrong, x)
    with pytest.raises(ValueError, match="one value per sample"):
        INTERPOLANTS["linear"].x_t(x, x, torch.rand(4, 1, 1, 1))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("batch", "workers"), [(8, 1), (10, 2), (9, 3), (8, 4), (4, 4)])
def test_shares_partition_the_batch(name, batch, workers):
    objective = build_objective(tiny_config(name), NUM_CLASSES)
    whole = draw(objective, (batch, 1, 2, 2), 0.5, torch.Generator().manual_seed(0))
    shares = [whole.share(rank, workers) for rank in range(workers)]
    assert {len(share.t) for share in shares} == {batch // workers}
    for field in ("noise", "t", "l", "s", "drop", "weight"):
        joined = torch.empty_like(getattr(whole, field))
        for rank, share in enumerate(shares):
            joined[rank::workers] = getattr(share, field)
        assert torch.equal(joined, getattr(whole, field))
    assert sum(share.num_flow_matching for share in shares) == whole.num_flow_matching
    for share in shares:
        assert torch.equal(share.t[: share.num_flow_matching], share.s[: share.num_flow_matching])
        assert (share.s[share.num_flow_matching :] < share.t[share.num_flow_matching :]).all()
    # Sums of up to ten float32 numbers.
    assert sum(share.weight.sum().item() for share in shares) == pytest.approx(1, abs=1e-6)


# What every objective promises; a new one is tested by being registered.


@pytest.fixture(params=OBJECTIVES)
def name(request):
    return request.param


def test_draws_follow_the_interface(name):
    objective = build_objective(tiny_config(name), NUM_CLASSES)
    shape = (64, 1, 2, 2)
    draws = draw(objective, shape, 0.5, torch.Generator().manual_seed(0))
    assert draws.noise.shape == shape
    assert {getattr(draws, field).shape for field in ("t", "l", "s", "drop", "weight")} == {(64,)}
    assert draws.drop.dtype == torch.bool
    assert ((draws.s >= 0) & (draws.s <= draws.l) & (draws.l <= draws.t) & (draws.t <= 1)).all()
    known = draws.num_flow_matching
    assert torch.equal(draws.t[:known], draws.s[:known])
    assert torch.equal(draws.t[:known], draws.l[:known])
    assert (draws.weight > 0).all()
    assert draws.weight.sum().item() == pytest.approx(1, abs=1e-6)  # 64 float32 numbers

    again = draw(objective, shape, 0.5, torch.Generator().manual_seed(0))
    other = draw(objective, shape, 0.5, torch.Generator().manual_seed(1))
    for field in ("noise", "t", "l", "s", "drop", "weight"):
        assert torch.equal(getattr(draws, field), getattr(again, field))
    assert not torch.equal(draws.noise, other.noise)
    assert not torch.equal(draws.t, other.t)


def test_labels_are_dropped_as_often_as_configured(name):
    config = tiny_config(name, objective={"label_drop": 0.3})
    draws = draw(build_objective(config, NUM_CLASSES), (10_000, 1, 1, 1), 0.5, torch.Generator().manual_seed(0))
    # 10,000 draws scatter by 0.0046; the drop must not prefer either part of the batch.
    assert draws.drop.double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert draws.drop[:5000].double().mean().item() == pytest.approx(0.3, abs=0.03)
    unconditional = tiny_config(name, dataset={"conditional": False})
    draws = draw(build_objective(unconditional, NUM_CLASSES), (100, 1, 1, 1), 0.5, torch.Generator().manual_seed(0))
    assert not draws.drop.any()


def test_losses_follow_the_interface(name):
    objective, network = tiny_objective(name), SmoothNetwork()
    data, labels = random_batch((16, 1, 2, 2))
    draws = dataclasses.replace(drawn(objective, 16), batch=(data, labels))
    losses = objective.losses(network, data, labels, draws)
    assert losses.loss.shape == (16,)
    assert losses.loss.isfinite().all()
    assert sum(len(values) for values in losses.terms.values()) == 16
    for values in losses.terms.values():
        assert not values.requires_grad
        assert (values >= 0).all()
    found = gradients(network, (draws.weight * losses.loss).sum())
    for parameter, gradient in found.items():
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0, parameter


def test_a_sample_with_dropped_label_does_not_depend_on_it(name):
    objective, network = tiny_objective(name), SmoothNetwork()
    data, labels = random_batch((8, 1, 2, 2))
    drop = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0]).bool()
    draws = dataclasses.replace(drawn(objective, 8), drop=drop, guided=~drop, batch=(data, labels))
    before = objective.losses(network, data, labels, draws).loss
    others = (labels + 1) % NUM_CLASSES
    after = objective.losses(network, data, others, dataclasses.replace(draws, batch=(data, others))).loss
    # Batched matrix products may round one row differently, by about 1e-16.
    torch.testing.assert_close(before[draws.drop], after[draws.drop], rtol=1e-12, atol=1e-12)
    assert ((before - after)[~draws.drop].abs() > 1e-6).all()


def test_a_sample_s_loss_does_not_depend_on_the_share_that_it_is_in(name):
    """So the workers' shares of a batch add up to the batch."""
    objective, network = tiny_objective(name), SmoothNetwork()
    data, labels = random_batch((12, 1, 2, 2))
    draws = dataclasses.replace(drawn(objective, 12), batch=(data, labels))
    whole = objective.losses(network, data, labels, draws).loss
    for rank in range(3):
        own = objective.losses(network, data[rank::3], labels[rank::3], draws.share(rank, 3)).loss
        torch.testing.assert_close(own, whole[rank::3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_solution_starts_at_x_with_the_velocity(name, parameterization):
    free = "parameterization" in OBJECTIVES[name].config.model_fields
    settings = {"parameterization": parameterization} if free else {}
    objective = build_objective(tiny_config(name, objective=settings), NUM_CLASSES)
    network, (x, labels) = SmoothNetwork(), random_batch((6, 1, 2, 2))
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    torch.testing.assert_close(objective.solution(network, x, t, t, labels), x, rtol=0, atol=0)
    velocity = objective.velocity(network, x, t, labels)
    assert velocity.shape == x.shape
    _, derivative = torch.func.jvp(lambda s: objective.solution(network, x, t, s, labels), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(derivative, velocity, rtol=1e-12, atol=1e-12)


def test_evaluation_defaults_are_valid(name):
    objective = build_objective(tiny_config(name), NUM_CLASSES)
    tiny_config(name, evaluation={"nfe": objective.default_nfe, "sampler": objective.default_sampler})
    assert objective.interpolant in INTERPOLANTS.values()
