"""A small cost study as users start it: tables, charts, records."""

from __future__ import annotations

import pandas as pd
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

VARIANTS = ["flow_matching", "soflow", "meanflow_c"]


def test_a_study_measures_compares_draws_and_records(session):
    code, output = session.run(
        "compare_cost.py",
        *("--variants", *VARIANTS[1:], "--networks", "DiT-XXS/4", "--batches", "16", "--rounds", "2", "--turn-s", "0"),
        *("--resources.cpus-per-worker", "1", "--name", "study"),
    )
    assert code == 0, output
    costs = pd.read_csv(session.storage / "study" / "costs.csv").set_index("variant")
    assert list(costs.index) == VARIANTS
    assert costs.loc["flow_matching", "time/to_flow_matching"] == 1
    assert costs.loc["soflow", "time/soflow_to_this"] == 1
    # What is counted does not depend on how busy the machine is.
    assert 1.2 < costs.loc["soflow", "flops/to_flow_matching"] < 1.6
    assert (costs["memory/peak_mib"] > costs["memory/held_mib"]).all()
    assert (costs["memory/largest_batch"] > 1000).all()  # 4 GiB are a lot for this network
    parts = costs[[name for name in costs if name.startswith("time/") and name.endswith("_ms") and "step" not in name]]
    assert (parts.sum(axis=1) > 0).all()
    rounds = pd.read_csv(session.storage / "study" / "rounds.csv")
    assert len(rounds) == 2 * 2 * len(VARIANTS)  # a turn has two steps at least
    for chart in ("time", "memory", "breakdown"):
        with Image.open(session.storage / "study" / f"{chart}.png") as image:
            assert min(image.size) > 300

    runs = session.runs()
    parent = runs.pop("study")
    assert parent.info.status == "FINISHED"
    assert len(runs) == len(VARIANTS)
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        row = costs.loc[run.data.params["variant"]]
        for name in ("time/step_ms", "memory/peak_mib", "flops/step"):
            assert run.data.metrics[name] == pytest.approx(row[name])
    session.assert_nothing_left()


def test_bad_input_is_one_line(session):
    code, output = session.run("compare_cost.py", "--variants", "ddpm")
    assert code == 2
    assert output == (
        "error: variants = ('ddpm',): must be one of flow_matching, meanflow_a, meanflow_b, meanflow_c, soflow\n"
    )
