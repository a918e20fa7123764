"""The authors' variants of the objectives, which benchmarks/deviations.py compares with ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import NUM_CLASSES, SmoothNetwork, draw, random_batch, relative_error, tiny_objective
from torch import Tensor

from benchmarks.deviations import AuthorsDrop, AuthorsSoFlow, AuthorsTangent, AuthorsTimes
from soflow.objectives.base import Draws, Objective


def authors(kind: type, name: str, **fields) -> Objective:
    objective = tiny_objective(name, objective=fields)
    objective.__class__ = kind
    return objective


def drawn(objective: Objective, batch: int, progress: float = 0.5) -> Draws:
    return draw(objective, (batch, 1, 2, 2), progress, torch.Generator().manual_seed(1))


def test_the_flow_matching_share_is_that_of_the_samples():
    """The authors add mean losses of 3 and 7 samples with factors 3/10 and 7/10; λ is 0.35."""
    weight = drawn(authors(AuthorsSoFlow, "soflow", flow_matching_fraction=0.35), 10).weight
    values = torch.arange(10.0).square()
    assert (weight * values).sum().item() == pytest.approx(0.3 * values[:3].mean() + 0.7 * values[3:].mean())


def test_a_single_time_is_earlier_than_the_larger_of_two():
    """Means by quadrature of logit-normal(−0.4, 1): 0.41801, and 0.53472 for the larger of two."""
    fields = {"flow_matching_fraction": 0.5}
    ours, theirs = tiny_objective("alpha_flow", objective=fields), authors(AuthorsTimes, "alpha_flow", **fields)
    for objective, mean in ((ours, 0.53472), (theirs, 0.41801)):
        draws = drawn(objective, 40_000)
        assert torch.equal(draws.t[:20_000], draws.s[:20_000])
        assert draws.t[:20_000].mean().item() == pytest.approx(mean, abs=0.006)  # 4 standard errors of 0.0014
    for name in ("t", "l", "s"):
        assert torch.equal(*(getattr(drawn(objective, 100), name)[50:] for objective in (ours, theirs)))


def rows(objective: Objective) -> tuple[SmoothNetwork, Tensor, Tensor, Tensor, Draws]:
    """A network, x_t, v_t, labels and draws, float64."""
    x_t, labels = random_batch((64, 1, 2, 2))
    draws = drawn(objective, 64)
    draws = replace(draws, t=draws.t.double(), s=draws.s.double())
    return SmoothNetwork(), x_t, random_batch((64, 1, 2, 2), seed=2)[0], labels, draws


def test_samples_without_label_are_guided_within_the_interval():
    """v_g = 0.2 v_t + 0.92 u(label) − 0.12 u(null), with the null label's u in both places where it is dropped."""
    fields = {"guidance_omega": 0.2, "guidance_kappa": 0.92, "guidance_interval": (0.0, 0.5), "label_drop": 0.5}
    objective = authors(AuthorsDrop, "alpha_flow", **fields)
    network, x_t, v_t, labels, draws = rows(objective)
    active = draws.t <= 0.5
    assert 0 < (draws.drop & active).sum() < active.sum() < 64
    assert not (draws.drop & ~active).any()
    t, null = draws.t, torch.full_like(labels, NUM_CLASSES)
    u_label = network(x_t, t, t, torch.where(draws.drop, null, labels))
    guided = 0.2 * v_t + 0.92 * u_label - 0.12 * network(x_t, t, t, null)
    found = objective.guided_velocity(network, x_t, v_t, None, labels, draws)
    assert relative_error(found, torch.where(active.view(-1, 1, 1, 1), guided, v_t)) < 1e-12


def test_the_tangent_has_the_label_although_it_is_dropped():
    objective = authors(AuthorsTangent, "improved_meanflow", label_drop=0.5, flow_matching_fraction=0.25)
    network, x_t, v_t, labels, draws = rows(objective)
    assert 0 < draws.drop.sum() < 64
    objective.labels = labels
    found = objective.tangent(network, x_t, v_t, torch.where(draws.drop, NUM_CLASSES, labels), draws)
    expected = network(x_t, draws.t, draws.t, labels)
    assert relative_error(found[16:], expected[16:]) < 1e-12
    assert not found[:16].any()  # t − s = 0 there
