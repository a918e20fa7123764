"""A population of trials on real Ray: who waits goes on, and a killed program changes nothing of who took over what."""

from __future__ import annotations

import os
import signal

import pandas as pd
import pytest
from session import SMALL, wait_for_line

pytestmark = pytest.mark.slow

FLAGS = [*SMALL, "--num-trials", "4", "--early-stopping.kind", "pbt", "--early-stopping.grace-reports", "1"]
FLAGS += ["--search", "objective.guidance_strength=1:3", "objective.velocity_mix=0.1:0.9"]
FLAGS += ["--training.batch-size", "64", "--training.total-steps", "60", "--training.report-every", "20"]
EXACT = ["state", "exchanges", "objective.guidance_strength", "objective.velocity_mix", "fid", "kid"]


def test_a_population_trains_in_turns_and_survives_its_program(session):
    code, output = session.run("sweep_schedule.py", *FLAGS, "--name", "whole")
    assert code == 0, output
    assert "waiting for others" in output
    whole = pd.read_csv(session.storage / "whole" / "trials.csv").set_index("trial").sort_index()
    assert list(whole["state"]) == ["finished"] * 4
    exchanges = whole["exchanges"].dropna()
    assert sum(text.count("20: from") for text in exchanges) == 1  # a quarter of four
    assert sum(text.count("40: from") for text in exchanges) == 1
    # Two slots served all pauses with the workers that they had.
    assert len(list((session.storage / "whole").glob("workers/group-*"))) == 2
    for number in range(4):
        assert [step for step, _ in session.history(f"whole-{number:04d}", "fid")] == [20, 40, 60]
    number = exchanges.index[0]
    guidance = session.history(f"whole-{number:04d}", "point/objective.guidance_strength")
    assert guidance[-1][1] == whole["objective.guidance_strength"][number]
    assert len({value for _, value in guidance}) > 1

    sweep = session.start("sweep_schedule.py", *FLAGS, "--name", "killed")
    wait_for_line(sweep, "trial 1 running, step 60/" if number == 0 else "trial 0 running, step 60/")
    os.kill(sweep.pid, signal.SIGKILL)
    code, output = session.run("sweep_schedule.py", "--resume", "killed", "--num-trials", "5")
    assert code != 0
    assert "num_trials = 5: a population keeps its size, here 4" in output
    code, output = session.run("sweep_schedule.py", "--resume", "killed")
    assert code == 0, output
    killed = pd.read_csv(session.storage / "killed" / "trials.csv").set_index("trial").sort_index()
    pd.testing.assert_frame_equal(killed[EXACT], whole[EXACT], check_exact=True)
    assert session.study_states("killed") == ["COMPLETE"] * 4
    for number in range(4):
        assert session.history(f"killed-{number:04d}", "fid") == session.history(f"whole-{number:04d}", "fid")
    session.assert_nothing_left(within_s=90)
