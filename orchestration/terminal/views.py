"""Progress output of a sweep: one line per report, JSON objects, or the live table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from typing import Any, Protocol, TextIO

from orchestration.terminal.format import format_number, format_point, format_time
from orchestration.terminal.live_table import LiveTable
from orchestration.terminal.progress import Row, SweepProgress, silence


class View(Protocol):
    """Output of a sweep's progress; called for every event after the progress is updated."""

    def begin(self, name: str) -> None: ...

    def rejected(self, number: int, reason: str) -> None:
        """Show that a trial's point was unusable, so that another one is drawn."""
        ...

    def started(self, row: Row) -> None: ...

    def silent(self, row: Row, seconds: float, reason: str) -> None:
        """Show that a trial has not reported for unusually long."""
        ...

    def reported(self, row: Row, metrics: dict[str, float]) -> None: ...

    def ended(self, row: Row) -> None: ...

    def finish(self) -> None:
        """End the output: no trial is running any more."""
        ...

    def summarized(self, status: str, metrics: dict[str, float]) -> None: ...


class PlainLines:
    """View with one line per report, for files and pipes."""

    def __init__(self, progress: SweepProgress, output: TextIO):
        self.progress, self.output = progress, output

    def begin(self, name: str) -> None:
        self._print("starting the training workers (about 20 s)")

    def rejected(self, number: int, reason: str) -> None:
        self._print(f"{self._time()} point {number} is drawn again: {reason}")

    def silent(self, row: Row, seconds: float, reason: str) -> None:
        self._print(f"{self._time()} {silence(row, seconds, reason)}")

    def started(self, row: Row) -> None:
        pass

    def reported(self, row: Row, metrics: dict[str, float]) -> None:
        numbers = (
            f"step {row.step}/{row.total_steps}, FID {format_number(row.fid, '.2f')}, "
            f"{format_number(row.step_ms / 1e3, '.3f')} s/step, {format_number(row.memory_mib, '.0f')} MiB"
        )
        self._print(f"{self._time()} trial {row.number} {row.state}, {numbers} | {format_point(row.point)}")

    def ended(self, row: Row) -> None:
        reason = f": {row.reason}" if row.reason else f" at step {row.step} with FID {format_number(row.fid, '.2f')}"
        self._print(f"{self._time()} trial {row.number} {row.state}{reason}")
        best = self.progress.best
        best_trial = f"; best: trial {best[0].number}, FID {format_number(best[0].best_fid, '.2f')}" if best else ""
        self._print(f"{self._time()} {self.progress.summary()}{best_trial}")

    def finish(self) -> None:
        pass

    def summarized(self, status: str, metrics: dict[str, float]) -> None:
        pass

    def _time(self) -> str:
        return f"[{format_time(self.progress.elapsed_s)}]"

    def _print(self, text: str) -> None:
        print(text, file=self.output, flush=True)


class JsonLines:
    """View with one JSON object per event, for programs; NaN and infinity are null."""

    def __init__(self, progress: SweepProgress, output: TextIO):
        self.progress, self.output = progress, output

    def begin(self, name: str) -> None:
        self._print("sweep started", sweep=name, num_trials=self.progress.num_trials)

    def rejected(self, number: int, reason: str) -> None:
        self._print("point rejected", trial=number, reason=reason)

    def silent(self, row: Row, seconds: float, reason: str) -> None:
        self._print("trial silent", trial=row.number, seconds=round(seconds), reason=reason)

    def started(self, row: Row) -> None:
        self._print("trial started", trial=row.number, point=row.point)

    def reported(self, row: Row, metrics: dict[str, float]) -> None:
        self._print("trial report", trial=row.number, step=row.step, metrics=metrics)

    def ended(self, row: Row) -> None:
        fields = {name: value for name, value in asdict(row).items() if name in ("step", "fid", "reason", "point")}
        self._print(f"trial {row.state}", trial=row.number, **fields)

    def finish(self) -> None:
        pass

    def summarized(self, status: str, metrics: dict[str, float]) -> None:
        best = metrics.get("best/trial")
        if status == "KILLED" and self.progress.best:  # not ranked yet
            best = self.progress.best[0].number
        self._print("summary", status=status, counts=dict(self.progress.counts), best_trial=best, metrics=metrics)

    def _print(self, event: str, **fields: Any) -> None:
        line = {"event": event, "elapsed_s": round(self.progress.elapsed_s, 3), **fields}
        print(json.dumps(finite(line), default=str), file=self.output, flush=True)


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_events: TextIO | None = None


@contextmanager
def stdout_for(kind: str) -> Iterator[None]:
    """Reserve stdout for the events of the `json` view; inside, all other output goes to stderr."""
    global _events
    if kind != "json":
        yield
        return
    _events = sys.stdout
    with redirect_stdout(sys.stderr):
        yield


def make_view(kind: str, progress: SweepProgress) -> View:
    """Make a live, plain or json view; auto is live on a terminal and plain elsewhere."""
    if kind == "json":
        return JsonLines(progress, _events or sys.stdout)
    if kind == "live" or (kind == "auto" and sys.stdout.isatty()):
        return LiveTable(progress)
    return PlainLines(progress, sys.stdout)
