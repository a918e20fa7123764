"""The live view: how a sweep is doing, at a glance. A Streamlit page that `python -m dashboards.ui` starts.

Whatever was written by others, such as names, parameters, reasons and tracebacks, is shown as text: in tables and code
blocks as it is, in sentences with Markdown's characters escaped.
"""

from __future__ import annotations

import io
import os
import re
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import streamlit as st

from dashboards.live import charts as live_charts
from dashboards.live import findings as live_findings
from dashboards.live.reader import LiveSweep, Snapshot, Trial, newest_sweeps
from dashboards.reading.mlflow_runs import connect, read_artifact
from dashboards.sweep.findings import title
from orchestration.terminal.format import format_number, format_time, short_name
from orchestration.tracking.uri import TrackingError, root_cause, without_password

if TYPE_CHECKING:
    from mlflow.entities import Run
    from PIL.Image import Image

REFRESH_EVERY_S, LIST_EVERY_S = 4, 10
SIGNS = {
    "RUNNING": ":green-badge[running]",
    "FINISHED": ":blue-badge[finished]",
    "FAILED": ":red-badge[failed]",
    "KILLED": ":orange-badge[interrupted]",
}
LONGEST_TRACEBACK = 50_000  # characters; Streamlit would show a string below it on the page
MOST_PIXELS = 10_000_000  # of a sample grid that is shown
COSTS = ("time/train_s", "memory/peak_mib")


def main() -> None:
    st.set_page_config(page_title="soflow: live view", layout="wide")
    tracking_uri, mlflow_url = os.environ["MLFLOW_TRACKING_URI"], os.environ["SOFLOW_MLFLOW_UI"]
    with st.sidebar:
        choose(tracking_uri, st.session_state.get("sweep"))
    chosen = st.session_state.get("sweep")
    if chosen:
        show(tracking_uri, mlflow_url, chosen)


@st.cache_resource(show_spinner=False)
def client_of(tracking_uri: str):
    return connect(tracking_uri)


@st.cache_resource(max_entries=20, show_spinner=False)
def live_sweep(tracking_uri: str, run_id: str) -> LiveSweep:
    """One reader for all windows that show the sweep."""
    return LiveSweep(client_of(tracking_uri), run_id)


@st.fragment(run_every=LIST_EVERY_S)
def choose(tracking_uri: str, shown: str | None) -> None:
    """The list of sweeps; what is chosen stays chosen when others come, and when the page is loaded again."""
    st.subheader("Sweeps")
    try:
        sweeps = {run.info.run_id: run for run in newest_sweeps(client_of(tracking_uri))}
    except Exception as error:  # MLflow's, the network's, the database's
        problem = str(error) if isinstance(error, TrackingError) else root_cause(error)[:300]
        st.warning(f"The list of sweeps cannot be read; trying again. {plain(without_password(problem))}")
        return
    if not sweeps:
        st.info("There is no sweep yet. This page shows the first one as soon as it has started:")
        st.code("make sweep", language="sh")
        return
    wanted = shown or st.query_params.get("sweep")
    running = [run_id for run_id, run in sweeps.items() if run.info.status == "RUNNING"]
    if wanted not in sweeps and not shown:
        wanted = (running or list(sweeps))[0]
    options = list(sweeps) if wanted in sweeps else [wanted, *sweeps]
    if st.session_state.get("sweep") not in options:
        st.session_state["sweep"] = wanted
    chosen = st.selectbox("Sweep or training run", options, format_func=partial(label, sweeps), key="sweep")
    st.caption(f"{len(running)} of {len(sweeps)} running. This page refreshes by itself.")
    st.query_params["sweep"] = chosen
    if chosen != shown:
        st.rerun()


def label(sweeps: dict[str, Run], run_id: str) -> str:
    run = sweeps.get(run_id)
    return f"{'▶' if run.info.status == 'RUNNING' else '■'} {run.info.run_name}" if run else "a sweep that is gone"


