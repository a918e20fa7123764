"""Live view: incremental reading, the sweep's time-left formula, user input shown as text."""

import html
import math
import os
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from helpers import REPOSITORY
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from sweep_store import SweepStore

from dashboards.live import findings
from dashboards.live.charts import front, learning_curves, pareto, thinned
from dashboards.live.reader import Curve, LiveSweep, newest_sweeps
from dashboards.palette import BEST, STATE_COLORS
from orchestration.tracking.schema import STARTED_MS
from tests.database import new_database

PAGE = str(REPOSITORY / "dashboards" / "live" / "app.py")
EVIL = "<script>document.title='owned'</script> ![x](http://127.0.0.1:1/x.png) $x^2$ :red[y] **z**"


class CountingClient(MlflowClient):
    """MLflow client that counts requests."""

    def __init__(self, uri):
        super().__init__(uri)
        self.requests = Counter()

    def get_metric_history(self, run_id, key):
        self.requests["history"] += 1
        return super().get_metric_history(run_id, key)

    def search_runs(self, *arguments, **options):
        runs = super().search_runs(*arguments, **options)
        self.requests["runs"] += len(runs)
        return runs


class RunningSweep:
    """A sweep in a real database that advances as a test requires."""

    def __init__(self, folder, name="running"):
        self.uri = new_database(folder)
        self.client = CountingClient(self.uri)
        self.experiment = self.client.create_experiment("soflow", artifact_location=(folder / "artifacts").as_uri())
        self.began = int(time.time() * 1000) - 100_000
        tags = {"soflow.kind": "sweep", "num_trials": "8"}
        self.id = self.client.create_run(self.experiment, self.began, tags, name).info.run_id
        for key, value in {"training.total_steps": "100", "max_concurrent": "2", "goals": "['fid']"}.items():
            self.client.log_param(self.id, key, value)
        self.live = LiveSweep(self.client, self.id, fresh_s=0)

    def start(self, number, after_s=0, **params):
        tags = {"soflow.kind": "trial", "mlflow.parentRunId": self.id, "optuna_number": str(number)}
        run = self.client.create_run(self.experiment, self.began + after_s * 1000, tags, f"t{number}").info.run_id
        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])
        return run

    def report(self, run, step, fid, after_s=0):
        at = self.began + after_s * 1000
        values = {"fid": fid, "time/train_s": step / 10, "memory/peak_mib": 20.0}
        self.client.log_batch(run, metrics=[Metric(name, value, at, step) for name, value in values.items()])

    def end(self, run, state, reason=""):
        for name, value in {"state": state, "failure": reason}.items():
            if value:
                self.client.set_tag(run, name, value)
        self.client.set_terminated(run, "FAILED" if state == "failed" else "FINISHED")

    def refresh(self, *metrics):
        """Refresh as the page does."""
        self.client.requests.clear()
        return self.live.refresh(metrics or ("fid",))


@pytest.fixture
def sweep(tmp_path):
    return RunningSweep(tmp_path)


def states(snapshot):
    return [trial.state for trial in snapshot.trials]


def test_a_refresh_reads_only_what_is_new(sweep):
    runs = [sweep.start(number, number) for number in range(6)]
    for run in runs:
        sweep.report(run, 10, 5.0)
    for run, state in zip(runs, ("finished", "stopped", "failed", "finished"), strict=False):
        sweep.end(run, state)
    first = sweep.refresh()
    assert first.complete
    assert states(first) == ["finished", "stopped", "failed", "finished", "running", "running"]
    assert sweep.client.requests["history"] == 6

    again = sweep.refresh()
    assert (again.trials, again.curves) == (first.trials, first.curves)
    assert sweep.client.requests["history"] == 0
    assert sweep.client.requests["runs"] <= 3  # the two running trials, and the newest one again

    sweep.report(runs[5], 20, 4.0)
    new = sweep.start(6, 10)
    changed = sweep.refresh()
    assert sweep.client.requests["history"] == 1
    assert changed.curve(changed.trials[5], "fid").values == (5.0, 4.0)
    assert changed.trials[6].run_id == new

    sweep.end(runs[5], "stopped")
    assert states(sweep.refresh())[5] == "stopped"
    assert sweep.client.requests["history"] <= 1


