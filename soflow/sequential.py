"""Tests that look at the results several times: a few seeds first, more only where nothing is decided yet.

Looking often makes false positives likely, so the error rate is spent look by look (Lan and DeMets 1983, Biometrika
70). Values are normal with unknown scatter, so every look is Student's test. Its statistics at all looks have a joint
distribution without unknown parameters if the tested mean is true, and critical values are computed from that
distribution by recursive integration (Armitage, McPherson and Rowe 1969, J. R. Stat. Soc. A 132), exactly also for
five seeds, where the usual normal approximation is not.

A p-value over looks is the smallest level at which the test would have rejected by now (Liu and Anderson 2008, J. Am.
Stat. Assoc. 103). Wherever one stops, it is at most a with a probability of at most a, so that p-values of several
hypotheses can be corrected together like any others (Maurer and Bretz 2013, Stat. Biopharm. Res. 5).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import special

Spending = Literal["pocock", "obrien_fleming"]
"""How the error rate is spent: pocock = from the first look on, obrien_fleming = nearly all at the end."""
_FARTHEST, _CELL = 6.5, 0.05
"""Range ± of the grid in standard deviations, and the width of its cells."""
_LEVELS = np.geomspace(1e-9, 1.0, 361)
"""Levels whose critical values are tabulated; p-values are interpolated between them."""


def spent(level: float, fraction: float, spending: Spending) -> float:
    """Compute the part of a one-sided error rate that is spent once this fraction of the seeds is there.

    Lan and DeMets' functions, whose critical values resemble those of Pocock and of O'Brien and Fleming.
    """
    if spending == "pocock":
        return level * math.log1p((math.e - 1) * fraction)
    return float(2 * special.ndtr(special.ndtri(level / 2) / math.sqrt(fraction)))


class SequentialTest:
    """Student's test of a mean at several looks.

    Args:
        seeds: number of values at each look so far, growing, each at least 3.
        most: number of values at the last planned look.
        sides: 2 rejects for large positive and negative statistics, 1 for large positive ones only.
        cell: width of the grid's cells in standard deviations; the error of a probability is of order cell².

    Raises:
        ValueError: if the numbers do not grow, or do not fit.
    """

    def __init__(
        self, seeds: Sequence[int], most: int, spending: Spending = "pocock", sides: int = 2, cell: float = _CELL
    ):
        if not seeds or any(later <= earlier for earlier, later in zip((2, *seeds), seeds, strict=False)):
            raise ValueError(f"seeds = {list(seeds)}: must grow from look to look, from at least 3")
        if seeds[-1] > most:
            raise ValueError(f"seeds = {list(seeds)}: must be at most {most}")
        self.seeds, self.most, self.spending, self.sides = tuple(seeds), most, spending, sides
        self._edges = np.linspace(-_FARTHEST, _FARTHEST, round(2 * _FARTHEST / cell) + 1)
        self._steps = [_transition(before, after, len(self._edges)) for before, after in itertools.pairwise(seeds)]

    def critical(self, level: float) -> list[float]:
        """Compute the critical value of Student's statistic at each look."""
        return [float(_to_t(z, n - 1)) for z, n in zip(self._boundaries(level), self.seeds, strict=True)]

    def p_at(self, look: int, statistic: np.ndarray | float) -> np.ndarray:
        """Compute the smallest level that rejects at one look, for Student's statistics of any shape.

        The p-value over looks is the smallest of theirs. With `sides` = 2 the sign does not matter.
        """
        values = np.abs(statistic) if self.sides == 2 else np.asarray(statistic)
        z = _to_normal(values, self.seeds[look] - 1)
        # Boundaries decrease as levels increase, and interpolation needs increasing abscissas.
        return np.exp(np.interp(-z, -self._table[:, look], np.log(_LEVELS)))

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Boundaries [levels, looks] on the scale of standard normal quantiles."""
        return np.array([self._boundaries(level) for level in _LEVELS])

    def _boundaries(self, level: float) -> list[float]:
        """Find the boundary of each look in standard normal quantiles of Student's distribution."""
        edges, boundaries, before = self._edges, [], 0.0
        mass = np.diff(special.ndtr(edges))  # the first look's quantile is standard normal
        for look, n in enumerate(self.seeds):
            if look:
                mass = mass @ self._steps[look - 1]
            one_side = spent(level / self.sides, n / self.most, self.spending)
            boundary = self._boundary(mass, one_side - before, first=look == 0)
            before = one_side
            boundaries.append(boundary)
            kept = np.clip((boundary - edges[:-1]) / (edges[1] - edges[0]), 0, 1)
            mass = mass * (kept * kept[::-1] if self.sides == 2 else kept)
        return boundaries

    def _boundary(self, mass: np.ndarray, one_side: float, first: bool) -> float:
        """Find the value above which this probability lies; 0 if it is that of one of two sides and all is spent."""
        if first:
            return float(-special.ndtri(one_side))
        above = np.concatenate([np.cumsum(mass[::-1])[::-1], [0.0]])
        positive, lowest = above > 0, 0.0 if self.sides == 2 else -_FARTHEST
        if one_side >= above[0] / self.sides:
            return lowest
        return float(max(np.interp(-math.log(one_side), -np.log(above[positive]), self._edges[positive]), lowest))


