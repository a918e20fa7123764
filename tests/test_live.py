"""The live table of a sweep, on a terminal and in a file."""

from __future__ import annotations

import io

from rich.console import Console

from orchestration.live import LiveTable, format_value, short_name

POINT = {"objective.flow_matching_fraction": 0.75, "objective.gap_schedule": "cosine", "optimizer.learning_rate": 0.003}


def test_names_and_values_are_short():
    assert [short_name(path) for path in POINT] == ["λ", "r(k,K)", "learning_rate"]
    assert [format_value(value) for value in (0.123456, 1061.4, 3, "cosine")] == ["0.123", "1061", "3", "cosine"]


def test_a_file_gets_one_line_per_change():
    output = io.StringIO()
    table = LiveTable(3, 100, Console(file=output, width=200))
    row = table.row(0, POINT)
    result = {"step": 50, "fid": 1.5, "reason": "", "time/step_ms": 20.0, "memory/peak_mib": 100.0}
    for _ in range(2):  # nothing new the second time
        row.update(result)
        table.refresh()
    row.state, row.reason = "failed", "the loss became NaN"
    table.refresh()
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert "trial 0 running, step 50/100, FID 1.50, 0.020 s/step, 100 MiB | λ=0.75 r(k,K)=cosine" in lines[0]
    assert "trial 0 failed: the loss became NaN" in lines[1]


def test_a_terminal_sees_every_trial_and_the_time_left():
    output = io.StringIO()
    table = LiveTable(4, 100, Console(file=output, width=150, force_terminal=True))
    for number, state in enumerate(("finished", "stopped", "running")):
        table.row(number, POINT).state = state
    table.console.print(table.render())
    shown = output.getvalue()
    assert "2 of 4 trials over" in shown
    assert "to go" in shown
    for text in ("trial", "λ", "step", "FID", "s/step", "MiB", "state", "stopped", "–"):
        assert text in shown


def test_a_trial_that_goes_on_keeps_its_row():
    table = LiveTable(2, 100, Console(file=io.StringIO()))
    assert table.row(0, POINT) is table.row(0, POINT)