def test_values_equal_those_in_mlflow(tmp_path):
    store = SweepStore(tmp_path)
    run_id = store.sweep("s", [("finished", [5.0, 3.0, 1.0]), ("stopped", [6.0, 5.5]), ("failed", [])])
    live = LiveSweep(store.client, run_id)
    snapshot = live.refresh(("fid",))
    assert [run.info.run_id for run in newest_sweeps(store.client)] == [run_id]
    for trial in snapshot.trials:
        rows = store.client.get_metric_history(trial.run_id, "fid")
        assert snapshot.curve(trial, "fid").steps == tuple(row.step for row in rows)
        assert snapshot.curve(trial, "fid").values == tuple(row.value for row in rows)
    assert findings.current_best(snapshot).number == 0
    assert dict(findings.counts(snapshot)) == {"finished": 1, "stopped": 1, "failed": 1}
    assert findings.table(snapshot)["fid"].tolist()[:2] == [1.0, 5.5]
    assert findings.share_done(snapshot) == 1.0


def test_the_time_left_is_the_sweeps_formula(sweep):
    first, second = sweep.start(0), sweep.start(1)
    for report in (1, 2, 3):  # 10 steps in 5 s
        sweep.report(first, 10 * report, 1.0, after_s=5 * report)
        sweep.report(second, 10 * report, 1.0, after_s=5 * report)
    snapshot = sweep.refresh()
    # 6 trials of 100 steps to start, 70 steps left of each of two, two at a time, half a second a step.
    assert findings.left_s(snapshot) == pytest.approx((6 * 100 + 2 * 70) * 0.5 / 2)
    assert findings.share_done(snapshot) == pytest.approx(60 / 800)
    assert findings.silent_s(snapshot) is None
    third = sweep.start(2)
    sweep.client.log_param(third, "training.total_steps", 300)  # a case with its own number of steps
    snapshot = sweep.refresh()
    assert findings.share_done(snapshot) == pytest.approx(60 / 1000)
    assert findings.left_s(snapshot) == pytest.approx((5 * 100 + 2 * 70 + 300) * 0.5 / 2)
    sweep.client.set_terminated(sweep.id, "KILLED")
    assert findings.left_s(sweep.refresh()) is None


def test_an_interruption_is_no_slow_report(tmp_path):
    """Ten hours pass between the second report and the resumption, after which 10 steps take 5 s as before."""
    sweep, hours = RunningSweep(tmp_path), 36_000
    sweep.began -= hours * 1000
    first = sweep.start(0)
    sweep.report(first, 10, 1.0, after_s=5)
    sweep.report(first, 20, 1.0, after_s=10)
    sweep.client.set_tag(sweep.id, STARTED_MS, str(sweep.began + hours * 1000))
    snapshot = sweep.refresh()
    assert findings.silent_s(snapshot) is None
    sweep.report(first, 30, 1.0, after_s=hours + 5)
    sweep.report(first, 40, 1.0, after_s=hours + 10)
    snapshot = sweep.refresh()
    assert findings.left_s(snapshot) == pytest.approx((7 * 100 + 60) * 0.5 / 2)
    assert findings.silent_s(snapshot) is None
    with pytest.MonkeyPatch.context() as patch:
        now = time.time()
        patch.setattr(time, "time", lambda: now + 300)
        last = sweep.began / 1000 + hours + 10
        assert findings.silent_s(snapshot) == pytest.approx(now + 300 - last, abs=0.01)


