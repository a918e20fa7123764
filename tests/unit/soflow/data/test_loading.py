"""Batches: the same in any number of processes, shares that add up, any step to begin at."""

from __future__ import annotations

import pytest
import torch
from helpers import CPU

from soflow.data import open_source
from soflow.data.config import DatasetConfig
from soflow.data.loading import EpochOrder, batches

BATCH, STEPS = 32, 6


@pytest.fixture(scope="module")
def digits():
    return open_source(DatasetConfig())


@pytest.fixture
def order(digits):
    return EpochOrder(len(digits), BATCH, seed=3)


def load(digits, order, steps=range(STEPS), **options):
    return list(batches(digits, order, steps, CPU, **options))


def test_batches_are_the_order_s(digits, order):
    found = load(digits, order)
    assert len(found) == STEPS
    for step, (samples, labels) in enumerate(found):
        images, classes = digits.batch(order.indices(step))
        assert torch.equal(samples, torch.from_numpy(images))
        assert torch.equal(labels, torch.from_numpy(classes))
        assert (samples.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_processes_that_read_ahead_change_nothing(digits, order):
    for here, ahead in zip(load(digits, order), load(digits, order, processes=2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here, ahead, strict=True))


def test_workers_share_each_batch_and_later_steps_need_no_earlier_ones(digits, order):
    whole = load(digits, order)[4][0]
    parts = [load(digits, order, range(4, 5), rank=rank, world_size=2)[0][0] for rank in range(2)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)
