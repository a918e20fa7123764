"""Gaussian data with a known flow: samples, velocity, and a map's distance to the true flow.

Also the fit of a power law to what a comparison's trials reported.
"""

from __future__ import annotations

import html
import math
import re

import numpy as np
import pytest
import torch
from helpers import objective_config
from mlflow.entities import Metric
from scipy import stats
from scipy.integrate import solve_ivp
from sweep_store import EVERY, SweepStore
from torch import Tensor

from dashboards.claims.evidence import gather
from dashboards.claims.judge import judge
from dashboards.claims.ledger import Claim, Ledger, Study
from dashboards.comparison.compare import compare
from dashboards.comparison.exponents import answer
from dashboards.comparison.page import comparison_page, write_tables
from dashboards.comparison.results import CONFIRMED, REFUTED
from dashboards.comparison.tables import exponent_table
from dashboards.reading.sweep_data import SweepData, read_sweep
from dashboards.report import read_attachments
from soflow.config import parse
from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.data.config import DatasetConfig
from soflow.data.gaussians import SIGMA as DATA_SIGMA
from soflow.data.gaussians import Components, Gaussians
from soflow.diagnostics import true_distance
from soflow.diagnostics.base import Subject
from soflow.diagnostics.target_variance import probes_with_draws
from soflow.diagnostics.true_distance import TrueFlow
from soflow.interpolants import INTERPOLANTS, Interpolant
from soflow.objectives.soflow import SoFlow
from tests.unit.soflow.test_exact_solution import MU, PAIRS, SIGMA, ExactNetwork


@pytest.fixture(scope="module")
def source() -> Gaussians:
    return open_source(DatasetConfig(name="gaussians"))


# The samples.


def test_the_samples_have_the_moments_that_are_said(source):
    components, (stored, labels) = source.components, source.batch(np.arange(len(source)))
    assert stored.shape == (60_000, 1, 8, 8)
    assert np.array_equal(np.bincount(labels), [6000] * 10)
    deviations = stored / 127.5 - 1 - components.means[labels]
    means = np.stack([deviations[labels == label].mean(0) for label in range(10)])
    # Of 640 means of 6,000 one is 5.5 standard deviations off with a probability of 2e-5.
    assert np.abs(means).max() < 5.5 * math.sqrt(components.variance / 6000)
    # The mean of 3.84 million squares has a relative standard deviation of 0.0007.
    assert np.square(deviations).mean() == pytest.approx(components.variance, rel=4 * 0.0007)
    assert components.variance == pytest.approx(DATA_SIGMA**2, rel=5e-4)  # rounding to bytes adds little
    # 5 σ from every mean: 1.1 in 3.84 million at most are expected there, and 8 with a probability of 4e-5.
    assert 1 - np.abs(components.means).max() == pytest.approx(5 * DATA_SIGMA)
    assert np.isin(stored, (0, 255)).sum() < 8


def test_the_samples_are_always_the_same(source):
    assert source.fingerprint == open_source(DatasetConfig(name="gaussians")).fingerprint
    assert source.fingerprint.startswith("8e7d229c2f48")  # published figures are of these


# The flow.


def velocity_of_density(components: Components, interpolant: Interpolant, x: Tensor, t: Tensor, label: int) -> Tensor:
    """E[v_t | x_t = x] by Tweedie's formula from the density's own gradient, for x [B, D] and one time below 1."""
    alpha, beta, d_alpha, d_beta = (
        f(t) for f in (interpolant.alpha, interpolant.beta, interpolant.d_alpha, interpolant.d_beta)
    )
    means = torch.from_numpy(components.means).flatten(1)[slice(None) if label == 10 else slice(label, label + 1)]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        squares = (x[:, None] - alpha * means).square().sum(-1)
        logs = torch.logsumexp(-squares / (2 * (alpha**2 * components.variance + beta**2)), 1)
        (score,) = torch.autograd.grad(logs.sum(), x)
    noise = -beta * score
    return (d_alpha * (x - beta * noise) / alpha + d_beta * noise).detach()