def test_incomplete_runs_and_extreme_values_are_shown(sweep):
    empty = sweep.refresh()
    assert (empty.trials, findings.left_s(empty), findings.current_best(empty)) == ((), None, None)
    bare = sweep.client.create_run(sweep.experiment, tags={"mlflow.parentRunId": sweep.id})
    odd = sweep.start(1, 1, **{"objective.name": EVIL})
    for step, fid in ((1, math.nan), (2, math.inf), (3, 4.0), (3, 5.0), (4, -1.0)):
        sweep.report(odd, step, fid)
    sweep.end(odd, "failed", EVIL * 20)
    snapshot = sweep.refresh()
    assert {trial.run_id for trial in snapshot.trials} == {bare.info.run_id, odd}
    assert thinned(snapshot.curve(snapshot.trials[1], "fid"), 10).steps[-1] == 4
    for figure in (
        learning_curves(snapshot, "fid", snapshot.trials[1]),
        learning_curves(snapshot, EVIL, None),
        pareto(snapshot, "fid", "memory/peak_mib"),
        pareto(snapshot, EVIL, EVIL),
    ):
        assert "<script>" not in figure.to_json()
    colors = {trace.name: trace.line.color for trace in learning_curves(snapshot, "fid", snapshot.trials[1]).data}
    assert (colors["failed"], colors["best: trial 1"]) == (STATE_COLORS["failed"], BEST)  # as in reports
    assert learning_curves(snapshot, EVIL, None).layout.yaxis.title.text.startswith(html.escape(EVIL[:37]))
    assert len(findings.table(snapshot)) == 2
    assert "fid" in findings.metrics_of(snapshot)


def test_deleted_trials_disappear_and_a_deleted_sweep_is_reported(sweep):
    gone, stays = sweep.start(0), sweep.start(1)
    assert len(sweep.refresh().trials) == 2
    sweep.client.delete_run(gone)
    assert [trial.run_id for trial in sweep.refresh().trials] == [stays]
    sweep.client.delete_run(sweep.id)
    assert sweep.refresh().sweep.info.lifecycle_stage == "deleted"
    lost = LiveSweep(sweep.client, "0" * 32).refresh(("fid",))
    assert "not found" in lost.problem
    assert lost.sweep is None


def test_thinned_curves_keep_their_ends_and_their_lowest_point():
    steps = tuple(range(1000))
    curve = Curve(steps, tuple(float(abs(step - 777) + 1) for step in steps), steps)
    few = thinned(curve, 12)
    assert len(few.steps) <= 12
    assert (few.steps[0], few.steps[-1], min(few.values)) == (0, 999, 1.0)
    assert list(few.steps) == sorted(few.steps)
    assert thinned(Curve(), 12) == Curve()


def test_the_front_is_the_pareto_front():
    points = [(1.0, 5.0), (2.0, 3.0), (2.5, 3.0), (3.0, 4.0), (4.0, 1.0), (math.nan, 0.0), (1.0, 6.0)]
    assert front(points) == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]


@contextmanager
def page(tracking_uri):
    """Run the page in Streamlit without a browser."""
    from streamlit.testing.v1 import AppTest

    before = dict(os.environ)
    os.environ |= {"MLFLOW_TRACKING_URI": tracking_uri, "SOFLOW_MLFLOW_UI": "http://127.0.0.1:5000"}
    try:
        yield AppTest.from_file(PAGE, default_timeout=60).run()
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_an_empty_and_an_unreachable_store_are_reported(tmp_path):
    empty = f"sqlite:///{tmp_path / 'empty.db'}"
    MlflowClient(empty).search_experiments()
    for uri, message in (
        (empty, "No sweeps yet"),
        (f"sqlite:///{tmp_path / 'none.db'}", "database not found"),
        ("http://127.0.0.1:9", "cannot be reached"),
    ):
        with page(uri) as shown:
            assert not shown.exception
            shown_text = " ".join(box.value for box in (*shown.info, *shown.warning)).replace("\\", "")
            assert message in shown_text, uri


def test_the_page_of_a_trial_that_failed_before_its_first_timing(tmp_path):
    sweep = RunningSweep(tmp_path)
    run = sweep.start(0)
    sweep.client.log_metric(run, "fid", 2.0, step=10)
    sweep.end(run, "failed", "of memory")
    with page(sweep.uri) as shown:
        assert not shown.exception
        infos = " ".join(box.value for box in shown.info).replace("\\", "")
        assert "No training time reported yet." in infos
        assert "No peak memory reported yet." in infos
        assert "of memory" in [box.value for box in shown.code]


