"""Two trials, of one sweep or of two, side by side: settings and metrics that differ, samples from equal noise."""

from __future__ import annotations

import math

import pandas as pd
import streamlit as st

from dashboards.live import findings
from dashboards.live.reader import LiveSweep, Snapshot, Trial
from dashboards.live.sources import live_sweep, newest_grid
from orchestration.tracking.schema import FID_PROTOCOL, FINAL


def show_pair(tracking_uri: str, sweep: LiveSweep, snapshot: Snapshot, names: dict[str, str]) -> None:
    """Show two trials that the reader of the page selects, at first the best two of the sweep.

    Args:
        names: label of every sweep by run id.
    """
    st.subheader("Two trials side by side")
    columns, goal = st.columns(2), findings.goal(snapshot)
    with columns[0]:
        first = choose(findings.ranked(snapshot, goal), "left", 0)
    with columns[1]:
        other = st.selectbox(
            "Sweep or training run of the right one",
            list(names),
            index=list(names).index(sweep.run_id),
            format_func=lambda run_id: names.get(run_id, run_id),
            key="right sweep",
        )
        second_sweep = live_sweep(tracking_uri, other)
        second_snapshot = snapshot if other == sweep.run_id else second_sweep.refresh((goal,))
        second = choose(findings.ranked(second_snapshot, goal), "right", 1 if other == sweep.run_id else 0)
    if first is None or second is None or first.run_id == second.run_id:
        st.info(f"There is nothing to compare yet. {second_snapshot.problem}")
        return
    if protocol := different_protocol(first, second):
        st.warning(
            f"FIDs were measured by different protocols ({', '.join(protocol)} differ) and must not be compared."
        )
    labels = [f"left: trial {first.number}", f"right: trial {second.number}"]
    columns = st.columns(2)
    columns[0].dataframe(settings(first, second, labels), hide_index=True, key="pair settings")
    columns[1].dataframe(metrics(first, second, labels, goal), hide_index=True, key="pair metrics")
    for column, source, trial, label in zip(st.columns(2), (sweep, second_sweep), (first, second), labels, strict=True):
        if image := newest_grid(source, trial):
            column.image(image[1], caption=f"{label}, samples at step {image[0]}", width="stretch")


def choose(trials: list[Trial], name: str, default: int) -> Trial | None:
    """Let the reader select one of the trials, by default that at position `default`; None if there are none."""
    by_id = {trial.run_id: trial for trial in trials}
    selected = st.selectbox(
        f"Trial on the {name}, the best first",
        list(by_id),
        index=min(default, len(by_id) - 1) if by_id else None,
        format_func=lambda run_id: f"trial {by_id[run_id].number}, {by_id[run_id].state}",
        key=f"{name} trial",
    )
    return by_id.get(selected)


def settings(first: Trial, second: Trial, labels: list[str]) -> pd.DataFrame:
    """Build a row per parameter that differs, or that one of them lacks."""
    paths = [path for path in first.params | second.params if first.params.get(path) != second.params.get(path)]
    rows = [(path, first.params.get(path, "–"), second.params.get(path, "–")) for path in paths]
    return pd.DataFrame(rows, columns=["setting", *labels])


def metrics(first: Trial, second: Trial, labels: list[str], goal: str) -> pd.DataFrame:
    """Build a row per metric, the goal first, with the ratio of the right value to the left one."""
    names = {name for trial in (first, second) for name in trial.metrics if not name.startswith(FINAL)}
    rows = []
    for name in (goal, *sorted(names - {goal})):
        left, right = first.value(name), second.value(name)
        rows.append((name, *(findings.rounded(value) for value in (left, right, right / left if left else math.nan))))
    return pd.DataFrame(rows, columns=["metric", *labels, "right / left"])


def different_protocol(first: Trial, second: Trial) -> list[str]:
    """List the FID protocol's tags that differ."""
    measured = all(FID_PROTOCOL[0] in trial.tags for trial in (first, second))
    return [name for name in FID_PROTOCOL if measured and first.tags.get(name) != second.tags.get(name)]
