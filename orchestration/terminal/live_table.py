"""Live table of a sweep on a terminal: summary, running trials, best trials, and trials that ended last."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestration.terminal.format import format_number, format_point, format_value, plain_console, short_name
from orchestration.terminal.progress import Row, SweepProgress, silence

STYLES = {"finished": "green", "running": "", "stopped": "yellow", "failed": "red", "starting": "dim"}
FRAME_LINES = 7
"""Borders, heading, the line below the running trials, the count of hidden ones, and the terminal's last line."""
USE_EVERY_S = 2.0
"""Interval between queries of the cluster's usage."""


class LiveTable:
    """View that redraws once a second and never exceeds the terminal's height.

    Args:
        use: returns the cluster's usage in one line.
    """

    def __init__(self, progress: SweepProgress, console: Console | None = None, use: Callable[[], str] | None = None):
        self.progress, self.console = progress, console or plain_console()
        self._query_use, self._use, self._queried_at = use or cluster_use, "", -USE_EVERY_S
        self._paths: list[str] = []
        self._live = Live(console=self.console, refresh_per_second=1, get_renderable=self.render)

    def begin(self, name: str) -> None:
        self._live.start()

    def rejected(self, number: int, reason: str) -> None:
        pass  # counted in the summary

    def silent(self, row: Row, seconds: float, reason: str) -> None:
        self.console.print(silence(row, seconds, reason), style="yellow", highlight=False)

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
        """Build the header and the table."""
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
        footer = [Text(f"and {hidden} more running", style="dim")] if hidden else []
        return Group(*header, *([table] if running or others else []), *footer)

    def _header(self) -> list[RenderableType]:
        progress = self.progress
        trains = progress.num_ended or any(row.step for row in list(progress.running.values()))
        summary = ("" if trains else "starting the training workers (about 20 s): ") + progress.summary()
        lines: list[RenderableType] = [Text(summary, no_wrap=True, overflow="ellipsis")]
        if progress.best:
            best = progress.best[0]
            best_trial = f"best: trial {best.number}, FID {best.best_fid:.2f} | {format_point(best.point)}"
            lines.append(Text(best_trial, style="green", no_wrap=True, overflow="ellipsis"))
        if time.monotonic() - self._queried_at >= USE_EVERY_S:
            self._use, self._queried_at = self._query_use(), time.monotonic()
        if self._use:
            lines.append(Text(self._use, style="dim", no_wrap=True))
        done, total = progress.steps
        bar = Table.grid()  # a progress bar by itself does not end its line
        bar.add_row(ProgressBar(total=total, completed=done, width=60))
        lines.append(bar)
        return lines

    def _shown(self, lines: int) -> tuple[list[Row], list[Row], int]:
        """Select the rows that fit: running trials, then the best and the last ended ones; also count hidden trials."""
        running = sorted(self.progress.running.values(), key=lambda row: row.number)
        best = [row for row in self.progress.best if row.number not in self.progress.running]
        limit = max(1, lines - min(len(best), 3))
        shown = running if len(running) <= limit else running[: limit - 1]
        recent = [row for row in reversed(self.progress.recent) if row not in best]
        others = (best + recent)[: max(0, lines - len(shown))]
        return shown, others, len(running) - len(shown)

    def _cells(self, row: Row) -> list[str]:
        return [
            str(row.number),
            *(format_value(row.point[path]) if path in row.point else "–" for path in self._paths),
            f"{row.step}/{row.total_steps}" if row.total_steps else "–",
            format_number(row.fid, ".2f"),
            format_number(row.step_ms / 1e3, ".3f"),
            format_number(row.memory_mib, ".0f"),
            f"{row.state}: {row.reason}" if row.reason else row.state,
        ]


def cluster_use() -> str:
    """Describe the used and total CPUs and GPUs of the Ray cluster, and its number of nodes."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if total.get(kind)]
    used = [f"{total[kind] - free.get(kind, 0):g} of {total[kind]:g} {kind}s" for kind in kinds]
    nodes = sum(name.startswith("node:") and name != "node:__internal_head__" for name in total)
    return f"in use: {', '.join(used)} on {nodes} node{'s' if nodes > 1 else ''}"