def test_the_page_shows_a_sweep_and_escapes_markdown(tmp_path):
    sweep = RunningSweep(tmp_path, EVIL)
    runs = [sweep.start(number, number, **{"objective.r_end": number / 10}) for number in range(3)]
    for step in (10, 20):
        sweep.report(runs[0], step, 50 / step)
        sweep.report(runs[1], step, 40 / step)
    sweep.end(runs[0], "failed", EVIL)
    with page(sweep.uri) as shown:
        assert not shown.exception
        figures = {box.label: box.value for box in shown.metric}
        assert figures["running"] == "2"
        assert figures["best FID"] == "2"
        assert figures["best trial"] == "1"
        assert shown.title[0].value.replace("\\", "") == EVIL
        for box in (*shown.title, *shown.markdown, *shown.caption, *shown.warning):
            assert "<script" not in box.value.replace("\\<", "")
            assert "![x]" not in box.value
        assert EVIL in [box.value for box in shown.code]


def test_two_trials_are_compared_also_of_different_sweeps(tmp_path):
    sweep = RunningSweep(tmp_path)
    for number, fid in enumerate((4.0, 2.0, 3.0)):
        run = sweep.start(number, **{"objective.r_end": 0.01 * (number + 1), "seed": 0})
        sweep.report(run, 50, fid)
        sweep.end(run, "finished")
    with page(sweep.uri) as shown:
        settings, metrics = (frame.value for frame in shown.dataframe[:2])
        assert settings.to_numpy().tolist() == [["objective.r_end", "0.02", "0.03"]]  # the best two
        assert list(settings) == ["setting", "left: trial 1", "right: trial 2"]
        assert metrics.to_numpy().tolist() == [
            ["fid", 2.0, 3.0, 1.5],
            ["memory/peak_mib", 20.0, 20.0, 1.0],
            ["time/train_s", 5.0, 5.0, 1.0],
        ]
        shown.selectbox(key="right trial").select_index(2).run()
        assert shown.dataframe[1].value["right / left"][0] == 2.0

    other = sweep.client.create_run(sweep.experiment, sweep.began, {"soflow.kind": "run"}, "alone").info.run_id
    sweep.client.log_param(other, "objective.name", "meanflow")
    for name, value in {"fid_feature_network": "inception"}.items():
        sweep.client.set_tag(other, name, value)
    sweep.report(other, 100, 5.0)
    sweep.client.set_terminated(other)
    with page(sweep.uri) as shown:
        shown.selectbox(key="sweep").select(sweep.id).run()
        shown.selectbox(key="right sweep").select(other).run()
        settings, metrics = (frame.value for frame in shown.dataframe[:2])
        assert ["objective.name", "–", "meanflow"] in settings.to_numpy().tolist()
        assert metrics["right / left"][0] == 2.5


def test_trials_with_fids_of_different_protocols_are_pointed_out(tmp_path):
    sweep = RunningSweep(tmp_path)
    for number in range(2):
        run = sweep.start(number)
        sweep.report(run, 50, 1.0 + number)
        sweep.client.set_tag(run, "fid_feature_network", "digits")
        sweep.end(run, "finished")
    other = sweep.client.create_run(sweep.experiment, sweep.began, {"soflow.kind": "run"}, "alone").info.run_id
    sweep.client.set_tag(other, "fid_feature_network", "inception")
    sweep.report(other, 100, 5.0)
    sweep.client.set_terminated(other)
    with page(sweep.uri) as shown:
        shown.selectbox(key="sweep").select(sweep.id).run()
        assert not shown.warning
        shown.selectbox(key="right sweep").select(other).run()
        (warning,) = shown.warning
        assert "(fid_feature_network differ) and must not be compared" in warning.value


def test_one_trial_is_compared_with_nothing(tmp_path):
    sweep = RunningSweep(tmp_path)
    sweep.report(sweep.start(0), 50, 1.0)
    with page(sweep.uri) as shown:
        assert any(box.value.startswith("There is nothing to compare yet.") for box in shown.info)