def _to_t(z: np.ndarray | float, freedom: int) -> np.ndarray:
    """Convert standard normal quantiles to those of Student's distribution."""
    return -np.sign(z) * special.stdtrit(freedom, special.ndtr(-np.abs(z)))


def _to_normal(t: np.ndarray, freedom: int) -> np.ndarray:
    return -np.sign(t) * special.ndtri(special.stdtr(freedom, -np.abs(t)))


@functools.lru_cache(maxsize=64)
def _transition(before: int, after: int, num_edges: int) -> np.ndarray:
    """Compute the probabilities [from, to] of the statistic's cells after more values, given its cell before them."""
    steps = (_one_more(n, num_edges) for n in range(before, after))
    return functools.reduce(np.matmul, steps)


@functools.lru_cache(maxsize=64)
def _one_more(n: int, num_edges: int) -> np.ndarray:
    """Compute the transition probabilities from n values to n + 1.

    Let S be the sum and Q the sum of squares of n standard normal values, and u = S / √Q. u is a function of Student's
    statistic and independent of Q. With one more value x, u' = (u + v) / √(1 + v²) where v = x / √Q, which is
    Student's with n degrees of freedom over √n and independent of u and all statistics before. So u is a Markov chain.
    """
    edges = np.linspace(-_FARTHEST, _FARTHEST, num_edges)
    middles = (edges[1:] + edges[:-1]) / 2
    t = _to_t(middles[middles >= 0], n - 1)[:, None]
    t_after = _to_t(edges, n)[None, :]
    u, c = math.sqrt(n) * t / np.sqrt(n - 1 + t**2), math.sqrt(n + 1) * t_after / np.sqrt(n + t_after**2)
    # u' = ± c where (1 − c²) v² + 2uv + u² − c² = 0. The discriminant u² + 1 − c², without cancellation:
    root = np.sqrt(np.clip((n + 1) * n / (n + t_after**2) - n * (n - 1) / (n - 1 + t**2), 0, None))
    q = -(u + np.where(u < 0, -1.0, 1.0) * np.abs(c) * root)
    one_less = 1 - c**2
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.stack([q / one_less, (u**2 - c**2) / q])
    roots = np.nan_to_num(roots, nan=0.0)
    low, high = (special.stdtr(n, math.sqrt(n) * v) for v in (roots.min(axis=0), roots.max(axis=0)))
    between = np.where(root > 0, high - low, 0.0)
    # |u'| > 1 needs the sign of u, which is positive here; the other half of the rows follows by symmetry.
    below = np.where(np.abs(c) < 1, np.where(c >= 0, high, low), np.where(c > 0, 1 - between, 0.0))
    below[:, 0], below[:, -1] = 0.0, 1.0
    upper = np.diff(below, axis=1)
    steps = np.concatenate([upper[::-1, ::-1][: len(middles) - len(upper)], upper])
    # A cell's mass is moved as if it were at its middle, which widens the distribution by cell² / 12 at every step.
    # Subtracting this (Sheppard's correction) keeps the error from adding up.
    curvature = np.zeros_like(steps)
    curvature[1:-1] = steps[2:] - 2 * steps[1:-1] + steps[:-2]
    return steps - curvature / 24