def samples(count: int) -> Tensor:
    return torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("label", [3, 10])
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_velocity_is_that_of_the_density(source, name, label):
    interpolant, labels = INTERPOLANTS[name], torch.full((20,), label)
    flow, data = TrueFlow(source.components, interpolant, labels), source.batch(np.arange(20))[0]
    for time in (0.02, 0.3, 0.6, 0.9):
        t = torch.full((20,), time, dtype=torch.float64)
        x = interpolant.x_t(torch.from_numpy(data / 127.5 - 1), samples(20), t)
        expected = velocity_of_density(source.components, interpolant, x.flatten(1), t[0], label)
        # Rounding 1e-16 of logarithms up to 1e4, the score's divisions by α ≥ 0.1 and variances ≥ 0.01.
        torch.testing.assert_close(flow.velocity(x, t).flatten(1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("label", [3, 10])
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_the_solution_is_the_densitys_flow(source, name, label, monkeypatch):
    interpolant, start = INTERPOLANTS[name], samples(4)
    flow, ends = TrueFlow(source.components, interpolant, torch.full((4,), label)), (0.95, 0.05)
    t, s = (torch.full((4,), time, dtype=torch.float64) for time in ends)

    def velocity(time: float, x: np.ndarray) -> np.ndarray:
        rows, now = torch.from_numpy(x).view(4, 64), torch.tensor(time, dtype=torch.float64)
        return velocity_of_density(source.components, interpolant, rows, now, label).flatten().numpy()

    expected = solve_ivp(velocity, ends, start.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
    found = flow.solution(start, t, s).flatten().numpy()
    monkeypatch.setattr(true_distance, "STEPS", 2 * true_distance.STEPS)
    finer = flow.solution(start, t, s).flatten().numpy()
    # Doubling the steps of a fourth-order method leaves a sixteenth: the change is the error, to a fifteenth of it.
    assert np.abs(found - expected).max() < 2 * np.abs(found - finer).max() + 1e-8
    assert np.abs(found - expected).max() < 1e-4
    assert (np.abs(found - finer).max() == 0) == (label == 3)  # a single component's is not integrated


def test_the_velocity_of_pure_noise_leads_to_the_mean(source):
    t, x = torch.ones(5, dtype=torch.float64), samples(5)
    mean = torch.from_numpy(source.components.means.mean(0))
    for name, expected in (("linear", x - mean), ("trigonometric", (-math.pi / 2 * mean).expand(5, -1, -1, -1))):
        found = TrueFlow(source.components, INTERPOLANTS[name], torch.full((5,), 10)).velocity(x, t)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# The diagnostic.


def subject_of(interpolant: str, parameterization: str, label: int, wrong: float = 0.0) -> Subject:
    """The exact solution of one Gaussian as test_gaussian knows it, with outputs that are wrong by a factor."""
    objective = SoFlow(
        objective_config("soflow", interpolant=interpolant, parameterization=parameterization), 1, conditional=False
    )
    network = ExactNetwork(objective.interpolant, objective.parameterization)
    network.register_forward_hook(lambda module, inputs, output: (1 + wrong) * output)
    data = MU + SIGMA * torch.randn(60, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    components = Components(MU[None].numpy(), SIGMA**2)
    return Subject(objective, network, data, torch.full((60,), label), 0, None, components)


@pytest.mark.parametrize(("interpolant", "parameterization"), PAIRS)
@pytest.mark.parametrize("label", [0, 1])
def test_the_exact_solution_is_no_distance_away(interpolant, parameterization, label):
    figures = true_distance.measure(subject_of(interpolant, parameterization, label))
    assert figures.pop("true_loss") > 0.1  # the scatter of v_t
    # Closed forms agree to rounding; of 64 Runge-Kutta steps 1e-7 is left.
    assert max(figures.values()) < (1e-12 if label == 0 else 1e-6)
    wrong = true_distance.measure(subject_of(interpolant, parameterization, label, wrong=0.1))
    assert min(wrong.values()) > 1e-3


def test_the_true_loss_is_the_training_loss_of_the_true_solution():
    subject = subject_of("linear", "euler", 0)
    expected = []
    for probe, draws in probes_with_draws(subject):
        losses = subject.objective.losses(subject.network, probe.data, probe.labels, draws)
        expected.append(losses.terms["consistency"])
    found = true_distance.true_loss(subject)["true_loss"]
    # Rounding 1e-16 over the smallest t − l of 1e-4.
    assert found == pytest.approx(torch.cat(expected).mean().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "dataset.name = gaussians, not digits"),
        ({"dataset": {"name": "gaussians"}}, "objective.guidance_strength = 1.5: must be 1"),
        ({"dataset": {"name": "gaussians"}, "objective": {"name": "meanflow"}}, "objective.guidance_kappa = 0.2"),
    ],
)
def test_what_has_no_known_solution_is_refused(changes, named):
    with pytest.raises(ConfigError, match=re.escape(named)) as error:
        parse({"evaluation": {"diagnostics": ["true_distance"]}} | changes)
    assert "\n" not in str(error.value)


def test_without_labels_there_is_no_guidance_to_refuse():
    parse({"dataset": {"name": "gaussians", "conditional": False}, "evaluation": {"diagnostics": ["true_distance"]}})


# Exponents.

POWERS, SCATTER, REPORTS, SEEDS = {"faster": 0.9, "bound": 0.5}, 0.01, 6, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> SweepStore:
    return SweepStore(tmp_path_factory.mktemp("bound"))


@pytest.fixture(scope="module")
def sweep(store) -> SweepData:
    """Trials whose distance is a power of the loss but for a scatter of 1 %, and in the first report anything."""
    random = np.random.default_rng(0)
    cases = tuple(f"{name}:objective.guidance_strength={1 + power}" for name, power in POWERS.items())
    outcomes = [("finished", [9.0] * REPORTS)] * (len(cases) * SEEDS)
    settings = {"cases": cases, "case_seeds": SEEDS, "early_stopping": {"kind": "none"}}
    parent = store.sweep("bound", outcomes, **settings)
    for run in store.children(parent).values():
        power, metrics = POWERS[run.data.tags["case"]], []
        for report in range(REPORTS):
            loss = 0.5 * 0.7**report
            distance = loss**power * math.exp(SCATTER * random.standard_normal()) if report else 1e3
            for name, value in (("loss/consistency", loss), ("diagnostics/true_distance/rms", distance)):
                metrics.append(Metric(name, value, 3_000, (report + 1) * EVERY))
        store.client.log_batch(run.info.run_id, metrics=metrics)
    return read_sweep(store.uri, parent)


def test_a_known_exponent_is_found(sweep):
    fitted = compare(sweep).exponents
    assert [(each.case, each.conclusion) for each in fitted] == [
        ("faster", "decreases faster than √δ"),
        ("bound", "as √δ"),
    ]
    xs = np.log(0.7) * np.arange(1, REPORTS)
    deviation = SCATTER / math.sqrt(np.square(xs - xs.mean()).sum())  # of a least-squares slope
    for each in fitted:
        power = POWERS[each.case]
        assert sorted(each.by_seed) == list(range(SEEDS))
        assert all(abs(k - power) < 4.5 * deviation for k in each.by_seed.values())
        assert abs(each.mean - power) < 4.5 * deviation / math.sqrt(SEEDS)
        assert each.low < each.mean < each.high
        assert each.span == pytest.approx(0.7 ** -(REPORTS - 2))


def test_claims_about_exponents_are_judged_with_the_others(sweep):
    relation = "distance to the true solution ~ training loss"
    tests = [
        f"k = 0.5: {relation} (bound)",
        f"k = 0.5: {relation} (faster)",
        "memory/peak_mib(faster) < 2000",
        "fid(faster) < 10",  # 9 in every seed
        f"k = 0.5: {relation} (one)",
    ]
    claims = tuple(Claim(claim=test, source="s", test=test) for test in tests)
    design = {"question": "How fast?", "looks": (SEEDS,), "smallest_effect": 1.1, "family_error": 0.05}
    study = Study(experiment="bound", claims=claims, **design)
    bound, faster, memory, fid, nothing = judge(Ledger(studies=(study,)), {"bound": gather(study, sweep)})
    assert [each.outcome for each in (bound, faster, memory)] == [CONFIRMED, REFUTED, CONFIRMED]
    assert [each.outcome for each in (fid, nothing)] == ["undecided"] * 2
    assert fid.reason == "all seeds give the same value"
    assert nothing.reason == "no trial reported both metrics often enough"
    of_case = {each.case: each for each in compare(sweep).exponents}
    mebibytes = sweep.trials.loc[sweep.trials["case"] == "faster", "memory/peak_mib"]
    inside = list(of_case["bound"].by_seed.values())
    end, side = (0.4, "greater") if of_case["bound"].mean < 0.5 else (0.6, "less")
    alone = [
        # One look: Student's tests. Inside the margin one side suffices, outside it does not.
        stats.ttest_1samp(inside, end, alternative=side).pvalue,
        stats.ttest_1samp(list(of_case["faster"].by_seed.values()), 0.6).pvalue,
        stats.ttest_1samp(np.log(mebibytes / 2000), 0.0).pvalue,
    ]
    ps = [each.p for each in (bound, faster, memory)]
    assert ps == pytest.approx([max(5 * p, 5e-9) for p in alone], rel=1e-2)  # a fifth of the error rate each
    assert faster.estimate[0] == pytest.approx(of_case["faster"].mean)
    assert faster.sentence.startswith("The error does not decrease as √δ: k = ")


def test_exponents_are_in_the_report_and_the_tables(sweep, tmp_path):
    comparison = compare(sweep)
    page = comparison_page(comparison, *read_attachments(comparison))
    markdown, latex, _ = (path.read_text() for path in write_tables(comparison, tmp_path))
    for row in exponent_table(comparison.exponents)[1:]:
        assert row[2] in page
        assert row[2] in markdown
        assert row[2] in latex
    assert 'id="exponents"' in page
    (sentence,) = answer(comparison.exponents)
    assert html.escape(sentence) in page


def test_a_comparison_without_diagnostics_has_no_exponents(store):
    settings = {"cases": ("one", "two"), "case_seeds": 1, "early_stopping": {"kind": "none"}}
    data = read_sweep(store.uri, store.sweep("plain", [("finished", [9.0, 8.0])] * 2, **settings))
    assert compare(data).exponents == []
    assert exponent_table([]) == []
