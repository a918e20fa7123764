"""Check that a run resumes exactly."""

from __future__ import annotations

import copy

import torch

from soflow import data
from soflow.config import RunConfig, override, parse, to_dict
from soflow.testing.model import BATCH, CPU
from soflow.training.trainer import Trainer


def resume_is_exact(config: RunConfig) -> None:
    short = parse(override(to_dict(config), {"training.total_steps": 4, "training.batch_size": BATCH}))
    source = data.open_source(config.dataset)
    undisturbed, resumed = Trainer(short, source, CPU), Trainer(short, source, CPU)
    undisturbed.advance(4)
    resumed.advance(2)
    state = copy.deepcopy(resumed.state_dict())
    resumed = Trainer(short, source, CPU)
    resumed.load_state_dict(state)
    resumed.advance(2)
    for (name, weights), other in zip(
        undisturbed.network.named_parameters(), resumed.network.parameters(), strict=True
    ):
        assert torch.equal(weights, other), f"{name} differs between a resumed and an undisturbed run"
