"""A sweep's progress drawn on a terminal: how it stands, the running trials, the best and the last that ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestration.terminal.format import format_number, format_point, format_value, short_name
from orchestration.terminal.progress import Row, SweepProgress

STYLES = {"finished": "green", "running": "", "stopped": "yellow", "failed": "red", "starting": "dim"}
FRAME_LINES = 7
"""Borders, heading, the line between running and other trials, the count of unseen ones, and the terminal's last."""
USE_EVERY_S = 2.0
"""How often the cluster is asked what is in use."""


class LiveTable:
    """Redrawn once a second within the terminal's height, however many trials there are."""

    def __init__(self, progress: SweepProgress, console: Console | None = None, use: Callable[[], str] | None = None):
        self.progress, self.console = progress, console or Console()
        self._ask_use, self._use, self._asked_at = use or cluster_use, "", -USE_EVERY_S
        self._paths: list[str] = []
        self._live = Live(console=self.console, refresh_per_second=1, get_renderable=self.render)

    def begin(self, name: str) -> None:
        self._live.start()

    def started(self, row: Row) -> None:
        self._paths += [path for path in row.point if path not in self._paths]

    def reported(self, row: Row, metrics: dict[str, float]) -> None:
        pass

    def ended(self, row: Row) -> None:
        pass

    def finish(self) -> None:
        self._live.stop()

    def summarized(self, status: str, metrics: dict[str, float]) -> None:
        pass

    def render(self) -> Group:
        header = self._header()
        running, others, hidden = self._shown(self.console.height - len(header) - FRAME_LINES)
        table = Table()
        for name in ("trial", *map(short_name, self._paths), "step", "FID", "s/step", "MiB", "state"):
            table.add_column(name, justify="left" if name in ("r(k,K)", "state") else "right", no_wrap=True)
        for row in running:
            table.add_row(*self._cells(row), style=STYLES[row.state])
        table.add_section()
        best = [row.number for row in self.progress.best]
        for row in others:
            table.add_row(*self._cells(row), style="bold green" if row.number in best[:1] else STYLES[row.state])
        rest = [Text(f"and {hidden} more running", style="dim")] if hidden else []
        return Group(*header, *([table] if running or others else []), *rest)

    def _header(self) -> list:
        progress = self.progress
        begun = progress.num_ended or any(row.step for row in list(progress.running.values()))
        first = ("" if begun else "starting the training workers (about 20 s): ") + progress.summary()
        lines = [Text(first, no_wrap=True, overflow="ellipsis")]
        if progress.best:
            best = progress.best[0]
            told = f"best: trial {best.number}, FID {best.best_fid:.2f} | {format_point(best.point)}"
            lines.append(Text(told, style="green", no_wrap=True, overflow="ellipsis"))
        if time.monotonic() - self._asked_at >= USE_EVERY_S:
            self._use, self._asked_at = self._ask_use(), time.monotonic()
        if self._use:
            lines.append(Text(self._use, style="dim", no_wrap=True))
        steps = progress.num_ended * progress.total_steps + sum(row.step for row in list(progress.running.values()))
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=progress.num_trials * progress.total_steps, completed=steps, width=60))
        lines.append(bar)
        return lines

    def _shown(self, lines: int) -> tuple[list[Row], list[Row], int]:
        """Running trials, then the best and the last ended ones as far as lines are left, and how many run unseen."""
        running = sorted(self.progress.running.values(), key=lambda row: row.number)
        best = [row for row in self.progress.best if row.number not in self.progress.running]
        room = max(1, lines - min(len(best), 3))
        seen = running if len(running) <= room else running[: room - 1]
        recent = [row for row in reversed(self.progress.recent) if row not in best]
        others = (best + recent)[: max(0, lines - len(seen))]
        return seen, others, len(running) - len(seen)

    def _cells(self, row: Row) -> list[str]:
        return [
            str(row.number),
            *(format_value(row.point[path]) if path in row.point else "–" for path in self._paths),
            f"{row.step}/{self.progress.total_steps}",
            format_number(row.fid, ".2f"),
            format_number(row.step_ms / 1e3, ".3f"),
            format_number(row.memory_mib, ".0f"),
            f"{row.state}: {row.reason}" if row.reason else row.state,
        ]


def cluster_use() -> str:
    """CPUs and GPUs in use of those that the Ray cluster has, with the number of its nodes."""
    import ray

    there, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if there.get(kind)]
    used = [f"{there[kind] - free.get(kind, 0):g} of {there[kind]:g} {kind}s" for kind in kinds]
    nodes = sum(name.startswith("node:") and name != "node:__internal_head__" for name in there)
    return f"in use: {', '.join(used)} on {nodes} node{'s' if nodes > 1 else ''}"
