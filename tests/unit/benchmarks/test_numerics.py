"""The numerics benchmark: what it emulates, and the order of errors that its table must show."""

from __future__ import annotations

import math

import numerics
import pytest
import torch
from helpers import NUM_CLASSES, given_draws, golden_dit, objective_config, random_batch, slope
from torch.nn import functional as F

from benchmarks.numerics import FINITE_DIFFERENCES, Case, EmulatedTensorFloat32, gradient_error, round_to_10_bits
from soflow.objectives.base import Draws
from soflow.objectives.soflow import SoFlow

UNIT = numerics.ROUNDING_UNITS


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# TensorFloat-32, emulated.


def test_rounding_is_that_of_a_10_bit_mantissa():
    """float16 has one too, and the same rounding wherever its narrow range of exponents suffices."""
    steps = torch.arange(2048, 4096) / 2048  # 11 bits: every other one is a tie
    x = torch.cat([steps, -steps, numbers(10_000), torch.zeros(1), 1 + torch.tensor([2.0**-11, 2.0**-11 + 2.0**-23])])
    assert torch.equal(round_to_10_bits(x), x.half().float())
    large = x[:4096] * 2.0**100  # beyond float16
    assert torch.equal(round_to_10_bits(large), x[:4096].half().float() * 2.0**100)
    error = (round_to_10_bits(x) - x).abs() / x.abs().clamp(min=1e-30)
    assert error.max() <= UNIT["tf32"]


def test_gradients_pass_the_rounding():
    x = numbers(5).requires_grad_()
    assert torch.equal(torch.autograd.grad(round_to_10_bits(x).sum(), x)[0], torch.ones(5))


def test_products_take_rounded_operands():
    x, weight, bias = numbers(7, 16), numbers(3, 16, seed=1), numbers(3, seed=2)
    images, kernel = numbers(2, 4, 6, 6), numbers(3, 4, 2, 2, seed=1)
    q, k, v = (numbers(2, 5, 8, seed=seed) for seed in range(3))
    with EmulatedTensorFloat32():
        found = (F.linear(x, weight, bias), F.conv2d(images, kernel, bias), F.scaled_dot_product_attention(q, k, v))
        assert torch.equal(x + bias[0], torch.add(x, bias[0]))
    x, weight, images, kernel, q, k, v = (part.half().double() for part in (x, weight, images, kernel, q, k, v))
    bias = bias.double()  # added, not multiplied
    expected = (F.linear(x, weight, bias), F.conv2d(images, kernel, bias), F.scaled_dot_product_attention(q, k, v))
    for ours, exact in zip(found, expected, strict=True):
        # Sums of at most 16 products of numbers up to 4, in float32.
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=16 * 16 * 2.0**-24)
    plain = F.linear(numbers(7, 16), numbers(3, 16, seed=1))
    assert (plain.double() - F.linear(x, weight)).abs().max() > 1e-4  # outside nothing is rounded


# The table's orders.


def difference_case(gap: float, ratio: float, samples: int = 64) -> tuple[torch.Tensor, torch.Tensor, Draws]:
    """Data, labels and draws with t − s from a half to three halves of `gap`, and t − l = ratio (t − s).

    Each sample has times of its own: a rounding error of one time's embedding would be the same for all that share it.
    """
    data, labels = random_batch((samples, 4, 8, 8), dtype=torch.float32)
    t = 0.6 + 0.3 * torch.rand(samples, generator=torch.Generator().manual_seed(0))
    gaps = gap * torch.linspace(0.5, 1.5, samples)
    return data, labels, given_draws(numbers(*data.shape), t, t - ratio * gaps, t - gaps)


