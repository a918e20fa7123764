"""Predicted memory against what workers have: refusals with their numbers, and micro-batches that fit."""

from __future__ import annotations

import pickle

import pytest
from helpers import tiny_config

from orchestration import memory_fit
from orchestration.memory_fit import MemoryBudget, check_memory, micro_batches_that_fit, predict_memory
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig
from soflow.config import override, to_dict
from soflow.config_base import ConfigError
from soflow.cost.predict import predict

SMALL = {"name": "DiT-XXS/4"}


def budget(bytes_per_worker: float) -> MemoryBudget:
    return MemoryBudget(bytes_per_worker, "a node's 1.0 GiB for 2 workers")


@pytest.fixture(scope="module")
def config():
    """Large enough a batch for its activations to weigh more than the weights."""
    return tiny_config(network=SMALL, training={"batch_size": 256})


@pytest.fixture(scope="module")
def peak(config) -> int:
    return predict(config).peak_bytes


def test_a_prediction_is_made_once_also_for_the_slots_of_a_sweep(monkeypatch):
    made = []
    monkeypatch.setattr(memory_fit, "_predicted", {})
    monkeypatch.setattr(memory_fit, "_predict", lambda values: made.append(values) or (1000, 10))
    sweep = SweepConfig.model_validate(to_dict(tiny_config(network=SMALL)))
    predict_memory(sweep)  # while Ray starts
    known = budget(2000)
    check_memory(sweep, known)
    slots = pickle.loads(pickle.dumps(known))
    monkeypatch.setattr(memory_fit, "_predicted", {})  # in another process
    assert micro_batches_that_fit(sweep.run, slots, num_workers=1) == 1
    assert len(made) == 1


def test_what_fits_is_trained_whole(config, peak):
    assert micro_batches_that_fit(config, budget(2 * peak), num_workers=1) == 1
    assert micro_batches_that_fit(config, budget(peak / 1.05), num_workers=1) == 1  # within the error of predictions


def test_what_does_not_fit_is_trained_in_parts_of_the_size_that_does(config, peak):
    parts = micro_batches_that_fit(config, budget(0.7 * peak), num_workers=1)
    assert parts > 1
    smaller = predict(tiny_config(network=SMALL, training={"batch_size": 256 // parts})).peak_bytes
    assert smaller < 0.7 * peak
    assert micro_batches_that_fit(config, budget(0.7 * peak), num_workers=2) < parts  # which have half the samples each


def test_what_cannot_fit_is_refused_with_the_numbers(config):
    with pytest.raises(ConfigError) as refusal:
        micro_batches_that_fit(config, budget(2**20), num_workers=1)
    message = str(refusal.value)
    assert message.startswith("network.name = DiT-XXS/4: training needs 0.0")
    for part in ("2 samples at a time", "± 10%", "available are 0.00 GiB (a node's 1.0 GiB for 2 workers)", "smaller"):
        assert part in message
    assert "\n" not in message


def test_a_sweep_is_refused_only_if_none_of_its_networks_fits():
    sweep = SweepConfig.model_validate(
        to_dict(tiny_config(network=SMALL, training={"batch_size": 4}))
        | {"search": ("network.name=DiT-XXS/4,DiT-XS/2",)}
    )
    space = search_space.build(sweep)
    small = predict(tiny_config(network=SMALL, training={"batch_size": 2})).peak_bytes
    large = predict(tiny_config(network={"name": "DiT-XS/2"}, training={"batch_size": 2})).peak_bytes
    between = budget((small * large) ** 0.5)
    assert 3 * small < large
    check_memory(sweep, between, space)
    large_base = SweepConfig.model_validate(override(to_dict(sweep), {"network.name": "DiT-XS/2"}))
    check_memory(large_base, between, space)
    with pytest.raises(ConfigError, match=r"network\.name = DiT-XS/2: training needs"):
        check_memory(large_base, between)
    with pytest.raises(ConfigError, match=r"network\.name = DiT-XXS/4: training needs"):
        check_memory(sweep, budget(small / 4), space)
