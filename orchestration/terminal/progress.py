"""State of a running sweep: counts, best trials, remaining time."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from orchestration.terminal.format import format_time

OVER = ("finished", "stopped", "failed")
SILENT_S, SILENT_AT_START_S, SILENT_TIMES = 120.0, 300.0, 10.0
"""Seconds without a report after which a trial is named, before its first report and after; and how many times longer
than the longest interval between reports so far these must be."""
BEST, RECENT, TIMED = 3, 50, 100
"""Numbers of best trials and of last ended trials to keep, and of reports over which step times are averaged."""


@dataclass
class Row:
    """Latest state of one trial."""

    number: int
    point: dict[str, Any]
    state: str = "starting"
    step: int = 0
    total_steps: int = 0
    fid: float = math.nan
    best_fid: float = math.nan
    step_ms: float = math.nan
    memory_mib: float = math.nan
    reason: str = ""
    updated_at: float = 0.0
    """Monotonic time of the last report, or of the start."""


class SweepProgress:
    """Counts, best trials and remaining time. Its size depends on the number of parallel trials, not of all trials.

    Args:
        total_steps: steps of a trial, unless `start` or `count_finished` say otherwise.
        planned_steps: steps of all trials together. Default: `total_steps` for each that has not started.

    Attributes:
        running: trials that have started and not ended, by number.
        best: trials with the lowest FID of any report, best first.
        recent: the last trials that ended, oldest first.
        counts: number of ended trials by state.
        rejected: number of points that were drawn again.
    """

    def __init__(self, num_trials: int, total_steps: int, slots: int, planned_steps: int | None = None):
        self.num_trials, self.total_steps, self.slots = num_trials, total_steps, slots
        self._planned_steps, self._ended_steps = planned_steps, 0
        self.running: dict[int, Row] = {}
        self.best: list[Row] = []
        self.recent: deque[Row] = deque(maxlen=RECENT)
        self.counts: Counter[str] = Counter()
        self.rejected = 0
        self._began = time.monotonic()
        self._longest_s = 0.0
        self._timed: deque[tuple[float, int]] = deque(maxlen=TIMED)  # seconds and steps between reports

    def count_finished(
        self, number: int, point: dict[str, Any], state: str, fid: float = math.nan, total_steps: int | None = None
    ) -> None:
        """Count a trial that ended before this process started."""
        self.counts[state] += 1
        self._ended_steps += total_steps or self.total_steps
        self._rank(Row(number, point, state, fid=fid, best_fid=fid))

    def start(self, number: int, point: dict[str, Any], total_steps: int | None = None) -> Row:
        """Add a trial that starts, or resumes after a restart."""
        row = self.running.setdefault(number, Row(number, point))
        row.total_steps = total_steps or self.total_steps
        row.point, row.state, row.step, row.reason, row.updated_at = point, "starting", 0, "", time.monotonic()
        return row

    def report(self, number: int, result: dict[str, Any]) -> Row:
        """Update a running trial by its result."""
        row = self.running[number]
        now, steps = time.monotonic(), result["step"] - row.step
        if row.state == "running":
            self._longest_s = max(self._longest_s, now - row.updated_at)
        if result["step"] > 0:  # the next rung trains from scratch, again from step 0
            self._timed.append((now - row.updated_at, steps if steps > 0 else result["step"]))
        row.state, row.step, row.fid, row.reason = "running", result["step"], result["fid"], result["reason"]
        row.best_fid = min(row.fid, row.best_fid) if row.best_fid == row.best_fid else row.fid
        row.step_ms = result["metrics"].get("time/step_ms", row.step_ms)
        row.memory_mib = result["metrics"].get("memory/peak_mib", row.memory_mib)
        row.updated_at = now
        self._rank(row)
        return row

    def _rank(self, row: Row) -> None:
        if row.best_fid == row.best_fid:
            others = [other for other in self.best if other.number != row.number]
            self.best = sorted([*others, row], key=lambda row: row.best_fid)[:BEST]

    def end(self, number: int, state: str, reason: str = "") -> Row:
        """Move a trial to those that ended; the state is finished, stopped or failed."""
        row = self.running.pop(number)
        row.state, row.reason = state, reason or row.reason
        self.recent.append(row)
        self.counts[state] += 1
        self._ended_steps += row.total_steps
        return row

    def silent(self) -> list[tuple[Row, float]]:
        """Return the running trials that have not reported for much longer than usual, and for how many seconds."""
        now, found = time.monotonic(), []
        for row in list(self.running.values()):
            least = SILENT_S if row.state == "running" else SILENT_AT_START_S
            if (seconds := now - row.updated_at) > max(least, SILENT_TIMES * self._longest_s):
                found.append((row, seconds))
        return found

    @property
    def num_ended(self) -> int:
        return sum(self.counts[state] for state in OVER)

    @property
    def num_to_start(self) -> int:
        return max(0, self.num_trials - self.num_ended - len(self.running))

    @property
    def steps(self) -> tuple[int, int]:
        """Steps that are done and steps of all trials; a trial that ended early counts as done."""
        running = list(self.running.values())
        known = self._ended_steps + sum(row.total_steps for row in running)
        total = known + self.num_to_start * self.total_steps
        if self._planned_steps is not None:
            total = max(known, self._planned_steps)
        return self._ended_steps + sum(row.step for row in running), total

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float | None:
        """Remaining seconds if no trial stops early; None until a step has been timed.

        The time per step includes evaluation and is the mean over the last reports.
        """
        seconds, steps = (sum(values) for values in zip(*self._timed, strict=True)) if self._timed else (0, 0)
        if not steps:
            return None
        done, total = self.steps
        return time_left_s(total - done, seconds / steps, min(self.slots, self.num_to_start + len(self.running)))

    def summary(self) -> str:
        """Return counts and times in one line."""
        counts = [f"{self.counts[state]} {state}" for state in OVER if self.counts[state]]
        text = f"{self.num_ended} of {self.num_trials} trials ended" + (f" ({', '.join(counts)})" if counts else "")
        text += f", {self.rejected} unusable points drawn again" if self.rejected else ""
        text += f", {len(self.running)} running, {format_time(self.elapsed_s)} elapsed"
        if self.num_ended < self.num_trials and self.left_s is not None:
            text += f", at most {format_time(self.left_s)} left"
        return text


def silence(row: Row, seconds: float, reason: str) -> str:
    """Return a line about a trial that does not report."""
    return f"trial {row.number} has not reported for {format_time(seconds)}, since step {row.step}: {reason}"


def time_left_s(steps_left: float, seconds_per_step: float, slots: int) -> float:
    """Estimate the remaining seconds of a sweep whose trials run `slots` at a time."""
    return max(0.0, steps_left) * seconds_per_step / max(1, slots)
