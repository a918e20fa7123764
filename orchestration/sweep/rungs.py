"""Rungs of early stopping, from the configuration alone."""

from __future__ import annotations

from orchestration.sweep.config import SweepConfig


def rungs(config: SweepConfig) -> tuple[int, ...]:
    """Compute the total steps of the complete trainings of a trial, ascending; the last is the configured number.

    A trial has one training, unless trials are compared at equal progress. All but the last are multiples of
    `report_every`.
    """
    stopping, training = config.early_stopping, config.training
    steps = [training.total_steps]
    if stopping.compare == "equal_progress" and stopping.kind != "none":
        while True:
            shorter = training.total_steps // stopping.reduction_factor ** len(steps)
            shorter -= shorter % training.report_every
            if shorter < grace_steps(config):
                break
            steps.append(shorter)
    return tuple(reversed(steps))


def grace_steps(config: SweepConfig) -> int:
    """Compute the steps that every trial takes before it may be stopped."""
    return min(config.early_stopping.grace_reports * config.training.report_every, config.training.total_steps)
