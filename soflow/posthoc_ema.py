"""Post-hoc EMA: weights averaged over any length, from saved power-function averages (arXiv 2312.02696, section 3).

An average of weights θ_1 … θ_n after n updates is Σ_k p(k) θ_k; p is its profile. The power-function average of
exponent γ has the profile p(k) = (k^(γ+1) − (k−1)^(γ+1)) / n^(γ+1): for every n the same shape, stretched. Its length
is σ_rel, the standard deviation of p as a fraction of n. Training keeps averages of two lengths and saves snapshots of
them; a weighted sum of snapshots whose profile comes closest to another one's gives the weights of that average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONGEST = 12**-0.5
"""σ_rel of the plain mean of all weights, γ = 0."""
TRAINED = "trained"
"""Name of the average that training evaluates, which every checkpoint contains."""
COLUMNS = 65_536
"""Updates per block of the least-squares sums, to limit memory."""


def exponent(length: float) -> float:
    """Compute γ ≥ 0 from σ_rel, the inverse of σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3)).

    Raises:
        ValueError: if the length is not in (0, 12^(−1/2)].
    """
    if not 0 < length <= LONGEST:
        raise ValueError(f"must be above 0 and at most {LONGEST:.4f}, the length of the plain mean of all weights")
    # (γ + 2)² (γ + 3) = (γ + 1) / σ², a cubic whose largest root is the wanted one.
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return max(0.0, float(roots.real[np.abs(roots.imag) < 1e-6].max()))


def power_decay(num_updates: int, gamma: float) -> float:
    """Return the decay of the power-function average's update that follows `num_updates` others: (1 − 1/n)^(γ+1)."""
    return (num_updates / (num_updates + 1)) ** (gamma + 1)


def ema_decay(num_updates: int, decay: float) -> float:
    """Return the decay of the EMA's update that follows n others: min(d, (1 + n) / (10 + n)).

    While a run is short, its average thus has a length of about a tenth of the updates so far, as with TensorFlow's
    `num_updates`, and the share of its first weights falls with n⁻⁹. The constant decay d = 0.99 would leave 12 % of
    the nearly random first weights in the average after 209 steps. Removing only these would not suffice: the rest of
    the average would still reach back to weights that are far from the present ones, and be much worse than they are.
    From n = (10 d − 1) / (1 − d) on, 890 updates at d = 0.99, the decay is d.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


@dataclass(frozen=True)
class Average:
    """Average of the weights: a power function of length σ_rel, or training's EMA with another decay."""

    length: float | None = None
    decay: float | None = None

    def __str__(self) -> str:
        return f"decay={self.decay:g}" if self.length is None else f"{self.length:g}"

    def profile(self, num_updates: int) -> np.ndarray:
        """Return the weight p(k) of each of the updates k = 1 … n, [n]; they sum to 1."""
        if self.length is not None:
            return power_profile(exponent(self.length), num_updates)
        assert self.decay is not None
        # The first update copies the weights, so that its decay is 0.
        decays = np.array([0.0, *(ema_decay(n, self.decay) for n in range(1, num_updates))])
        kept = np.cumprod(decays[:0:-1])[::-1]  # product of the decays after each update
        return (1 - decays) * np.append(kept, 1.0)


def average_of(text: str) -> Average | None:
    """Read an average: `trained` is None, a number a relative length, `decay=0.999` an EMA's decay.

    Raises:
        ValueError: if it is none of these.
    """
    if text == TRAINED:
        return None
    name, equals, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if name == "decay" and 0 <= number < 1:
        return Average(decay=number)
    if equals or math.isnan(number):
        raise ValueError("must be trained, a relative length such as 0.1, or a decay such as decay=0.999")
    exponent(number)  # raises
    return Average(length=number)


def power_profile(gamma: float, num_updates: int) -> np.ndarray:
    """Return the profile of a power-function average after n updates, [n]."""
    return np.diff((np.arange(num_updates + 1) / num_updates) ** (gamma + 1))


@dataclass(frozen=True)
class Snapshot:
    """Power-function average after some updates."""

    length: float
    num_updates: int


@dataclass(frozen=True)
class Reconstruction:
    """Weighted sum of snapshots that comes closest to an average."""

    coefficients: np.ndarray
    """[snapshots]; they sum to 1, so that weights which do not change are reproduced."""
    error: float
    """Distance of the two profiles relative to the norm of the average's. The relative error of the weights is
    smaller, as far as neighboring steps have similar weights."""


def reconstruct(snapshots: Sequence[Snapshot], average: Average, num_updates: int) -> Reconstruction:
    """Find the coefficients of the snapshots for an average after `num_updates` updates.

    Minimizes ‖Σ_i x_i p_i − p‖² subject to Σ_i x_i = 1 over the profiles' values at all updates.

    Raises:
        ValueError: if no snapshot is that early.
    """
    early = np.array([snapshot.num_updates <= num_updates for snapshot in snapshots], dtype=bool)
    if not early.any():
        raise ValueError(f"there is no snapshot of the first {num_updates} updates")
    used = [snapshot for snapshot, is_early in zip(snapshots, early, strict=True) if is_early]
    profile = average.profile(num_updates)
    gram, right = np.zeros((len(used), len(used))), np.zeros(len(used))
    for begin in range(0, num_updates, COLUMNS):
        block = slice(begin, min(begin + COLUMNS, num_updates))
        rows = np.stack([_part(snapshot, block) for snapshot in used])
        gram += rows @ rows.T
        right += rows @ profile[block]
    size = np.sqrt(np.diagonal(gram))  # normalized, or the profiles of early snapshots would outweigh the others
    ones = 1 / size
    system = np.block([[gram / np.outer(size, size), ones[:, None]], [ones[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(right / size, 1.0), rcond=None)[0][:-1] / size
    squares = float(profile @ profile)
    error = max(0.0, squares - 2 * solution @ right + solution @ gram @ solution) / squares
    coefficients = np.zeros(len(snapshots))
    coefficients[early] = solution
    return Reconstruction(coefficients, error**0.5)


def _part(snapshot: Snapshot, block: slice) -> np.ndarray:
    """Return a block of a snapshot's profile, with zeros after its last update."""
    steps = np.minimum(np.arange(block.start, block.stop + 1), snapshot.num_updates) / snapshot.num_updates
    return np.diff(steps ** (exponent(snapshot.length) + 1))
