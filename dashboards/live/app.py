"""Live view of a sweep: progress, learning curves, samples, costs, failures. `python -m dashboards.ui` starts it.

Names, parameters, reasons and tracebacks are user input and shown as plain text: verbatim in tables and code blocks,
with Markdown escaped in sentences.
"""

from __future__ import annotations

import os
import re
import time
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import streamlit as st

from dashboards.labels import title
from dashboards.live import charts, findings
from dashboards.live.pairs import show_pair
from dashboards.live.reader import LiveSweep, Snapshot, Trial, newest_sweeps
from dashboards.live.sources import client_of, live_sweep, newest_grid, traceback_of
from dashboards.palette import STATE_COLORS
from orchestration.terminal.format import format_number, format_time, short_name
from orchestration.tracking.schema import FAILURE, FID, PEAK_MIB, TRAIN_S
from orchestration.tracking.uri import TrackingError, root_cause
from soflow.config_base import without_password

if TYPE_CHECKING:
    from mlflow.entities import Run

REFRESH_EVERY_S, LIST_EVERY_S = 4, 10
BADGES = {
    "RUNNING": ":green-badge[running]",
    "FINISHED": ":blue-badge[finished]",
    "FAILED": ":red-badge[failed]",
    "KILLED": ":orange-badge[interrupted]",
}
LONGEST_TRACEBACK = 50_000  # characters
COSTS = (TRAIN_S, PEAK_MIB)


def main() -> None:
    st.set_page_config(page_title="soflow: live view", layout="wide")
    tracking_uri, mlflow_url = os.environ["MLFLOW_TRACKING_URI"], os.environ["SOFLOW_MLFLOW_UI"]
    with st.sidebar:
        choose_sweep(tracking_uri, st.session_state.get("sweep"))
    if run_id := st.session_state.get("sweep"):
        show_sweep(tracking_uri, mlflow_url, run_id)


@st.fragment(run_every=LIST_EVERY_S)
def choose_sweep(tracking_uri: str, shown: str | None) -> None:
    """Show the list of sweeps; the selection persists when new sweeps appear and when the page is reloaded."""
    st.subheader("Sweeps")
    try:
        sweeps = {run.info.run_id: run for run in newest_sweeps(client_of(tracking_uri))}
    except Exception as error:  # MLflow, the network, the database
        problem = str(error) if isinstance(error, TrackingError) else root_cause(error)[:300]
        st.warning(f"Cannot read the list of sweeps; retrying. {plain(without_password(problem))}")
        return
    if not sweeps:
        st.info("No sweeps yet. This page shows the first one as soon as it starts:")
        st.code("make sweep", language="sh")
        return
    st.session_state["names"] = {run_id: sweep_label(sweeps, run_id) for run_id in sweeps}
    running = [run_id for run_id, run in sweeps.items() if run.info.status == "RUNNING"]
    preselected = shown or st.query_params.get("sweep")
    if preselected not in sweeps and not shown:
        preselected = (running or list(sweeps))[0]
    options = list(sweeps) if preselected in sweeps else [preselected, *sweeps]
    if st.session_state.get("sweep") not in options:
        st.session_state["sweep"] = preselected
    selected = st.selectbox("Sweep or training run", options, format_func=partial(sweep_label, sweeps), key="sweep")
    st.caption(f"{len(running)} of {len(sweeps)} running. This page refreshes automatically.")
    st.query_params["sweep"] = selected
    if selected != shown:
        st.rerun()


def sweep_label(sweeps: dict[str, Run], run_id: str) -> str:
    run = sweeps.get(run_id)
    return f"{'▶' if run.info.status == 'RUNNING' else '■'} {run.info.run_name}" if run else "deleted sweep"


@st.fragment(run_every=REFRESH_EVERY_S)
def show_sweep(tracking_uri: str, mlflow_url: str, run_id: str) -> None:
    """Show the current state of the selected sweep."""
    try:
        sweep = live_sweep(tracking_uri, run_id)
    except TrackingError as error:
        st.warning(f"Cannot read MLflow; retrying. {plain(error)}")
        return
    goal = findings.goal(sweep.snapshot)
    metrics = {goal, st.session_state.get("metric") or goal}
    snapshot = sweep.refresh(tuple(sorted(metrics)))
    if snapshot.problem:
        shown = "The last known state is below." if snapshot.sweep else "It may have been deleted; select another one."
        st.warning(f"Cannot read this sweep; retrying. {shown} {plain(snapshot.problem)}")
    if snapshot.sweep is None:
        return
    best = findings.current_best(snapshot)
    show_heading(snapshot, mlflow_url)
    show_progress(snapshot, best)
    if not snapshot.trials:
        st.info("No trial has started yet. Training workers take about 20 s to start.")
        return
    left, right = st.columns([2, 1])
    with left:
        show_curves(snapshot, best)
    with right:
        show_best(sweep, best, goal)
    show_costs(snapshot)
    show_failures(sweep, snapshot)
    show_pair(tracking_uri, sweep, snapshot, st.session_state.get("names", {}) | {run_id: "this one"})
    st.subheader("Trials")
    st.dataframe(findings.table(snapshot), hide_index=True, key="trials")
    st.subheader("Environment")
    st.dataframe(findings.environment(snapshot), hide_index=True, key="environment")


