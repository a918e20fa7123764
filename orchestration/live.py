"""The live table of a sweep: a redrawn table on a terminal, a line per report elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

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


def short_name(path: str) -> str:
    return SHORT_NAMES.get(path, path.rsplit(".", 1)[-1])


def format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


@dataclass
class Row:
    """One trial's line."""

    number: int
    point: dict[str, Any]
    state: str = "starting"
    step: int = 0
    fid: float = float("nan")
    step_ms: float = float("nan")
    memory_mib: float = float("nan")
    reason: str = ""

    def update(self, result: dict[str, Any]) -> None:
        self.state, self.step, self.fid = "running", result["step"], result["fid"]
        self.reason = result["reason"]
        self.step_ms = result.get("time/step_ms", self.step_ms)
        self.memory_mib = result.get("memory/peak_mib", self.memory_mib)


STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "starting": "dim"}


class LiveTable:
    """Shows rows as they change, with the time spent and an estimate of the rest."""

    def __init__(self, num_trials: int, total_steps: int, console: Console | None = None):
        self.num_trials, self.total_steps = num_trials, total_steps
        self.console = console or Console()
        self.rows: list[Row] = []
        self._began = time.monotonic()
        self._told: dict[int, tuple] = {}
        self._live = Live(console=self.console, auto_refresh=False, get_renderable=self.render)

    def row(self, number: int, point: dict[str, Any]) -> Row:
        """A row for this trial; one that goes on after a restart gets its old row."""
        for row in self.rows:
            if row.number == number:
                return row
        self.rows.append(Row(number, point))
        self.refresh()
        return self.rows[-1]

    def start(self) -> None:
        if self.console.is_terminal:
            self._live.start()
        else:
            self.console.print("starting the training workers (about 20 s)", highlight=False)

    def refresh(self) -> None:
        if self.console.is_terminal:
            self._live.refresh()
            return
        for row in self.rows:
            now = (row.state, row.step)
            if self._told.get(row.number) != now and row.state != "starting":
                self._told[row.number] = now
                self.console.print(self._line(row), highlight=False, soft_wrap=True)

    def stop(self) -> None:
        if self.console.is_terminal:
            self._live.refresh()
            self._live.stop()

    def render(self) -> Table:
        paths = list(self.rows[0].point) if self.rows else []
        table = Table(title=self._progress(), title_justify="left", title_style="")
        for name in ("trial", *map(short_name, paths), "step", "FID", "s/step", "MiB", "state"):
            table.add_column(name, justify="left" if name in ("r(k,K)", "state") else "right", no_wrap=name != "state")
        for row in self.rows:
            table.add_row(*self._cells(row, paths), style=STYLES[row.state] if row.state != "running" else "")
        return table

    def _cells(self, row: Row, paths: list[str]) -> list[str]:
        return [
            str(row.number),
            *(format_value(row.point[path]) for path in paths),
            f"{row.step}/{self.total_steps}",
            _number(row.fid, ".2f"),
            _number(row.step_ms / 1e3, ".3f"),
            _number(row.memory_mib, ".0f"),
            f"{row.state}: {row.reason}" if row.reason else row.state,
        ]

    def _line(self, row: Row) -> str:
        point = " ".join(f"{short_name(path)}={format_value(value)}" for path, value in row.point.items())
        trial, step, fid, seconds, memory, state = self._cells(row, [])
        numbers = f"step {step}, FID {fid}, {seconds} s/step, {memory} MiB"
        return f"[{self._elapsed()}] trial {trial} {state}, {numbers} | {point}"

    def _progress(self) -> str:
        over = sum(row.state in ("finished", "stopped", "failed") for row in self.rows)
        text = f"{over} of {self.num_trials} trials over, {self._elapsed()} elapsed"
        if 0 < over < self.num_trials:
            left_s = (time.monotonic() - self._began) / over * (self.num_trials - over)
            text += f", about {_minutes(left_s)} to go"
        return text if self.rows else f"starting the training workers, {text}"

    def _elapsed(self) -> str:
        return _minutes(time.monotonic() - self._began)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _number(value: float, spec: str) -> str:
    return format(value, spec) if value == value else "–"
