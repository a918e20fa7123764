"""Interpolants, parameterizations, gap schedules, guidance decay and times: golden tables, derivatives, properties."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import draw, golden_schedules, objective_config

from soflow.guidance import decay
from soflow.interpolants import INTERPOLANTS
from soflow.objectives.soflow import SoFlow
from soflow.parameterizations import PARAMETERIZATIONS
from soflow.schedules import gap_ratio
from soflow.times import SMALLEST_GAP, consistency_times, logit_normal, middle_time

GOLDEN = golden_schedules()
SCHEDULES = {"Const": "constant", "Linear": "linear", "Cosine": "cosine", "Exponent": "exponential"}
INTERPOLANT_NAMES = {"Linear": "linear", "Trig": "trigonometric"}
PARAMETERIZATION_NAMES = {"Euler": "euler", "Trig": "trigonometric"}
# Both sides evaluate the same few elementary functions in float64.
ROUNDING = {"rtol": 1e-13, "atol": 1e-15}


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratio_of(entry) -> float:
    return gap_ratio(SCHEDULES[entry["method"]], entry["k"] / entry["K"], entry["init_ratio"], entry["end_ratio"])


def test_the_golden_tables_cover_every_name():
    assert {entry["method"] for entry in GOLDEN["middle_time"]} == set(SCHEDULES)
    assert {entry.get("noising") for entry in GOLDEN["coefficients"]} == {*INTERPOLANT_NAMES, None}
    assert {entry.get("parameterisation") for entry in GOLDEN["coefficients"]} == {*PARAMETERIZATION_NAMES, None}
    assert set(INTERPOLANTS) == set(INTERPOLANT_NAMES.values())
    assert set(PARAMETERIZATIONS) == set(PARAMETERIZATION_NAMES.values())


def test_middle_time():
    assert len(GOLDEN["middle_time"]) == 96
    for entry in GOLDEN["middle_time"]:
        found = middle_time(double(entry["t"]), double(entry["s"]), ratio_of(entry))
        torch.testing.assert_close(found, double(entry["l"]), **ROUNDING, msg=str(entry))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential"])
def test_gap_ratio_starts_at_r_init_and_ends_at_r_end(schedule):
    assert gap_ratio(schedule, 0.0, 0.1, 0.002) == pytest.approx(0.1, rel=1e-12)
    assert gap_ratio(schedule, 1.0, 0.1, 0.002) == pytest.approx(0.002, rel=1e-12)
    values = [gap_ratio(schedule, k / 50, 0.1, 0.002) for k in range(51)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


def test_unknown_gap_schedule_names_the_known_ones():
    with pytest.raises(ValueError, match="gap_schedule = foo: must be one of constant, cosine, exponential, linear"):
        gap_ratio("foo", 0.5, 0.1, 0.002)


def test_guidance_decay():
    for entry in GOLDEN["cfg_decay_scale"]:
        found = decay(double(entry["t"]), entry["decay_time"], entry["k"])
        # 1 − exp(−y) for y down to 1e-7 loses nine digits to rounding in both.
        torch.testing.assert_close(found, double(entry["scale"]), rtol=1e-13, atol=2e-16)
    assert decay(double([0.9]), 0.8) == decay(double([0.9]), 0.8, 0.025)  # the losses' rate


def test_guidance_decay_at_time_zero_is_finite():
    """T = 0 fades everything but t = 0 itself."""
    found = decay(torch.tensor([0.0, 1e-7, 0.5, 1.0]), 0.0)
    assert found.isfinite().all()
    assert found[0] == 1
    assert found[-1] == 0


@pytest.mark.parametrize("entry", [entry for entry in GOLDEN["coefficients"] if "noising" in entry], ids=str)
def test_interpolant(entry):
    interpolant, t = INTERPOLANTS[INTERPOLANT_NAMES[entry["noising"]]], double(entry["t"])
    for name, function in (
        ("alpha", interpolant.alpha),
        ("beta", interpolant.beta),
        ("alpha_grad", interpolant.d_alpha),
        ("beta_grad", interpolant.d_beta),
    ):
        torch.testing.assert_close(function(t), double(entry[name]), rtol=1e-14, atol=1e-15, msg=name)


def derivative(function, at: torch.Tensor) -> torch.Tensor:
    at = at.clone().requires_grad_()
    # Adding 0·at keeps the graph where the function is constant.
    return torch.autograd.grad((function(at) + 0 * at).sum(), at)[0]


TIMES = torch.linspace(0, 1, 21, dtype=torch.float64)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_interpolant_derivatives_equal_autograd(name):
    interpolant = INTERPOLANTS[name]
    torch.testing.assert_close(interpolant.d_alpha(TIMES), derivative(interpolant.alpha, TIMES), **ROUNDING)
    torch.testing.assert_close(interpolant.d_beta(TIMES), derivative(interpolant.beta, TIMES), **ROUNDING)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_interpolant_goes_from_data_to_noise_with_velocity_v_t(name):
    interpolant = INTERPOLANTS[name]
    data, noise = torch.randn(2, 21, 1, 2, 2, dtype=torch.float64).unbind()
    ends = interpolant.x_t(data, noise, (TIMES > 0.5).double())
    torch.testing.assert_close(ends[0], data[0], **ROUNDING)
    torch.testing.assert_close(ends[-1], noise[-1], **ROUNDING)
    h = 1e-6  # a central difference is off by h²/6 times the third derivative, below 4, and by rounding over h, 1e-10
    difference = (interpolant.x_t(data, noise, TIMES + h) - interpolant.x_t(data, noise, TIMES - h)) / (2 * h)
    torch.testing.assert_close(interpolant.v_t(data, noise, TIMES), difference, rtol=0, atol=1e-8)


@pytest.mark.parametrize("entry", [entry for entry in GOLDEN["coefficients"] if "parameterisation" in entry], ids=str)
def test_parameterization(entry):
    p = PARAMETERIZATIONS[PARAMETERIZATION_NAMES[entry["parameterisation"]]]
    t, s = double(entry["t"]), double(entry["s"])
    for name, found in {
        "a": p.a(t, s),
        "b": p.b(t, s),
        "a_dt": derivative(lambda t: p.a(t, s), t),
        "a_ds": derivative(lambda s: p.a(t, s), s),
        "b_dt": derivative(lambda t: p.b(t, s), t),
        "b_ds": derivative(lambda s: p.b(t, s), s),
    }.items():
        torch.testing.assert_close(found, double(entry[name]), rtol=1e-14, atol=1e-15, msg=name)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_parameterization_at_equal_times(name):
    p = PARAMETERIZATIONS[name]
    assert torch.equal(p.a(TIMES, TIMES), torch.ones_like(TIMES))
    assert torch.equal(p.b(TIMES, TIMES), torch.zeros_like(TIMES))
    assert torch.equal(derivative(lambda s: p.a(TIMES, s), TIMES), torch.zeros_like(TIMES))
    torch.testing.assert_close(
        derivative(lambda s: p.b(TIMES, s), TIMES), torch.full_like(TIMES, p.velocity_scale), **ROUNDING
    )


def ordered_times(gap: float, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """t in [gap, 1], l = t − gap, s in [0, l], 1,000 of each."""
    random = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = gap + (1 - gap) * random[0]
    l = t - gap
    return tuple(time.to(dtype) for time in (t, l, l * random[1]))


@pytest.mark.parametrize("gap", [0.3, 1e-2])
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_quotients_equal_their_definition(name, gap):
    p, (t, l, s) = PARAMETERIZATIONS[name], ordered_times(gap)
    # The plain quotient's own rounding is about 1e-16 over the gap.
    exact = {"rtol": 0, "atol": 1e-15 / gap}
    torch.testing.assert_close(p.a_finite_difference(t, l, s), (p.a(t, s) - p.a(l, s)) / (t - l), **exact)
    torch.testing.assert_close(p.b_finite_difference(t, l, s), (p.b(t, s) - p.b(l, s)) / (t - l), **exact)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_quotients_keep_their_digits_in_float32(name):
    """At t − l = 1e-4 the plain quotient has lost three digits of seven, the written one none."""
    p, (t, l, s) = PARAMETERIZATIONS[name], ordered_times(1e-4, torch.float32)
    plain_error = 0.0
    for coefficient, quotient in ((p.a, p.a_finite_difference), (p.b, p.b_finite_difference)):
        # float64 arithmetic on the same float32 times: its rounding is 1e-16 / 1e-4 = 1e-12.
        T, L, S = t.double(), l.double(), s.double()
        exact = (coefficient(T, S) - coefficient(L, S)) / (T - L)
        plain = (coefficient(t, s) - coefficient(l, s)) / (t - l)
        # Values reach π/2 and pass through a handful of float32 operations of 1.2e-7 relative error each.
        assert (quotient(t, l, s) - exact).abs().max() < 1e-6
        plain_error = max(plain_error, (plain - exact).abs().max().item())
    assert name == "euler" or plain_error > 1e-4


@pytest.mark.parametrize("entry", GOLDEN["time_sampling"], ids=["imagenet", "cifar10"])
def test_time_sampling(entry):
    def draw(name: str, index: int) -> torch.Tensor:
        return logit_normal(entry["time_mean"][index], entry["time_std"][index], double(entry[name]))

    torch.testing.assert_close(draw("n_velocity", 0), double(entry["t_velocity"]), **ROUNDING)
    ratio = ratio_of(entry)
    t, l, s = consistency_times(draw("n_t", 2), draw("n_s", 1), ratio)
    torch.testing.assert_close(t, double(entry["t"]), **ROUNDING)
    torch.testing.assert_close(l, double(entry["l"]), **ROUNDING)
    torch.testing.assert_close(s, double(entry["s"]), **ROUNDING)
    torch.testing.assert_close(middle_time(t, s, ratio), double(entry["l_before_clamp"]), **ROUNDING)


EXTREMES = [-60.0, -9.2, -2.0, 0.0, 2.0, 9.2, 60.0]
"""Standard normal draws whose logits saturate the sigmoid, or land on the smallest gap."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES.values())
def test_times_are_ordered(schedule, dtype):
    """0 ≤ s ≤ l < t ≤ 1, whatever is drawn; the other order shows only as an FID that does not improve."""
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(2, 20_000, generator=random, dtype=torch.float64) * 2
    extreme = double(list(itertools.product(EXTREMES, EXTREMES))).T
    t, s = torch.sigmoid(torch.cat([normal, extreme], 1)).to(dtype)
    for r_init, r_end in ((0.1, 0.002), (1.0, 0.0003125), (1.0, 1.0)):
        for progress in (0.0, 0.3, 1.0):
            ratio = gap_ratio(schedule, progress, r_init, r_end)
            assert r_end <= ratio <= r_init
            found_t, found_l, found_s = consistency_times(t, s, ratio)
            assert (found_s >= 0).all()
            assert (found_s <= found_l).all()
            assert (found_l < found_t).all()
            assert (found_t <= 1).all()
            # The gap never falls under 1e-4 but for the rounding of t.
            assert (found_t - found_l).min() > SMALLEST_GAP - 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("schedule", SCHEDULES.values())
def test_drawn_times_are_ordered(schedule):
    """As above, through the objective's own draw with the widest spread that was published."""
    config = objective_config(
        "soflow",
        gap_schedule=schedule,
        r_init=1.0,
        r_end=0.0003125,
        time_mean=(-0.9, -4.0, -0.9),
        time_std=(1.6, 1.6, 1.6),
        flow_matching_fraction=0.25,
    )
    objective = SoFlow(config, 10, True)
    for step in range(20):
        draws = draw(objective, (1000, 1, 1, 1), step / 19, torch.Generator().manual_seed(step))
        known = draws.num_flow_matching
        assert known == 250
        assert torch.equal(draws.t[:known], draws.s[:known])
        assert torch.equal(draws.t[:known], draws.l[:known])
        t, l, s = draws.t[known:], draws.l[known:], draws.s[known:]
        assert ((s >= 0) & (s <= l) & (l < t) & (t <= 1)).all()