def show_heading(snapshot: Snapshot, mlflow_url: str) -> None:
    info = snapshot.sweep.info
    st.title(plain(info.run_name or info.run_id), anchor=False)
    page = f"{mlflow_url}/#/experiments/{quote(info.experiment_id)}/runs/{quote(info.run_id)}"
    deleted = ", deleted in MLflow" if info.lifecycle_stage == "deleted" else ""
    st.markdown(f"{BADGES.get(info.status, plain(info.status))}{deleted} · [open in MLflow]({page})")
    if silent := findings.silent_s(snapshot):
        st.warning(
            f"No report for {format_time(silent)}. If the sweep's process has ended, resume it with `--resume` and its "
            "name. If the tracking server was down, missing reports arrive automatically."
        )
    if differing := findings.differing_protocols(snapshot):
        st.warning(
            f"FIDs were measured by different protocols ({', '.join(differing)} differ) and must not be compared: the "
            "order of trials and the best trial below are meaningless."
        )


def show_progress(snapshot: Snapshot, best: Trial | None) -> None:
    counts, total = findings.counts(snapshot), findings.num_trials(snapshot)
    over = sum(counts[state] for state in ("finished", "stopped", "failed"))
    ends = [f"{counts[state]} {state}" for state in STATE_COLORS if counts[state] and state != "running"]
    words = f"{over} of {total} trials ended" + (f": {', '.join(ends)}" if ends else "")
    if not snapshot.complete:
        words += f" (reading: {len(snapshot.trials)} trials so far)"
    st.progress(min(1.0, findings.share_done(snapshot)), text=words)
    info, goal = snapshot.sweep.info, findings.goal(snapshot)
    last_ms = info.end_time if not findings.is_running(snapshot) else None
    elapsed = (last_ms / 1e3 if last_ms else time.time()) - info.start_time / 1e3
    left = findings.left_s(snapshot)
    columns = st.columns(5)
    columns[0].metric("running", counts["running"], border=True)
    columns[1].metric("elapsed", format_time(max(0, elapsed)), border=True)
    columns[2].metric("time left, at most", "–" if left is None else format_time(left), border=True)
    name = plain(short_name(goal).upper() if goal == FID else goal)
    columns[3].metric(f"best {name}", format_number(best.value(goal), ".4g") if best else "–", border=True)
    columns[4].metric("best trial", best.number if best else "–", border=True)


def show_curves(snapshot: Snapshot, best: Trial | None) -> None:
    st.subheader("Learning curves")
    metric = st.selectbox("Metric", findings.metrics_of(snapshot), key="metric", label_visibility="collapsed")
    if not any(curve.steps for curve in snapshot.curves.get(metric, {}).values()):
        st.info("No values yet; they arrive with the first report.")
        return
    st.plotly_chart(charts.learning_curves(snapshot, metric, best), key="curves")


def show_best(sweep: LiveSweep, best: Trial | None, goal: str) -> None:
    st.subheader("Best so far")
    if best is None:
        st.info("No value reported yet.")
        return
    point = findings.point_of(sweep.snapshot, best)
    st.text(f"trial {best.number}, {best.state}\n{goal} {format_number(best.value(goal), '.4g')}")
    st.code("\n".join(f"{name} = {value}" for name, value in point.items()) or "base configuration", language=None)
    image = newest_grid(sweep, best)
    if image is None:
        st.info("No sample grid yet.")
    else:
        st.image(image[1], caption=f"samples at step {image[0]}, one column per class", width="stretch")


def show_costs(snapshot: Snapshot) -> None:
    goal = findings.goal(snapshot)
    st.subheader("Quality against cost")
    for column, cost in zip(st.columns(2), COSTS, strict=True):
        figure = charts.pareto(snapshot, goal, cost)
        if figure.data:
            column.plotly_chart(figure, key=f"pareto {cost}")
        else:
            column.info(f"No {title(cost).partition(' [')[0]} reported yet.")


def show_failures(sweep: LiveSweep, snapshot: Snapshot) -> None:
    failed = [trial for trial in snapshot.trials if trial.state == "failed"]
    if not failed:
        return
    st.subheader("Failures")
    by_id = {trial.run_id: trial for trial in failed}
    selected = st.selectbox(
        f"{len(failed)} failed trials",
        list(by_id),
        format_func=lambda run_id: f"trial {by_id[run_id].number}: {reason_of(by_id[run_id])}",
        key="failure",
    )
    st.code(reason_of(by_id[selected]), language=None, wrap_lines=True)
    traceback = traceback_of(sweep, selected, by_id[selected].end_ms)
    if traceback:
        st.code(traceback[-LONGEST_TRACEBACK:], language=None)
    else:
        st.caption("No traceback was recorded.")


def reason_of(trial: Trial) -> str:
    return " ".join(trial.tags.get(FAILURE, "no reason recorded").split())[:1000]


def plain(text: object) -> str:
    """Escape Markdown, so that text contains no link, image, formula, emoji or tag."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(text).split()))


if __name__ == "__main__":
    main()
