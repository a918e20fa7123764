"""A study as its user runs it: killed, started again with the same command, and judged."""

from __future__ import annotations

import os
import signal

import pytest
from session import SMALL, wait_for_line

from dashboards.comparison.compare import compare
from dashboards.reading.sweep_data import read_sweep

pytestmark = pytest.mark.slow

HYPOTHESES = ("fid(guided) < 2 * fid(plain)", "time/step_ms(plain) < 60000")
FLAGS = [
    *SMALL,
    *("--cases", "plain:objective.guidance_strength=1", "guided:objective.guidance_strength=2"),
    *("--case-seeds", "2", "--evaluation.nfe", "1", "--progress", "plain", "--hypotheses", *HYPOTHESES),
]


def test_a_killed_study_goes_on_with_the_same_command_and_ends_with_the_same_table(session):
    found = {}
    for name in ("undisturbed", "killed"):
        flags = [*FLAGS, "--storage", str(session.storage / name)]
        if name == "killed":
            study = session.start("compare_baselines.py", *flags)
            wait_for_line(study, "trial 1 finished")
            os.kill(study.pid, signal.SIGKILL)
            session.assert_nothing_left(within_s=90)
        code, output = session.run("compare_baselines.py", *flags)
        assert code == 0, output
        assert ("going on with" in output) == (name == "killed")
        assert HYPOTHESES[1] in output
        assert "Of 2 hypotheses stated before the run: " in output
        folder = session.storage / name / "compare_baselines-small"
        comparison = compare(read_sweep(f"sqlite:///{session.storage / name / 'mlflow.db'}", str(folder)))
        assert [verdict.hypothesis.text for verdict in comparison.verdicts] == list(HYPOTHESES)
        assert HYPOTHESES[0].replace("<", "&lt;") in (folder / "report.html").read_text()
        found[name] = {case.name: case.measures["fid"].values for case in comparison.cases}
        assert comparison.verdicts[0].quotient.n == 2
    assert found["killed"] == found["undisturbed"]
    assert [sorted(values) for values in found["killed"].values()] == [[0, 1], [0, 1]]

    code, output = session.run("compare_baselines.py", *flags, "--training.total-steps", "16")
    assert code == 2
    assert "name = compare_baselines-small: is in " in output
    assert "with other training; give another --name" in output
    session.assert_nothing_left()
