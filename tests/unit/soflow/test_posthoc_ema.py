"""Post-hoc EMA: profiles, lengths and least squares against averages that were really run, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from soflow.posthoc_ema import (
    COLUMNS,
    LONGEST,
    Average,
    Snapshot,
    average_of,
    ema_decay,
    exponent,
    power_decay,
    power_profile,
    reconstruct,
)

STEPS = 400
LENGTHS = (0.05, 0.1)
TRAJECTORY = np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 30)), axis=0) + 20
"""Weights that walk at random, [steps, weights]."""


def averaged(decay_after, weights: np.ndarray) -> np.ndarray:
    """The average of weights [n, ...] after n updates, of which the first copies them."""
    average = weights[0]
    for n in range(1, len(weights)):
        average = decay_after(n) * average + (1 - decay_after(n)) * weights[n]
    return average


def snapshots_of(count: int, steps: int = STEPS) -> list[Snapshot]:
    return [Snapshot(length, steps * (i + 1) // count) for i in range(count) for length in LENGTHS]


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28, LONGEST])
def test_the_exponent_has_its_length(length):
    """Against the definition: the standard deviation of τ under p(τ) ∝ τ^γ on [0, 1], by its moments."""
    gamma = exponent(length)
    mean, square = ((gamma + 1) / (gamma + k) for k in (2, 3))
    assert math.sqrt(square - mean**2) == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.2])
def test_the_profile_has_the_length_of_its_exponent(length):
    """A sum over 10,000 updates in place of the integral: error 1e-4 of the length."""
    profile = Average(length).profile(10_000)
    times = (np.arange(10_000) + 0.5) / 10_000
    mean = profile @ times
    assert math.sqrt(profile @ times**2 - mean**2) == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 17.0])
def test_updates_have_the_profile(gamma):
    expected = power_profile(gamma, STEPS) @ TRAJECTORY
    found = averaged(lambda n: power_decay(n, gamma), TRAJECTORY)
    np.testing.assert_allclose(found, expected, rtol=1e-12)  # 400 updates in float64


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.99, 0.9999])
def test_an_ema_has_its_profile(decay):
    profile = Average(decay=decay).profile(STEPS)
    assert profile.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(averaged(lambda n: ema_decay(n, decay), TRAJECTORY), profile @ TRAJECTORY, rtol=1e-12)


@pytest.mark.parametrize("average", [*map(Average, (0.05, 0.07, 0.1, 0.15, 0.2)), Average(decay=0.99)], ids=str)
def test_reconstructed_weights_are_those_of_the_average(average):
    """From 16 snapshots; a random walk is a hard case, as its steps have nothing in common."""
    snapshots = snapshots_of(16)
    found = reconstruct(snapshots, average, STEPS)
    stored = [power_profile(exponent(one.length), one.num_updates) @ TRAJECTORY[: one.num_updates] for one in snapshots]
    expected = average.profile(STEPS) @ TRAJECTORY
    error = np.linalg.norm(found.coefficients @ np.array(stored) - expected) / np.linalg.norm(expected)
    assert error < 0.01
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("average", [Average(0.07), Average(0.2), Average(decay=0.95)], ids=str)
def test_the_error_is_the_distance_of_the_profiles(average):
    """Against the profiles written out as vectors, and against numpy's unconstrained least squares: no less."""
    snapshots = snapshots_of(8)
    found = reconstruct(snapshots, average, STEPS)
    matrix = np.zeros((len(snapshots), STEPS))
    for row, one in zip(matrix, snapshots, strict=True):
        row[: one.num_updates] = power_profile(exponent(one.length), one.num_updates)
    profile = average.profile(STEPS)
    norm = np.linalg.norm(profile)
    assert found.error == pytest.approx(np.linalg.norm(found.coefficients @ matrix - profile) / norm, rel=1e-6)
    least = np.linalg.lstsq(matrix.T, profile, rcond=None)[0]
    unconstrained = np.linalg.norm(least @ matrix - profile) / norm
    assert unconstrained <= found.error * (1 + 1e-6)
    assert found.error < 1.05 * unconstrained + 1e-9  # that the coefficients sum to 1 costs little


def test_a_saved_length_is_reproduced_and_later_snapshots_are_ignored():
    snapshots = snapshots_of(8)
    found = reconstruct(snapshots, Average(0.1), STEPS // 2)
    expected = np.array([one == Snapshot(0.1, STEPS // 2) for one in snapshots], dtype=float)
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-6)
    assert found.error < 1e-6


def test_long_runs_are_summed_in_blocks():
    """Errors hardly depend on the number of updates, so those of a run of several blocks are known."""
    few, many = (reconstruct(snapshots_of(16, n), Average(0.15), n) for n in (4096, 2 * COLUMNS + 4096))
    assert many.error == pytest.approx(few.error, rel=0.01)
    np.testing.assert_allclose(many.coefficients, few.coefficients, atol=1e-3)


def test_without_an_early_snapshot_nothing_is_reconstructed():
    with pytest.raises(ValueError, match="there is no snapshot of the first 10 updates"):
        reconstruct([Snapshot(0.1, 20)], Average(0.1), 10)


def test_texts_name_averages():
    assert average_of("trained") is None
    assert average_of("0.10") == Average(length=0.1)
    assert average_of("decay=0.999") == Average(decay=0.999)
    assert [str(Average(0.1)), str(Average(decay=0.999))] == ["0.1", "decay=0.999"]


@pytest.mark.parametrize("text", ["0", "0.3", "-0.1", "nan", "decay=1", "decay=x", "sigma=0.1", "", "best", "=0.1"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="must be"):
        average_of(text)
