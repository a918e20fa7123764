"""One-step image generators: SoFlow, MeanFlow and flow matching, their training, sampling and evaluation.

Symbols follow the SoFlow paper (arXiv 2512.15657). Time runs from t = 0 (data) to t = 1 (noise):

==============  =========================  =====================================================
symbol          name in the code           meaning
==============  =========================  =====================================================
x_0, x_1        ``data``, ``noise``        data sample; standard normal sample
α_t, β_t        ``alpha(t)``, ``beta(t)``  interpolant, x_t = α_t x_0 + β_t x_1
x_t, v_t        ``x_t``, ``v_t``           noised sample and conditional velocity α'_t x_0 + β'_t x_1
F_θ(x, t, s)    ``network(x, t, s, y)``    the backbone
a, b            ``a(t, s)``, ``b(t, s)``   solution parameterization, a(t,t) = 1 and b(t,t) = 0
f_θ(x, t, s)    ``solution(x, t, s)``      a x + b F_θ: state at time s of the trajectory through (x, t)
v_θ(x, t)       ``velocity(x, t)``         ∂_s f_θ at s = t
λ               ``flow_matching_fraction`` fraction of the batch on the flow-matching loss
r(k, K)         ``gap_schedule``           shrinks the gap t − l over training step k of K
w, m            ``guidance_strength``,     training-time classifier-free guidance
                ``velocity_mix``
p, ε            ``weight_power``,          adaptive loss weight
                ``weight_eps``
==============  =========================  =====================================================

The names below are the public interface; the documentation describes them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soflow.config import RunConfig
    from soflow.config_base import ConfigError
    from soflow.data.base import DataError
    from soflow.models import Model, load_model
    from soflow.runs import Run, load_config, load_run, train
    from soflow.training.checkpoints import CheckpointError
    from soflow.training.trainer import NonFiniteLoss

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Model",
    "NonFiniteLoss",
    "Run",
    "RunConfig",
    "load_config",
    "load_model",
    "load_run",
    "train",
]
_MODULES = {
    "CheckpointError": "training.checkpoints",
    "ConfigError": "config_base",
    "DataError": "data.base",
    "Model": "models",
    "NonFiniteLoss": "training.trainer",
    "RunConfig": "config",
    "load_model": "models",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import soflow` imports neither torch nor pydantic."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'runs')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