@st.fragment(run_every=REFRESH_EVERY_S)
def show(tracking_uri: str, mlflow_url: str, run_id: str) -> None:
    """The chosen sweep as it is now."""
    try:
        sweep = live_sweep(tracking_uri, run_id)
    except TrackingError as error:
        st.warning(f"Nothing can be read at present; trying again. {plain(error)}")
        return
    goal = live_findings.goal(sweep.snapshot)
    wanted = {goal, st.session_state.get("metric") or goal}
    snapshot = sweep.refresh(tuple(sorted(wanted)))
    if snapshot.problem:
        what = "The last that is known is below." if snapshot.sweep else "It may have been deleted; choose another one."
        st.warning(f"This sweep cannot be read at present; trying again. {what} {plain(snapshot.problem)}")
    if snapshot.sweep is None:
        return
    best = live_findings.current_best(snapshot)
    heading(snapshot, mlflow_url)
    progress(snapshot, best)
    if not snapshot.trials:
        st.info("No trial has begun yet. The training workers take about 20 s to start.")
        return
    left, right = st.columns([2, 1])
    with left:
        curves(snapshot, best)
    with right:
        samples(sweep, best, goal)
    costs(snapshot)
    failures(sweep, snapshot)
    st.subheader("Trials")
    st.dataframe(live_findings.table(snapshot), hide_index=True, key="trials")
    st.subheader("Resources")
    st.dataframe(live_findings.facts(snapshot), hide_index=True, key="facts")


def heading(snapshot: Snapshot, mlflow_url: str) -> None:
    info = snapshot.sweep.info
    st.title(plain(info.run_name or info.run_id), anchor=False)
    page = f"{mlflow_url}/#/experiments/{quote(info.experiment_id)}/runs/{quote(info.run_id)}"
    deleted = ", deleted in MLflow" if info.lifecycle_stage == "deleted" else ""
    st.markdown(f"{SIGNS.get(info.status, plain(info.status))}{deleted} · [open in MLflow]({page})")
    if silent := live_findings.silent_s(snapshot):
        st.warning(
            f"Nothing has come for {format_time(silent)}. If its program has ended, `--resume` with the sweep's name "
            "goes on with it; if the tracking server was away, what it missed comes by itself."
        )
    if differing := live_findings.differing_protocols(snapshot):
        st.warning(
            f"The trials' FIDs were measured in different ways ({', '.join(differing)} differ), so they must not be "
            "compared: neither the order of trials nor the best one below means anything."
        )


def progress(snapshot: Snapshot, best: Trial | None) -> None:
    counts, total = live_findings.counts(snapshot), live_findings.num_trials(snapshot)
    over = sum(counts[state] for state in ("finished", "stopped", "failed"))
    running = snapshot.sweep.info.status == "RUNNING"
    ends = [f"{counts[state]} {state}" for state in live_charts.COLOURS if counts[state] and state != "running"]
    words = f"{over} of {total} trials over" + (f": {', '.join(ends)}" if ends else "")
    if not snapshot.complete:
        words += f" (still reading: {len(snapshot.trials)} trials so far)"
    st.progress(min(1.0, live_findings.share_done(snapshot)), text=words)
    info, goal = snapshot.sweep.info, live_findings.goal(snapshot)
    last_ms = info.end_time if info.end_time and not running else None
    elapsed = (last_ms / 1e3 if last_ms else time.time()) - info.start_time / 1e3
    left = live_findings.left_s(snapshot)
    columns = st.columns(5)
    columns[0].metric("running", counts["running"], border=True)
    columns[1].metric("elapsed", format_time(max(0, elapsed)), border=True)
    columns[2].metric("left, at most", "–" if left is None else format_time(left), border=True)
    name = plain(short_name(goal).upper() if goal == "fid" else goal)
    columns[3].metric(f"best {name}", format_number(best.value(goal), ".4g") if best else "–", border=True)
    columns[4].metric("by trial", best.number if best else "–", border=True)


