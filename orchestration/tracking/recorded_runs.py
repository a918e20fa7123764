"""Summary of a journal of events: last step of each run's series, and the runs that have not ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SERIES = ("metrics", "image")
"""Kinds of events that occur once per run, name and step."""


class RecordedRuns:
    """Index of a spool. Its size depends on the number of runs, not of steps: names logged together share a last step.

    Attributes:
        open: keys of the runs that were started and have not ended, oldest first.
        ended: keys of the runs that have ended.
    """

    def __init__(self):
        self.open: dict[str, None] = {}
        self.ended: set[str] = set()
        self._last_steps: dict[str, dict[frozenset[str], int]] = {}
        self._groups: dict[frozenset[str], frozenset[str]] = {}  # one object per set of names, shared by all runs

    def add(self, event: dict[str, Any]) -> None:
        """Update the index with an event."""
        kind, key = event["kind"], event["key"]
        if kind in SERIES:
            names = event["metrics"] if kind == "metrics" else [event["name"]]
            self._note(key, [f"{kind}/{name}" for name in names], event["step"])
        elif kind == "start":
            self.open[key] = None
            self.ended.discard(key)
        elif kind == "end":
            self.open.pop(key, None)
            self.ended.add(key)

    def new_names(self, kind: str, key: str, names: Iterable[str], step: int) -> set[str]:
        """Return the names of a run's series whose last step is before `step`."""
        logged = [group for group, last in self._last_steps.get(key, {}).items() if last >= step]
        return {name for name in names if not any(f"{kind}/{name}" in group for group in logged)}

    def _note(self, key: str, series: list[str], step: int) -> None:
        names = frozenset(series)
        names = self._groups.setdefault(names, names)
        last = self._last_steps.setdefault(key, {})
        last[names] = max(step, last.get(names, step))

    def state(self) -> dict[str, Any]:
        """Return the index as JSON types, for `load`."""
        groups = {names: position for position, names in enumerate(self._groups)}
        last_steps = {
            key: [[groups[names], step] for names, step in last.items()] for key, last in self._last_steps.items()
        }
        runs = {"open": list(self.open), "ended": sorted(self.ended)}
        return runs | {"groups": [sorted(names) for names in groups], "last_steps": last_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the index from `state`."""
        self.ended = set(state["ended"])
        groups = [frozenset(names) for names in state["groups"]]
        self._groups = {names: names for names in groups}
        self._last_steps = {
            key: {groups[position]: step for position, step in last} for key, last in state["last_steps"].items()
        }
        self.open = dict.fromkeys(state["open"])
