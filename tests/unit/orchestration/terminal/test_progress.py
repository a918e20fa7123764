"""Trials that do not report: named after a time that follows from the sweep's own reports."""

from __future__ import annotations

import io
import json

from orchestration.terminal.progress import SILENT_AT_START_S, SILENT_S, SILENT_TIMES, SweepProgress
from orchestration.terminal.views import JsonLines, PlainLines


def report(step: int) -> dict:
    return {"step": step, "fid": 3.0, "reason": "", "metrics": {}}


def later(progress: SweepProgress, seconds: float) -> None:
    """Let so much time pass."""
    for row in progress.running.values():
        row.updated_at -= seconds


def test_a_trial_is_named_when_it_is_silent_for_much_longer_than_usual():
    progress = SweepProgress(num_trials=2, total_steps=100, slots=2)
    progress.start(0, {})
    later(progress, SILENT_AT_START_S - 1)
    assert progress.silent() == []  # its workers may still be starting
    later(progress, 2)
    assert [row.number for row, _ in progress.silent()] == [0]
    progress.report(0, report(10))
    assert progress.silent() == []
    later(progress, SILENT_S + 1)
    [(row, seconds)] = progress.silent()
    assert row.number == 0
    assert SILENT_S < seconds < SILENT_S + 60

    usual = 2 * SILENT_S / SILENT_TIMES
    progress.report(0, report(20))  # after more than SILENT_S, from which the next patience follows
    later(progress, usual)
    progress.report(0, report(30))
    later(progress, SILENT_TIMES * SILENT_S)
    assert progress.silent() == []
    later(progress, SILENT_TIMES * 61)
    assert len(progress.silent()) == 1
    progress.end(0, "failed")
    assert progress.silent() == []


def test_it_is_said_with_the_reason():
    progress, output = SweepProgress(num_trials=1, total_steps=100, slots=1), io.StringIO()
    row = progress.start(7, {})
    PlainLines(progress, output).silent(row, 125, "the disk is full")
    assert output.getvalue() == "[0:00] trial 7 has not reported for 2:05, since step 0: the disk is full\n"
    output = io.StringIO()
    JsonLines(progress, output).silent(row, 125, "the disk is full")
    said = json.loads(output.getvalue())
    assert (said["event"], said["trial"], said["seconds"]) == ("trial silent", 7, 125)
