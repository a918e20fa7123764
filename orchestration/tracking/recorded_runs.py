"""What a journal of events holds of each run, in short: the last steps of its series and whether it has ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SERIES = ("metrics", "image")
"""Kinds of events of which a run has one per name and step."""


class RecordedRuns:
    """Grows with the number of runs, not of their steps: names that are always recorded together share one last step.

    Attributes:
        open: keys of the runs that were started and not ended, oldest first.
    """

    def __init__(self):
        self.open: dict[str, None] = {}
        self._last_steps: dict[str, dict[frozenset[str], int]] = {}
        self._groups: dict[frozenset[str], frozenset[str]] = {}  # each once in memory, whatever the number of runs

    def add(self, event: dict[str, Any]) -> None:
        kind, key = event["kind"], event["key"]
        if kind in SERIES:
            names = event["metrics"] if kind == "metrics" else [event["name"]]
            self._note(key, [f"{kind}/{name}" for name in names], event["step"])
        elif kind == "start":
            self.open[key] = None
        elif kind == "end":
            self.open.pop(key, None)

    def new_names(self, kind: str, key: str, names: Iterable[str], step: int) -> set[str]:
        """Those of a run's series that have not come to this step yet."""
        there = [group for group, last in self._last_steps.get(key, {}).items() if last >= step]
        return {name for name in names if not any(f"{kind}/{name}" in group for group in there)}

    def _note(self, key: str, series: list[str], step: int) -> None:
        names = frozenset(series)
        names = self._groups.setdefault(names, names)
        last = self._last_steps.setdefault(key, {})
        last[names] = max(step, last.get(names, step))

    def state(self) -> dict[str, Any]:
        """As JSON types, for `load`."""
        groups = {names: position for position, names in enumerate(self._groups)}
        last_steps = {
            key: [[groups[names], step] for names, step in last.items()] for key, last in self._last_steps.items()
        }
        return {"open": list(self.open), "groups": [sorted(names) for names in groups], "last_steps": last_steps}

    def load(self, state: dict[str, Any]) -> None:
        groups = [frozenset(names) for names in state["groups"]]
        self._groups = {names: names for names in groups}
        self._last_steps = {
            key: {groups[position]: step for position, step in last} for key, last in state["last_steps"].items()
        }
        self.open = dict.fromkeys(state["open"])
