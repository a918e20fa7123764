"""Checks of an objective, in float64 with a disturbed network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from soflow.config import RunConfig
from soflow.testing.model import BATCH, FINITE_DIFFERENCE, ROUNDING, STEP, draws_of, model_of, near
from soflow.testing.resume import resume_is_exact


def draws_are_valid(config: RunConfig) -> None:
    draws = draws_of(config)
    n = draws.num_flow_matching
    near(draws.weight.sum(), torch.tensor(1.0), 1e-5, "the weights of a batch must sum to 1")
    ordered = (draws.s <= draws.l) & (draws.l <= draws.t) & (draws.s >= 0) & (draws.t <= 1)
    assert ordered.all(), f"times must satisfy 0 ≤ s ≤ l ≤ t ≤ 1, but sample {int((~ordered).nonzero()[0])} does not"
    assert torch.equal(draws.t[:n], draws.s[:n]), f"the first num_flow_matching = {n} samples must have s = t"


def draws_depend_on_the_generator_alone(config: RunConfig) -> None:
    torch.manual_seed(0)
    first = draws_of(config)
    torch.manual_seed(1)
    assert torch.equal(first.t, draws_of(config).t), "draw must use its generator, not the global random state"


def losses_have_a_value_per_sample(config: RunConfig) -> None:
    losses = model_of(config).losses()
    assert losses.loss.shape == (BATCH,), f"loss must have shape [{BATCH}], not {list(losses.loss.shape)}"
    assert losses.loss.isfinite().all(), "the loss must be finite"
    for name, values in losses.terms.items():
        assert values.ndim == 1, f"the term {name} must have one dimension, not shape {list(values.shape)}"
        assert not values.requires_grad, f"the term {name} must have no gradient"


def losses_repeat(config: RunConfig) -> None:
    model = model_of(config)
    first = model.losses().loss
    torch.manual_seed(1)
    assert torch.equal(first, model.losses().loss), "losses must be a function of network, data, labels and draws"


def gradients_are_finite(config: RunConfig) -> None:
    model = model_of(config)
    gradients = model.gradients(model.draws)
    assert torch.cat(gradients).isfinite().all(), "gradients must be finite"
    assert torch.cat(gradients).abs().max() > 0, "the gradient is zero"


def workers_add_up(config: RunConfig) -> None:
    model = model_of(config)
    whole = torch.cat(model.gradients(model.draws))
    shares = [torch.cat(model.gradients(model.draws.share(rank, 2), slice(rank, None, 2))) for rank in range(2)]
    near(shares[0] + shares[1], whole, ROUNDING, "the gradients of two workers' shares must add up to the batch's")


def solution_starts_at_x(config: RunConfig) -> None:
    model, t = model_of(config), torch.full((BATCH,), 0.7, dtype=torch.float64)
    solution = model.objective.solution(model.network, model.data, t, t, model.labels)
    near(solution, model.data, ROUNDING, "solution(x, t, t) must be x")


def velocity_is_the_derivative(config: RunConfig) -> None:
    model, t = model_of(config), torch.full((BATCH,), 0.7, dtype=torch.float64)
    solution = partial(model.objective.solution, model.network, model.data, t)
    slope = (solution(t, model.labels) - solution(t - STEP, model.labels)) / STEP
    velocity = model.objective.velocity(model.network, model.data, t, model.labels)
    # One-sided, as s must not exceed t: its error is of order STEP.
    near(
        slope, velocity, 100 * FINITE_DIFFERENCE, "velocity(x, t) must be the derivative of solution(x, t, s) at s = t"
    )


OBJECTIVE: dict[str, Callable[[RunConfig], None]] = {
    "draws: ordered times, weights that sum to 1": draws_are_valid,
    "draws: a function of the generator": draws_depend_on_the_generator_alone,
    "losses: a finite value per sample": losses_have_a_value_per_sample,
    "losses: no hidden randomness": losses_repeat,
    "losses: finite gradients": gradients_are_finite,
    "losses: two workers add up to one": workers_add_up,
    "solution: the identity at s = t": solution_starts_at_x,
    "velocity: the solution's derivative at s = t": velocity_is_the_derivative,
    "training: a resumed run equals an undisturbed one": resume_is_exact,
}
