"""Means of an objective's terms over the steps between two reports, and points of the learning curves among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Reduce = Callable[[Tensor, str], Tensor]
"""All-reduce of a tensor over the workers, by "SUM" or "MIN"."""


@dataclass
class TermTotals:
    """Sums of per-sample terms, kept on the device so that no step waits for it."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sum and number of the values of each term, [2]."""
    points: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)
    """Totals up to the steps that become points of the learning curves."""

    def add(self, terms: dict[str, Tensor]) -> None:
        """Add the terms of a step, each [n]."""
        for name, values in terms.items():
            pair = torch.stack([values.sum(), values.new_tensor(float(len(values)))])
            self.totals[name] = self.totals[name] + pair if name in self.totals else pair

    def mark(self, step: int) -> None:
        """Make a point of the learning curves at this step."""
        self.points.append((step, dict(self.totals)))

    def means(self, reduce: Reduce) -> dict[str, float]:
        """Return the means over all steps and workers, as "loss/NAME"."""
        return _means(self.totals, reduce)

    def curve(self, reduce: Reduce, norms: Tensor, begin: int) -> list[tuple[int, dict[str, float]]]:
        """Return the points: step, and means and median gradient norm since the point before, as "train/NAME".

        Args:
            norms: gradient norm of every step, the first of which follows step `begin`.
        """
        curve, previous, last = [], dict[str, Tensor](), begin
        for step, totals in self.points:
            since = {name: total - previous.get(name, 0) for name, total in totals.items()}
            values = _means(since, reduce) | {"gradient/norm": norms[last - begin : step - begin].median().item()}
            curve.append((step, {f"train/{name}": value for name, value in values.items()}))
            previous, last = totals, step
        return curve


def _means(totals: dict[str, Tensor], reduce: Reduce) -> dict[str, float]:
    if not totals:
        return {}
    sums = reduce(torch.stack(list(totals.values())), "SUM").tolist()
    return {f"loss/{name}": total / n for name, (total, n) in zip(totals, sums, strict=True) if n}
