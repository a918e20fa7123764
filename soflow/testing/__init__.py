"""Checks of your own objective, network or dataset: `python -m soflow.testing objective my_lab:MyObjective`.

Each check is a function that raises AssertionError with a reason:

    @pytest.mark.parametrize("check", checks(config, "objective"), ids=str)
    def test_my_objective(check):
        check()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from soflow.config import RunConfig
from soflow.testing.dataset import DATASET
from soflow.testing.network import NETWORK
from soflow.testing.objective import OBJECTIVE

KINDS = {"objective": OBJECTIVE, "network": NETWORK, "dataset": DATASET}


@dataclass(frozen=True)
class Check:
    """Check of a configuration, with its description as text."""

    description: str
    function: Callable[[RunConfig], None]
    config: RunConfig

    def __call__(self) -> None:
        self.function(self.config)

    def __str__(self) -> str:
        return self.description


def checks(config: RunConfig, kind: str) -> list[Check]:
    """Return the checks of the configured objective, network or dataset.

    Args:
        kind: "objective", "network" or "dataset".
    """
    return [Check(description, function, config) for description, function in KINDS[kind].items()]
