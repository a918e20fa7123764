"""The simulation of ledgers: noise as measured, and wrong verdicts within the promised share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from verdicts import Noise, measured_noise, simulate

from dashboards.claims.ledger import Study


def study(*tests: str, family_error: float = 0.05) -> Study:
    claims = [{"claim": test, "source": "none", "test": test} for test in tests]
    design = {"looks": (5, 10), "smallest_effect": 1.25, "family_error": family_error}
    return Study.model_validate({"experiment": "pairs", "question": "?", "claims": claims} | design)


def test_noise_scatters_and_correlates_as_measured():
    """The third claim has more seeds than the others; correlations use only those that all have."""
    generator = np.random.default_rng(0)
    shared = generator.standard_normal(6)
    logs = [0.2 * shared + 1, -0.1 * shared + 0.1 * generator.standard_normal(6), generator.standard_normal(8)]
    evidence = {
        f"fid(a) < fid({name})": {"values": {str(seed): [math.exp(log), 1.0] for seed, log in enumerate(values)}}
        for name, values in zip("bcd", logs, strict=True)
    }
    noise = measured_noise(study(*evidence), {"pairs": {"evidence": evidence}})
    np.testing.assert_allclose(noise.scatter, [np.std(values, ddof=1) for values in logs], rtol=1e-12)
    expected = np.corrcoef([values[:6] for values in logs])
    np.testing.assert_allclose(noise.mixing @ noise.mixing.T, expected, atol=1e-12)
    number = 100_000
    drawn = noise.draw(number, 2, generator)
    # Five standard errors: (1 − ρ²) / √n of a correlation, σ / √(2n) of a standard deviation.
    found = np.corrcoef(drawn[:, :, 0].T)
    assert (np.abs(found - expected) < 5 * (1 - expected**2) / math.sqrt(number) + 1e-9).all()
    assert drawn[:, :, 1].std(axis=0) == pytest.approx(noise.scatter, rel=5 / math.sqrt(2 * number))
    assert np.abs(np.corrcoef(drawn[:, 0].T)[0, 1]) < 5 / math.sqrt(number)  # seeds are independent


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_wrong_verdicts_stay_within_the_family_s_error(effect):
    made = study("fid(a) < fid(b)", "fid(a) < fid(c)", "k = 0.5: bound (a)")
    noise, number = Noise(np.array([0.3, 0.3, 0.1]), np.eye(3)), 20_000
    wrong = simulate(made, noise, effect, number, np.random.default_rng(1)).wrong.mean()
    assert 0.005 < wrong < 0.05 + 5 * math.sqrt(0.05 * 0.95 / number)


def test_a_large_effect_is_found_at_the_first_look_and_none_without_seeds_enough():
    made = study("fid(a) < fid(b)")
    found = simulate(made, Noise(np.array([0.02]), np.eye(1)), 5.0, 1000, np.random.default_rng(2))
    assert found.decided == pytest.approx([1.0])
    assert found.seeds == 5
    assert not found.wrong.any()
    lost = simulate(made, Noise(np.array([2.0]), np.eye(1)), 1.0, 1000, np.random.default_rng(3))
    assert lost.decided < 0.2
    assert lost.seeds > 9