def curves(snapshot: Snapshot, best: Trial | None) -> None:
    st.subheader("Learning curves")
    metric = st.selectbox("Metric", live_findings.metrics_of(snapshot), key="metric", label_visibility="collapsed")
    if not any(curve.steps for curve in snapshot.curves.get(metric, {}).values()):
        st.info("No values yet: the first come with the first report.")
        return
    st.plotly_chart(live_charts.learning_curves(snapshot, metric, best), key="curves")


def samples(sweep: LiveSweep, best: Trial | None, goal: str) -> None:
    st.subheader("Best so far")
    if best is None:
        st.info("No trial has a value yet.")
        return
    point = live_findings.point_of(sweep.snapshot, best)
    st.text(f"trial {best.number}, {best.state}\n{goal} {format_number(best.value(goal), '.4g')}")
    st.code("\n".join(f"{name} = {value}" for name, value in point.items()) or "the only one", language=None)
    image = newest_grid(sweep, best)
    if image is None:
        st.info("No sample grid of it has arrived.")
    else:
        st.image(image[1], caption=f"samples at step {image[0]}, a column per class", width="stretch")


@st.cache_data(max_entries=50, show_spinner=False)
def grid_of(_sweep: LiveSweep, run_id: str, latest: str) -> tuple[int, Image] | None:
    """A trial's newest sample grid and its step; `latest` changes with every report."""
    from PIL import Image

    found = {}
    for item in _sweep.client.list_artifacts(run_id, "images"):
        if match := re.fullmatch(r"images/samples[+%]step[+%](\d+)[+%]timestamp[+%].+\.png", item.path):
            found[int(match[1])] = item.path
    if not found:
        return None
    content = read_artifact(_sweep.client, run_id, found[max(found)])
    with warnings.catch_warnings(), Image.open(io.BytesIO(content or b"")) as image:
        warnings.simplefilter("error")
        if image.width * image.height > MOST_PIXELS:
            return None
        return max(found), image.convert("RGB")


def newest_grid(sweep: LiveSweep, trial: Trial) -> tuple[int, Image] | None:
    try:
        return grid_of(sweep, trial.run_id, repr(sorted(trial.metrics.items())))
    except Exception:  # half-written or no image, or the server is away, which is told elsewhere
        return None


def costs(snapshot: Snapshot) -> None:
    goal = live_findings.goal(snapshot)
    st.subheader("What quality costs")
    for column, cost in zip(st.columns(2), COSTS, strict=True):
        figure = live_charts.pareto(snapshot, goal, cost)
        if figure.data:
            column.plotly_chart(figure, key=f"pareto {cost}")
        else:
            column.info(f"No trial has told its {plain(title(cost))} yet.")


def failures(sweep: LiveSweep, snapshot: Snapshot) -> None:
    failed = [trial for trial in snapshot.trials if trial.state == "failed"]
    if not failed:
        return
    st.subheader("Failures")
    by_number = {trial.run_id: trial for trial in failed}
    chosen = st.selectbox(
        f"{len(failed)} trials failed; the reason of",
        list(by_number),
        format_func=lambda run_id: f"trial {by_number[run_id].number}: {reason_of(by_number[run_id])}",
        key="failure",
    )
    st.code(reason_of(by_number[chosen]), language=None, wrap_lines=True)
    traceback = traceback_of(sweep, chosen, by_number[chosen].end_ms)
    if traceback:
        st.code(traceback[-LONGEST_TRACEBACK:], language=None)
    else:
        st.caption("It left no traceback: the reason is all there is to say.")


@st.cache_data(max_entries=50, show_spinner=False)
def traceback_of(_sweep: LiveSweep, run_id: str, ended_ms: int | None) -> str | None:
    content = read_artifact(_sweep.client, run_id, "failure.txt")
    return None if content is None else content.decode(errors="replace")


def reason_of(trial: Trial) -> str:
    return " ".join(trial.tags.get("failure", "no reason was recorded").split())[:1000]


def plain(text: object) -> str:
    """Text that Markdown shows as it is: no link, image, formula, emoji or tag comes of it."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(str(text).split()))


if __name__ == "__main__":
    main()
