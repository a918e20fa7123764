"""What is known of a sweep while it runs, and its telling as lines of text or of JSON (`live` draws it)."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TextIO

SHORT_NAMES = {
    "objective.flow_matching_fraction": "λ",
    "objective.gap_schedule": "r(k,K)",
    "objective.r_init": "r_init",
    "objective.r_end": "r_end",
    "objective.guidance_strength": "w",
    "objective.velocity_mix": "m",
    "objective.guidance_omega": "ω",
    "objective.guidance_kappa": "κ",
}
"""The field's symbols for searched paths; others show the end of their path."""
OVER = ("finished", "stopped", "failed")
BEST, RECENT, TIMED = 3, 50, 100
"""How many trials are kept as the best, how many as the last that ended, how many reports step times come from."""


def short_name(path: str) -> str:
    return SHORT_NAMES.get(path, path.rsplit(".", 1)[-1])


def format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def format_point(point: dict[str, Any]) -> str:
    return " ".join(f"{short_name(path)}={format_value(value)}" for path, value in point.items())


def format_time(seconds: float) -> str:
    hours, seconds = divmod(int(seconds), 3600)
    minutes, seconds = divmod(seconds, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def format_number(value: float, spec: str) -> str:
    return format(value, spec) if value == value else "–"


@dataclass
class Row:
    """One trial as it was last heard of."""

    number: int
    point: dict[str, Any]
    state: str = "starting"
    step: int = 0
    fid: float = math.nan
    best_fid: float = math.nan
    step_ms: float = math.nan
    memory_mib: float = math.nan
    reason: str = ""
    heard_at: float = 0.0


class SweepProgress:
    """Counts, the best, the time left. Its size depends on the trials at a time, not on how many there were.

    Attributes:
        running: trials that have started and not ended, by number.
        best: those with the lowest FID of any report, best first.
        recent: the last that ended, oldest first.
        counts: trials that ended by how they did.
    """

    def __init__(self, num_trials: int, total_steps: int, slots: int):
        self.num_trials, self.total_steps, self.slots = num_trials, total_steps, slots
        self.running: dict[int, Row] = {}
        self.best: list[Row] = []
        self.recent: deque[Row] = deque(maxlen=RECENT)
        self.counts: Counter[str] = Counter()
        self._began = time.monotonic()
        self._timed: deque[tuple[float, int]] = deque(maxlen=TIMED)  # seconds and steps between reports

    def take_in(self, number: int, point: dict[str, Any], state: str, fid: float) -> None:
        """A trial had ended before this process began."""
        self.counts[state] += 1
        self._rank(Row(number, point, state, fid=fid, best_fid=fid))

    def start(self, number: int, point: dict[str, Any]) -> Row:
        """A trial starts, or goes on after a restart."""
        row = self.running.setdefault(number, Row(number, point))
        row.point, row.state, row.reason, row.heard_at = point, "starting", "", time.monotonic()
        return row

    def report(self, number: int, result: dict[str, Any]) -> Row:
        row = self.running[number]
        now, steps = time.monotonic(), result["step"] - row.step
        if result["step"] > 0:  # a run from scratch, as the next rung is, begins again at 0
            self._timed.append((now - row.heard_at, steps if steps > 0 else result["step"]))
        row.state, row.step, row.fid, row.reason = "running", result["step"], result["fid"], result["reason"]
        row.best_fid = min(row.fid, row.best_fid) if row.best_fid == row.best_fid else row.fid
        row.step_ms = result.get("time/step_ms", row.step_ms)
        row.memory_mib = result.get("memory/peak_mib", row.memory_mib)
        row.heard_at = now
        self._rank(row)
        return row

    def _rank(self, row: Row) -> None:
        if row.best_fid == row.best_fid:
            others = [other for other in self.best if other.number != row.number]
            self.best = sorted([*others, row], key=lambda row: row.best_fid)[:BEST]

    def end(self, number: int, state: str, reason: str = "") -> Row:
        row = self.running.pop(number)
        row.state, row.reason = state, reason or row.reason
        self.recent.append(row)
        self.counts[state] += 1
        return row

    @property
    def over(self) -> int:
        return sum(self.counts[state] for state in OVER)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float | None:
        """The time that the rest takes if no trial stops early, None until a step has been timed.

        Steps left times seconds per step, evaluation included, as the last reports came, over the trials at a time.
        """
        seconds, steps = (sum(values) for values in zip(*self._timed, strict=True)) if self._timed else (0, 0)
        if not steps:
            return None
        to_start = max(0, self.num_trials - self.over - len(self.running))
        left = to_start * self.total_steps + sum(self.total_steps - row.step for row in list(self.running.values()))
        return max(0, left) * seconds / steps / max(1, min(self.slots, to_start + len(self.running)))

    def summary(self) -> str:
        """Counts and times in a line."""
        counts = [f"{self.counts[state]} {state}" for state in OVER if self.counts[state]]
        text = f"{self.over} of {self.num_trials} trials over" + (f" ({', '.join(counts)})" if counts else "")
        waiting = sum(row.state == "waiting" for row in list(self.running.values()))
        text += f", {len(self.running) - waiting} running"
        text += f", {waiting} waiting for others" if waiting else ""
        text += f", {format_time(self.elapsed_s)} elapsed"
        if self.over < self.num_trials and self.left_s is not None:
            text += f", at most {format_time(self.left_s)} to go"
        return text


class View(Protocol):
    """Shows a sweep's progress; told of every event after the progress was."""

    def begin(self, name: str) -> None: ...

    def started(self, row: Row) -> None: ...

    def reported(self, row: Row, metrics: dict[str, float]) -> None: ...

    def ended(self, row: Row) -> None: ...

    def finish(self) -> None:
        """No trial goes on."""
        ...

    def summarised(self, status: str, metrics: dict[str, float]) -> None: ...


class PlainLines:
    """A line per report, for files and terminals that cannot be drawn on."""

    def __init__(self, progress: SweepProgress, output: TextIO):
        self.progress, self.output = progress, output

    def begin(self, name: str) -> None:
        self._print("starting the training workers (about 20 s)")

    def started(self, row: Row) -> None:
        pass

    def reported(self, row: Row, metrics: dict[str, float]) -> None:
        numbers = (
            f"step {row.step}/{self.progress.total_steps}, FID {format_number(row.fid, '.2f')}, "
            f"{format_number(row.step_ms / 1e3, '.3f')} s/step, {format_number(row.memory_mib, '.0f')} MiB"
        )
        self._print(f"{self._time()} trial {row.number} {row.state}, {numbers} | {format_point(row.point)}")

    def ended(self, row: Row) -> None:
        reason = f": {row.reason}" if row.reason else f" at step {row.step} with FID {format_number(row.fid, '.2f')}"
        self._print(f"{self._time()} trial {row.number} {row.state}{reason}")
        best = self.progress.best
        told = f"; best: trial {best[0].number}, FID {format_number(best[0].best_fid, '.2f')}" if best else ""
        self._print(f"{self._time()} {self.progress.summary()}{told}")

    def finish(self) -> None:
        pass

    def summarised(self, status: str, metrics: dict[str, float]) -> None:
        pass

    def _time(self) -> str:
        return f"[{format_time(self.progress.elapsed_s)}]"

    def _print(self, text: str) -> None:
        print(text, file=self.output, flush=True)


class JsonLines:
    """One JSON object per event, for programs; what is no number is null."""

    def __init__(self, progress: SweepProgress, output: TextIO):
        self.progress, self.output = progress, output

    def begin(self, name: str) -> None:
        self._print("sweep started", sweep=name, num_trials=self.progress.num_trials)

    def started(self, row: Row) -> None:
        self._print("trial started", trial=row.number, point=row.point)

    def reported(self, row: Row, metrics: dict[str, float]) -> None:
        self._print("trial report", trial=row.number, step=row.step, metrics=metrics)

    def ended(self, row: Row) -> None:
        fields = {name: value for name, value in asdict(row).items() if name in ("step", "fid", "reason", "point")}
        self._print(f"trial {row.state}", trial=row.number, **fields)

    def finish(self) -> None:
        pass

    def summarised(self, status: str, metrics: dict[str, float]) -> None:
        best = self.progress.best[0].number if self.progress.best else None
        self._print("summary", status=status, counts=dict(self.progress.counts), best_trial=best, metrics=metrics)

    def _print(self, event: str, **fields: Any) -> None:
        record = {"event": event, "elapsed_s": round(self.progress.elapsed_s, 3), **fields}
        print(json.dumps(_finite(record), default=str), file=self.output, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


_events: TextIO | None = None


@contextmanager
def stdout_for(kind: str) -> Iterator[None]:
    """Inside, where JSON lines are wanted, stdout is theirs and other text goes to stderr."""
    global _events
    if kind != "json":
        yield
        return
    _events = sys.stdout
    with redirect_stdout(sys.stderr):
        yield


def make_view(kind: str, progress: SweepProgress) -> View:
    """The view of this kind: live, plain, json, or auto, which is live on a terminal and plain elsewhere."""
    from orchestration.terminal.live_table import LiveTable

    if kind == "json":
        return JsonLines(progress, _events or sys.stdout)
    if kind == "live" or (kind == "auto" and sys.stdout.isatty()):
        return LiveTable(progress)
    return PlainLines(progress, sys.stdout)
