"""Studies that prepare something before their sweep, started as users start them, and interrupted on the way."""

from __future__ import annotations

import os
import signal

import pandas as pd
import pytest
from session import SMALL, wait_for_line

pytestmark = pytest.mark.slow


def test_a_distillation_killed_while_its_teacher_learns_goes_on_to_all_its_trials(session):
    flags = [*SMALL, "--case-seeds", "1", "--name", "taught", "--progress", "plain"]
    study = session.start("distillation.py", *flags)
    wait_for_line(study, "step 4: ")
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    assert not (session.storage / "taught").exists()

    study = session.start("distillation.py", *flags)
    wait_for_line(study, "sweep taught: 3 trials")  # the teacher is there
    teacher = session.storage / "taught-teacher" / "checkpoint-00000012.pt"
    trained = teacher.stat().st_mtime_ns
    os.kill(study.pid, signal.SIGKILL)
    study.wait()

    code, output = session.run("distillation.py", *flags)
    assert code == 0, output
    assert "the teacher first" not in output
    assert "going on with " in output
    assert teacher.stat().st_mtime_ns == trained
    assert [step for step, _ in session.history("taught-teacher", "fid")] == [4, 8, 12]
    table = pd.read_csv(session.storage / "taught" / "trials.csv").set_index("case")
    assert set(table["state"]) == {"finished"}
    assert table.loc["scratch", "step"] == table.loc["distilled", "step"] == 12
    assert 18 <= table.loc["scratch_longer", "step"] <= 21
    student = next(run for run in session.runs().values() if run.data.tags.get("case") == "distilled")
    assert student.data.params["objective.teacher"] == str(teacher)
    assert (session.storage / "taught" / "report.html").exists()


def test_equal_time_and_memory_follow_from_the_cost_study(session):
    settings = "objective.name=meanflow,objective.jvp=with_gradient"
    cases = ["soflow:objective.name=soflow", *(f"meanflow_a_{equal}:{settings}" for equal in ("time", "memory"))]
    flags = [*SMALL, "--case-seeds", "1", "--name", "cost"]
    code, output = session.run("jvp_cost.py", *flags, "--cases", *cases, timeout_s=600)
    assert code == 0, output
    costs = pd.read_csv(session.storage / "cost-cost" / "costs.csv").set_index("variant")
    table = pd.read_csv(session.storage / "cost" / "trials.csv").set_index("case")
    assert set(table["state"]) == {"finished"}
    assert table.loc["soflow", "step"] == 12
    assert table.loc["meanflow_a_time", "step"] == round(12 * costs.loc["meanflow_a", "time/soflow_to_this"])
    runs = {run.data.tags.get("case"): run for run in session.runs().values()}
    batches = {name: int(runs[name].data.params["training.batch_size"]) for name in table.index}
    assert batches["soflow"] == batches["meanflow_a_time"] == 32
    # The derivative keeps about twice the activations for the backward pass.
    assert 8 <= batches["meanflow_a_memory"] <= 24
    memory = table["memory/peak_mib"]
    assert memory["meanflow_a_memory"] == pytest.approx(memory["soflow"], rel=0.2)
