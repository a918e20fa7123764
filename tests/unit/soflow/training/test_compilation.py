"""Compiled derivatives, and the check of derivatives that are not computed exactly."""

from __future__ import annotations

import pytest
import torch
from helpers import CPU, compile_with, tiny_config

from soflow.config_base import ConfigError
from soflow.data import open_source
from soflow.training import compilation
from soflow.training.compilation import check_derivative, disturbed
from soflow.training.trainer import Trainer


@pytest.fixture(scope="module")
def digits():
    return open_source(tiny_config().dataset)


def trainer(digits, **sections) -> Trainer:
    return Trainer(tiny_config("meanflow", **sections), digits, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    "jvp", ["subset", *(pytest.param(jvp, marks=pytest.mark.soak) for jvp in ("separate", "with_gradient"))]
)
@pytest.mark.parametrize(
    ("backend", "network"),
    [("aot_eager", "Perceptron"), pytest.param("inductor", "one_block", marks=pytest.mark.soak)],
)
def test_compiled_training_takes_the_eager_steps(backend, network, jvp, digits, monkeypatch):
    """With Inductor, test_options.py has one form; attention and the other forms are compiled in soak tests."""
    compile_with(monkeypatch, backend)
    eager, compiled = (
        trainer(
            digits,
            objective={"jvp": jvp},
            network={"name": f"tests.networks:{network}"},
            training={"total_steps": 4, "compile": on},
        )
        for on in (False, True)
    )
    assert not eager.approximates_derivative
    assert compiled.approximates_derivative
    expected, found = eager.advance(4), compiled.advance(4)
    # float32 sums in another order, over four steps.
    assert compiled.derivative_error() < 1e-5
    for name in ("loss/average_velocity", "loss/flow_matching", "gradient/norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_a_derivative_by_differences_is_close_to_the_exact_one(digits):
    training = trainer(digits, objective={"jvp": "finite_difference"})
    training.advance(3)
    # The truncation error of h = 0.005, and rounding of 2^-24 / h.
    assert 0 < training.derivative_error() < 1e-2


def test_a_step_of_differences_that_is_too_wide_or_too_fine_is_refused(digits):
    for step, reason in ((0.49, "0.49"), (1e-7, "1e-07")):
        with pytest.raises(
            ConfigError, match=rf"finite_difference_step = {reason}: .*(differs from the exact|resolution)"
        ):
            trainer(digits, objective={"jvp": "finite_difference", "finite_difference_step": step})


@pytest.mark.parametrize("error", [0.0011, float("nan"), float("inf")])
def test_wrong_compiled_derivatives_are_refused_with_both_numbers(error):
    config = tiny_config("meanflow", training={"compile": True})
    check_derivative(0.0009, config)
    with pytest.raises(
        ConfigError, match=rf"training.compile = True: du/dt differs .* by {error:.2g}, .* than the 0.001"
    ):
        check_derivative(error, config)


def test_the_disturbance_of_the_weights_leaves_no_trace(digits):
    network = trainer(digits).network
    before = [weights.clone() for weights in network.parameters()]
    state = torch.get_rng_state()
    with disturbed(network):
        assert not any(torch.equal(w, b) for w, b in zip(network.parameters(), before, strict=True))
    assert all(torch.equal(w, b) for w, b in zip(network.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_compiler_training_runs_eagerly(digits, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "compiler_problem", lambda device: "no C++ compiler")
    training = trainer(digits, training={"compile": True})
    assert not training.approximates_derivative
    assert not training.compiled
    assert "training.compile = True: the compiler does not work (no C++ compiler)" in caplog.text


@pytest.mark.slow
def test_a_change_of_lambda_batch_or_labels_compiles_nothing_again(digits, monkeypatch):
    """Sizes that differ by step, call and trial are compiled once: with gradient, without, and the backward pass."""
    compile_with(monkeypatch, "aot_eager")
    found = []
    for share, batch, drop in ((0.3, 24, 0.1), (0.6, 24, 0.4), (0.45, 17, 0.1)):
        sections = {
            "objective": {"flow_matching_fraction": share, "label_drop": drop},
            "network": {"name": "tests.networks:Perceptron"},
            "training": {"batch_size": batch, "compile": True},
        }
        found.append(Trainer(tiny_config("soflow", **sections), digits, CPU).advance(4))
    counts = [metrics["compile/count"] for metrics in found]
    assert 2 <= counts[0] <= 3
    assert counts[1:] == [0, 0]
    assert found[0]["time/train_s"] < found[0]["time/compile_s"]  # four tiny steps: compilation is not part of them


def test_without_compilation_none_is_reported(digits):
    assert not any("compile" in name for name in trainer(digits).advance(1))


def test_fused_attention_is_refused_without_cuda(digits):
    with pytest.raises(ConfigError, match=r"objective.jvp_attention = flash: needs a CUDA device; set it to math"):
        trainer(digits, objective={"jvp_attention": "flash"})