@pytest.mark.parametrize("parameterization", numerics.PARAMETERIZATIONS)
@pytest.mark.parametrize(("gap", "ratio"), [(0.002, 0.002), (0.001, 0.1)])
def test_subtracting_solutions_loses_what_our_finite_difference_keeps(parameterization, gap, ratio):
    """Where t is close to s, so that the terms in x are far larger than the terms in F.

    The naive way rounds x_l, f(x_t) and f(x_l), all about as large as x. Rounding a number v errs evenly over half a
    spacing either way, which is at least 0.29 · 2⁻²⁴ |v| in the root mean square, √3 times that for the three, over
    t − l. Both ways take two outputs F with some rounding error e each, which q holds as √2 e |b| / (t − l), with
    |b| at most π/2 (t − s). The gradient is linear in q. So the naive error exceeds ours by the ratio of the two;
    a third of it is asserted, as the gradient weighs q's elements unevenly, x_l's rounding reaches ours through F, and
    the rounding of the rest of the gradient, 3e-7 with an exact q, is a third of ours at r = 0.1.
    """
    network, (data, labels, draws) = golden_dit(torch.float32), difference_case(gap, ratio)
    config = objective_config("soflow", parameterization=parameterization, guidance_strength=1)
    naive, ours = (
        gradient_error(config, way, "fp32", network, data, labels, draws) for way in FINITE_DIFFERENCES.values()
    )
    objective = SoFlow(config, NUM_CLASSES, conditional=True)
    x_t = objective.interpolant.x_t(data, draws.noise, draws.t)
    with torch.no_grad():
        output = network(x_t, draws.t, draws.s, labels).double()
        exact = golden_dit()(x_t.double(), draws.t.double(), draws.s.double(), labels)
    e, x = (value.square().mean().sqrt().item() for value in (output - exact, x_t))
    factor = (
        math.sqrt(3) * 0.29 * UNIT["fp32"] * x / (math.sqrt(2) * e * objective.parameterization.velocity_scale * gap)
    )
    assert factor > 4  # there is something to gain
    assert naive > factor / 3 * ours


@pytest.mark.parametrize("precision", UNIT)
def test_errors_grow_as_the_gap_shrinks(precision):
    """The error is about the rounding unit over r, until it is as large as the gradient itself."""
    network = golden_dit(torch.float32)
    config = objective_config("soflow", guidance_strength=1)
    errors = [
        gradient_error(config, SoFlow, precision, network, *difference_case(0.4, ratio)) for ratio in numerics.RATIOS
    ]
    assert errors[0] < errors[1] < errors[2]
    # How roundings fall is chance, even in a mean over 64 samples: allow each end of the range, 50 in r, a factor 2.
    assert slope(list(numerics.RATIOS), errors) == pytest.approx(-1, abs=math.log(4) / math.log(50))
    # A few roundings in a row, of numbers of the output's size or larger: 1/10 to 10 units, amplified.
    assert UNIT[precision] / 10 < errors[0] * numerics.RATIOS[0] < 10 * UNIT[precision]


@pytest.mark.parametrize("ratio", numerics.RATIOS)
def test_the_fewer_bits_the_larger_the_error(ratio):
    network = golden_dit(torch.float32)
    config = objective_config("soflow", guidance_strength=1)
    case = difference_case(0.4, ratio)
    found = {name: gradient_error(config, SoFlow, name, network, *case) for name in UNIT}
    # By their units 8192 and 8 times; but float32 rounds every intermediate result, the emulation only operands.
    assert 8192 / 40 * found["fp32"] < found["tf32"] < found["bf16"]
    # What was rounded inside the network no rearrangement of q brings back.
    for precision in ("tf32", "bf16"):
        naive = gradient_error(config, FINITE_DIFFERENCES["naive"], precision, network, *case)
        assert naive == pytest.approx(found[precision], rel=0.05)


def test_the_table_has_a_row_for_everything(monkeypatch):
    monkeypatch.setattr(numerics, "RATIOS", (0.1,))
    data, labels = random_batch((4, 4, 8, 8), dtype=torch.float32)
    cases = [Case(golden_dit(torch.float32), name, data, labels, seed=0) for name in numerics.PARAMETERIZATIONS]
    header, rule, *rows = numerics.table(cases)
    assert [row.split("|")[1:4] for row in rows] == [
        *([f" {name} ", f" {precision} ", " 0.1 "] for name in numerics.PARAMETERIZATIONS for precision in UNIT),
        *([f" {name} ", " values in fp32, gradient in bf16 ", " 0.1 "] for name in numerics.PARAMETERIZATIONS),
    ]
    assert {line.count("|") for line in (header, rule, *rows)} == {7}


@pytest.mark.slow
def test_networks_are_trained_on_the_seed_s_digits():
    case = numerics.trained("euler", seed=3, steps=1, device=torch.device("cpu"))
    assert case.data.shape == (numerics.BATCH, 1, 8, 8)
    assert case.labels.shape == (numerics.BATCH,)
    assert 0 < case.error(SoFlow, "fp32", 0.1) < 1e-3
