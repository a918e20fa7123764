"""The LaTeX table of a search's best trials: its numbers are those of the ranking."""

from __future__ import annotations

from sweep_store import SweepStore

from dashboards.reading.sweep_data import read_sweep
from dashboards.sweep.findings import find
from dashboards.sweep.paper import MOST_ROWS, as_compact_latex, write_table


def rows_of(table: str) -> list[list[str]]:
    body = table.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    return [line.removesuffix(r" \\").split(" & ") for line in body.splitlines()]


def test_the_best_trials_in_their_order_with_the_lowest_goal_bold(tmp_path):
    store = SweepStore(tmp_path)
    outcomes = [("finished", [9.0, 1 + (number * 5 % 12) / 8]) for number in range(12)]
    parent = store.sweep("under_score", [*outcomes, ("stopped", [0.5]), ("failed", [0.1])])
    runs = store.children(parent)
    table = as_compact_latex(find(read_sweep(store.uri, parent)))
    expected = sorted(range(12), key=lambda number: runs[number].data.metrics["fid"])[:MOST_ROWS]
    rows = rows_of(table)
    assert [int(row[0]) for row in rows] == expected
    goals = [row[-3] for row in rows]
    assert goals[0] == r"\textbf{1.000}"
    assert [float(goal) for goal in goals[1:]] == [runs[number].data.metrics["fid"] for number in expected[1:]]
    assert r"under\_score: the best 10 of 14 trials by FID. FID protocol: digits-cnn features" in table


def test_intervals_over_seeds_are_half_widths(tmp_path):
    store = SweepStore(tmp_path)
    parent = store.sweep("seeds", [("finished", [2.0]), ("finished", [3.0])])
    for number, run in store.children(parent).items():
        for name, value in (("low", 1.5 + number), ("high", 2.5 + number)):
            store.client.log_metric(run.info.run_id, f"fid/{name}", value)
    table = as_compact_latex(find(read_sweep(store.uri, parent)))
    assert [row[-3] for row in rows_of(table)] == [r"\textbf{2.00 $\pm$ 0.50}", r"3.00 $\pm$ 0.50"]
    assert r"mean over seeds $\pm$ half the width of the 95 \% interval" in table


def test_without_ranked_trials_nothing_is_written(tmp_path):
    store = SweepStore(tmp_path)
    parent = store.sweep("failed", [("failed", [30.0])])
    assert write_table(find(read_sweep(store.uri, parent)), tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
