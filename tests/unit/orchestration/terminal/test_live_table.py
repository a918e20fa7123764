"""A sweep's progress: its state, and its display on a terminal, in a file and for programs."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console

from orchestration.terminal.format import format_value, short_name, three_digits
from orchestration.terminal.live_table import LiveTable
from orchestration.terminal.progress import SweepProgress
from orchestration.terminal.views import JsonLines, PlainLines, stdout_for

POINT = {"objective.flow_matching_fraction": 0.75, "objective.gap_schedule": "cosine", "optimizer.learning_rate": 0.003}


def result(step: int, fid: float, reason: str = "") -> dict:
    metrics = {"time/step_ms": 20.0, "memory/peak_mib": 100.0}
    return {"step": step, "fid": fid, "reason": reason, "metrics": metrics}


def progress_of(num_trials: int, ended: int = 0, running: int = 0, slots: int = 2) -> SweepProgress:
    progress = SweepProgress(num_trials, 100, slots)
    for number in range(ended + running):
        progress.start(number, POINT)
        progress.report(number, result(100 if number < ended else 50, 10.0 + number))
        if number < ended:
            progress.end(number, "finished")
    return progress


def shown(progress: SweepProgress, height: int) -> list[str]:
    output = io.StringIO()
    console = Console(file=output, width=150, height=height, force_terminal=True, color_system=None)
    table = LiveTable(progress, console, use=lambda: "in use: 2 of 2 CPUs on 1 node")
    for row in [*progress.running.values(), *progress.recent]:
        table.started(row)
    console.print(table.render())
    return output.getvalue().splitlines()


def test_names_and_values_are_short():
    assert [short_name(path) for path in POINT] == ["λ", "r(k,K)", "learning_rate"]
    assert [format_value(value) for value in (0.123456, 1061.4, 3, "cosine")] == ["0.123", "1061", "3", "cosine"]
    assert [three_digits(value) for value in (0.123456, 94.06, 1061.4, 1.5149e6)] == [
        "0.123",
        "94.1",
        "1,060",
        "1,510,000",
    ]


def test_the_best_is_that_of_any_report():
    progress = progress_of(8, running=5)
    progress.report(4, result(60, 1.0))
    progress.report(4, result(70, 50.0))
    progress.report(3, result(60, float("nan")))
    assert [(row.number, row.best_fid) for row in progress.best] == [(4, 1.0), (0, 10.0), (1, 11.0)]


def test_the_time_left_is_that_of_all_steps_left():
    progress = SweepProgress(num_trials=6, total_steps=100, slots=2)
    assert progress.left_s is None
    progress.start(0, POINT).updated_at = time.monotonic() - 25
    progress.report(0, result(50, 3.0))
    progress.start(1, POINT)
    # 50 and 100 steps of the running trials and 400 of those to come, half a second each, two at a time.
    assert progress.left_s == pytest.approx(550 * 0.5 / 2, rel=0.01)
    assert "0 of 6 trials ended, 2 running" in progress.summary()
    assert "at most 2:17 left" in progress.summary()


def test_trials_may_have_different_numbers_of_steps():
    progress = SweepProgress(num_trials=4, total_steps=100, slots=2, planned_steps=700)
    progress.count_finished(0, POINT, "finished", 3.0, total_steps=300)
    assert progress.steps == (300, 700)
    lines = PlainLines(progress, output := io.StringIO())
    progress.start(1, POINT, total_steps=200).updated_at = time.monotonic() - 25
    lines.reported(progress.report(1, result(50, 3.0)), {})
    assert "step 50/200" in output.getvalue()
    progress.start(2, POINT)
    assert progress.steps == (350, 700)
    assert progress.left_s == pytest.approx(350 * 0.5 / 2, rel=0.01)
    progress.end(1, "failed")  # counts as done
    assert progress.steps == (500, 700)
    without_plan = SweepProgress(num_trials=4, total_steps=100, slots=2)
    without_plan.start(0, POINT, total_steps=300)
    assert without_plan.steps == (0, 600)


def test_trials_that_ended_before_a_resume_count():
    progress = SweepProgress(num_trials=6, total_steps=100, slots=2)
    for number, state, fid in ((0, "finished", 3.0), (1, "finished", 2.0), (2, "failed", float("nan"))):
        progress.count_finished(number, POINT, state, fid)
    assert progress.summary().startswith("3 of 6 trials ended (2 finished, 1 failed), 0 running")
    progress.start(3, POINT)
    progress.report(3, result(50, 2.5))
    assert [row.number for row in progress.best] == [1, 3, 0]


def test_a_file_gets_a_line_per_report_and_how_the_sweep_stands_at_each_end():
    output, progress = io.StringIO(), SweepProgress(3, 100, 2)
    lines = PlainLines(progress, output)
    lines.started(progress.start(0, POINT))
    lines.reported(progress.report(0, result(50, 1.5)), {})
    lines.ended(progress.end(0, "failed", "the loss became NaN"))
    report, end, standing = output.getvalue().splitlines()
    assert "trial 0 running, step 50/100, FID 1.50, 0.020 s/step, 100 MiB | λ=0.75 r(k,K)=cosine" in report
    assert "trial 0 failed: the loss became NaN" in end
    assert "1 of 3 trials ended (1 failed), 0 running" in standing
    assert standing.endswith("best: trial 0, FID 1.50")


def test_programs_get_an_object_per_event(capsys):
    with stdout_for("json"):
        from orchestration.terminal.views import make_view

        progress = SweepProgress(2, 100, 2)
        view = make_view("json", progress)
        assert isinstance(view, JsonLines)
        print("for people")
        view.begin("name")
        view.started(progress.start(0, POINT))
        view.reported(progress.report(0, result(100, float("nan"))), {"fid": float("nan"), "kid": 1.0})
        view.ended(progress.end(0, "finished"))
        view.summarized("FINISHED", {"best/fid": 1.0, "best/trial": 1})  # by the ranking, not by the lowest report
    printed = capsys.readouterr()
    assert printed.err == "for people\n"
    events = [json.loads(line, parse_constant=pytest.fail) for line in printed.out.splitlines()]
    assert [event["event"] for event in events] == [
        "sweep started",
        "trial started",
        "trial report",
        "trial finished",
        "summary",
    ]
    assert events[1]["point"] == POINT
    assert events[2]["metrics"] == {"fid": None, "kid": 1.0}
    assert events[4]["counts"] == {"finished": 1}
    assert events[4]["best_trial"] == 1


@pytest.mark.parametrize("height", [15, 24, 60])
@pytest.mark.parametrize(("ended", "running"), [(0, 0), (3, 2), (10_000, 0), (9_000, 100)])
def test_the_table_keeps_to_the_terminals_height(ended, running, height):
    lines = shown(progress_of(20_000, ended, running), height)
    assert len(lines) < height


def test_the_table_shows_what_runs_what_is_best_and_what_ended_last():
    text = "\n".join(shown(progress_of(8, ended=5, running=2), 24))
    assert "5 of 8 trials ended (5 finished), 2 running" in text
    assert "best: trial 0, FID 10.00 | λ=0.75" in text
    assert "in use: 2 of 2 CPUs on 1 node" in text
    for part in ("trial", "λ", "step", "FID", "s/step", "MiB", "state", "50/100", "100/100", "running", "finished"):
        assert part in text
    crowded = "\n".join(shown(progress_of(300, ended=50, running=100), 24))
    assert "more running" in crowded
    assert "finished │" in crowded or "finished" in crowded.splitlines()[-3]


def test_a_trial_that_goes_on_keeps_its_row():
    progress = SweepProgress(2, 100, 2)
    assert progress.start(0, POINT) is progress.start(0, POINT)
