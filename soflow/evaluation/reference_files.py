"""Files of reference statistics: `.npz` with `mu` and `sigma` (ADM's format), and torch-fidelity's cache files (`.pt`).

torch-fidelity stores a dataset's FID statistics in <cache root>/<name>-<extractor>-stat-fid-<layer>.pt, a dictionary of
NumPy arrays: the mean in float32 like the features, the covariance in float64.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from soflow.config_base import ConfigError, first_line
from soflow.evaluation.registry import feature_network_info
from soflow.files import sha256, write_atomic

if TYPE_CHECKING:
    from soflow.config import RunConfig

NAMES = ("mu", "sigma")


def read_configured(config: RunConfig) -> dict[str, np.ndarray]:
    """Read `mu` [D] and `sigma` [D, D], float64, from the file evaluation.reference.

    Raises:
        ConfigError: if the file is missing, damaged, made with another feature network or contains no statistics, or
            if a configured metric needs more than statistics.
    """
    path, wanted = config.evaluation.reference, config.evaluation.reference_sha256
    assert path is not None
    if wanted and path.is_file() and not (found := sha256(path)).startswith(wanted.lower()):
        raise ConfigError(
            f"evaluation.reference = {path}: is another file than evaluation.reference_sha256 = {wanted} says, it has "
            f"{found[:12]}…; FIDs against different references differ"
        )
    if config.evaluation.precision_recall:
        raise ConfigError(
            f"evaluation.precision_recall = True: needs the features of the data; leave it out or leave out "
            f"evaluation.reference = {path}, which contains statistics only"
        )
    try:
        statistics = _read_npz(path, config.feature_network) if path.suffix == ".npz" else _read_torch_fidelity(path)
        _check(statistics, config.feature_network)
    except _UnusableError as fault:
        raise ConfigError(f"evaluation.reference = {path}: {fault}") from None
    return statistics


def check_weights(path: Path, weights_sha256: Callable[[], str]) -> None:
    """Check that a file of statistics, if it says with which weights of the feature network it was made, says these.

    Args:
        weights_sha256: computes the hash of the weights, which may be gigabytes; called only if the file has one.

    Raises:
        ConfigError: if it was made with others.
    """
    if path.suffix != ".npz":
        return
    with np.load(path, allow_pickle=False) as file:
        made_with = _made(file).get("feature_weights_sha256")
    if made_with and not (found := weights_sha256()).startswith(made_with):
        raise ConfigError(
            f"evaluation.reference = {path}: was made with other weights of the feature network ({made_with}…, not "
            f"{found[:12]}…), so FIDs would compare two feature spaces; make the file again with "
            "experiments/reference_statistics.py, or set evaluation.feature_weights to the weights it was made with"
        )


def write_npz(path: Path, statistics: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write `mu` and `sigma`, and `made`, a JSON text that describes their origin."""
    buffer = io.BytesIO()
    np.savez(buffer, mu=statistics["mu"], sigma=statistics["sigma"], made=np.array(json.dumps(facts)))
    write_atomic(path, buffer.getvalue())


def write_torch_fidelity(root: Path, name: str, feature_network: str, statistics: dict[str, np.ndarray]) -> Path:
    """Write the cache file that torch-fidelity reads for an input with the cache name `name`, and return its path."""
    import torch

    info = feature_network_info(feature_network)
    path = root / f"{name}-{info.extractor}-stat-fid-{info.layer}.pt"
    buffer = io.BytesIO()
    torch.save({"mu": statistics["mu"].astype(np.float32), "sigma": statistics["sigma"].astype(np.float64)}, buffer)
    write_atomic(path, buffer.getvalue())
    return path


class _UnusableError(Exception):
    """Reason why a file is unusable as reference; the caller prepends the path."""


def _read_npz(path: Path, feature_network: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            name = Path(feature_network).name
            if (made_with := _made(file).get("feature_network", name)) != name:
                raise _UnusableError(f"was made with {made_with}, not evaluation.feature_network = {feature_network}")
            return _as_statistics({name: file[name] for name in file.files if name in NAMES}, file.files)
    except FileNotFoundError:
        raise _UnusableError("no such file") from None
    except _UnusableError:
        raise
    except Exception as error:  # a damaged archive can fail in any way
        raise _UnusableError(f"cannot be read as .npz ({first_line(error)})") from None


def _made(file: np.lib.npyio.NpzFile) -> dict[str, Any]:
    """Return what `write_npz` has noted about the origin; empty for files of other programs."""
    return json.loads(str(file["made"])) if "made" in file.files else {}


def _read_torch_fidelity(path: Path) -> dict[str, np.ndarray]:
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise _UnusableError("no such file") from None
    except Exception as error:  # unpickling can fail in any way
        raise _UnusableError(
            f"cannot be read as torch-fidelity's cache file ({first_line(error)}); a file in ADM's format must be "
            "named .npz"
        ) from None
    return _as_statistics(content, list(content) if isinstance(content, dict) else type(content).__name__)


def _numpy_globals() -> list[Any]:
    """Return the globals that torch must be allowed to unpickle for NumPy arrays of numbers, by old and new names."""
    import _codecs

    rebuild = np.zeros(1).__reduce__()[0]
    names = [f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8")]
    return [*((rebuild, name) for name in names), np.ndarray, np.dtype, *kinds, _codecs.encode]


def _as_statistics(content: Any, description: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, dict) or not all(isinstance(content.get(name), np.ndarray) for name in NAMES):
        raise _UnusableError(f"must contain the arrays mu and sigma, not {description}")
    try:
        return {name: content[name].astype(np.float64) for name in NAMES}
    except (TypeError, ValueError):
        raise _UnusableError(f"mu and sigma must contain numbers, not {content['mu'].dtype}") from None


def _check(statistics: dict[str, np.ndarray], feature_network: str) -> None:
    mu, sigma = statistics["mu"], statistics["sigma"]
    if mu.ndim != 1 or sigma.shape != (*mu.shape, *mu.shape):
        raise _UnusableError(f"mu must have shape (D,) and sigma (D, D), not {mu.shape} and {sigma.shape}")
    num_features = feature_network_info(feature_network).num_features
    if len(mu) != num_features:
        raise _UnusableError(
            f"contains statistics of {len(mu)} features, but evaluation.feature_network = {feature_network} has "
            f"{num_features}"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise _UnusableError("mu and sigma must be finite")
    # The tolerance allows float32 rounding of a covariance, but rejects matrices that are not one.
    if np.abs(sigma - sigma.T).max() > 1e-6 * np.abs(sigma).max() or np.diagonal(sigma).min() < 0:
        raise _UnusableError("sigma must be a covariance, symmetric with a diagonal that is not negative")
