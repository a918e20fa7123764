"""Ray, Optuna and MLflow around soflow: clusters, warm workers, sweeps and tracking.

The names below are the public interface; the documentation describes them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestration.sweep.config import SweepConfig
    from orchestration.sweep.results import Sweep, load_sweep, start_sweep, sweep_config

__all__ = [
    "Sweep",
    "SweepConfig",
    "load_sweep",
    "start_sweep",
    "sweep_config",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import orchestration` imports neither Ray nor Optuna."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module("orchestration.sweep.results"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
