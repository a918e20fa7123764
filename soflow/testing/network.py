"""Checks of a network, with disturbed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from soflow.autodiff import directional_derivative
from soflow.config import RunConfig
from soflow.testing.model import FINITE_DIFFERENCE, STEP, model_of, near, new_network
from soflow.testing.resume import resume_is_exact


def shape_and_dtype_are_kept(config: RunConfig) -> None:
    for dtype in (torch.float32, torch.float64):
        model = model_of(config, dtype)
        output = model.call()
        assert output.shape == model.data.shape, (
            f"F(x) must have x's shape {list(model.data.shape)}, not {list(output.shape)}"
        )
        assert output.dtype == dtype, f"F(x) must have x's type {dtype}, not {output.dtype}"


def bfloat16_works(config: RunConfig) -> None:
    model = model_of(config, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.call()
    assert output.isfinite().all(), "with autocast to bfloat16, F(x) is not finite"


def initial_weights_depend_on_the_seed_alone(config: RunConfig) -> None:
    first, second = new_network(config), new_network(config)
    for (name, weights), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(weights, other), f"two networks with the same seed differ in {name}"


def samples_are_independent(config: RunConfig) -> None:
    model = model_of(config)
    whole = model.call()
    near(model.call(slice(3)), whole[:3], 1e-7, "a sample's output must not depend on the others in its batch")


def every_input_matters(config: RunConfig) -> None:
    model = model_of(config)
    before = model.call()
    others: dict[str, Any] = {
        "data": model.data.flip(0),
        "t": model.t / 2 + 0.5,
        "s": model.s / 2,
        "labels": model.labels.flip(0),
    }
    if not config.dataset.conditional:
        del others["labels"]
    for name, other in others.items():
        assert not torch.equal(before, replace(model, **{name: other}).call()), f"F does not depend on {name}"


def null_label_is_known(config: RunConfig) -> None:
    model = model_of(config)
    null = model.objective.num_classes
    output = replace(model, labels=torch.full_like(model.labels, null)).call()
    assert output.isfinite().all(), f"with label {null}, the null label, F is not finite"


def all_weights_get_gradients(config: RunConfig) -> None:
    model = model_of(config)
    model.call().square().sum().backward()
    unused = [
        name for name, weights in model.network.named_parameters() if weights.requires_grad and weights.grad is None
    ]
    assert not unused, f"not used, which DistributedDataParallel refuses: {', '.join(unused)}"


def forward_mode_works(config: RunConfig) -> None:
    model = model_of(config)

    def output(x: Tensor, t: Tensor) -> Tensor:
        return model.network(x, t, model.s, model.labels)

    v, one = model.draws.noise, torch.ones_like(model.t)
    try:
        _, product = directional_derivative(output, (model.data, model.t), (v, one))
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(
            f"no Jacobian-vector product, which MeanFlow needs ({str(error).splitlines()[0]})"
        ) from None
    ahead, behind = (output(model.data + h * v, model.t + h) for h in (STEP, -STEP))
    difference = (ahead - behind) / (2 * STEP)
    near(product, difference, FINITE_DIFFERENCE, "the Jacobian-vector product must equal a central difference")


NETWORK: dict[str, Callable[[RunConfig], None]] = {
    "output: shape and type of x": shape_and_dtype_are_kept,
    "output: finite in bfloat16": bfloat16_works,
    "output: samples are independent": samples_are_independent,
    "output: depends on x, t, s and label": every_input_matters,
    "output: knows the null label": null_label_is_known,
    "weights: a function of the seed": initial_weights_depend_on_the_seed_alone,
    "weights: all are used": all_weights_get_gradients,
    "Jacobian-vector product: exact": forward_mode_works,
    "training: a resumed run equals an undisturbed one": resume_is_exact,
}
