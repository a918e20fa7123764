"""A comparison of objectives as its user runs it: every case with every seed, and a report of them."""

from __future__ import annotations

import pandas as pd
import pytest
from session import SMALL

from dashboards.comparison.compare import compare
from dashboards.reading.sweep_data import read_sweep

pytestmark = pytest.mark.slow

CASES = ["soflow:objective.name=soflow", "meanflow:objective.name=meanflow"]


def test_baselines_are_compared_seed_by_seed(session):
    flags = [*SMALL, "--name", "baselines", "--case-seeds", "2", "--cases", *CASES, "--evaluation.nfe", "1", "2"]
    code, output = session.run("compare_baselines.py", *flags)
    assert code == 0, output
    folder = session.storage / "baselines"
    table = pd.read_csv(folder / "trials.csv").sort_values("trial")
    assert list(zip(table["case"], table["seed"], strict=True)) == [
        ("soflow", 0),
        ("meanflow", 0),
        ("soflow", 1),
        ("meanflow", 1),
    ]
    assert set(table["state"]) == {"finished"}
    runs = session.runs()
    for _, row in table.iterrows():
        run = runs[f"baselines-{row['trial']:04d}"].data
        assert (run.tags["case"], run.tags["objective"], run.params["seed"]) == (
            row["case"],
            row["case"],
            str(row["seed"]),
        )
        assert run.params["objective.name"] == row["case"]
    comparison = compare(read_sweep(session.tracking_uri, "baselines"))
    assert comparison.quality == ["fid", "fid_2nfe"]
    for case in comparison.cases:
        rows = table[table["case"] == case.name]
        assert case.measures["fid"].values == pytest.approx(
            dict(zip(rows["seed"], rows["fid"], strict=True)), rel=1e-12
        )
    names = {"report.html", "comparison.md", "comparison.tex"}
    assert names <= {path.name for path in folder.iterdir()}
    session.assert_nothing_left()
