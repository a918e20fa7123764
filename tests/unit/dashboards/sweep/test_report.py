"""Sweep report: numbers equal MLflow's, FIDs of different protocols are not ranked, damaged data is reported."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from mlflow.entities import Metric
from sweep_store import PROTOCOL, SweepStore

from dashboards.html.facts import subtitle
from dashboards.palette import BEST, DEFAULT, STATE_COLORS
from dashboards.reading.sweep_data import read_sweep
from dashboards.report import leave_report, main
from orchestration.sweep.config import SweepConfig
from orchestration.tracking.uri import TrackingError
from soflow.config import to_dict

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
GOOD = [
    ("finished", [9.0, 4.0, 1.25]),
    ("finished", [8.0, 3.0, 0.75]),
    ("stopped", [12.0]),
    ("finished", [9.5, 5.0, 2.5]),
    ("failed", [30.0]),
    ("finished", [8.5, 3.5, 1.0]),
]


class Page(HTMLParser):
    """A parsed report: the trials' table, the text, the elements, the figures."""

    def __init__(self, path: Path):
        super().__init__()
        self.table: list[dict[str, str]] = []
        self.names: list[str] = []
        self.elements: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self._cell, self._inside, self._figures = None, [], ""
        self.feed(path.read_text())
        self.figures = json.loads(self._figures)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append(tag)
        self.ids.add(attributes.get("id", ""))
        self._inside.append(tag)
        assert not any(name.startswith("on") for name in attributes)
        if tag == "table":
            self._of_trials = attributes.get("id") == "trials"
        if tag == "th" and "title" in attributes:
            self.names.append(attributes["title"])
        if tag == "tr":
            self._row = {}
        if tag == "td" and self._of_trials:
            name = self.names[len(self._row)]
            self._row[name] = attributes.get("data-value", "")
            self._cell = name if "data-value" not in attributes else None
            if len(self._row) == len(self.names):
                self.table.append(self._row)
        if tag == "script":
            self._script = attributes.get("id")

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass
        self._cell = None if tag == "td" else self._cell

    def handle_data(self, text):
        if "script" in self._inside[-1:]:
            self._figures += text if self._script == "figures" else ""
        elif "style" not in self._inside[-1:]:
            self.text += text
            if self._cell:
                self._row[self._cell] += text


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> SweepStore:
    return SweepStore(tmp_path_factory.mktemp("store"))


@pytest.fixture
def report(store, tmp_path):
    """Build the report of a sweep with the command."""

    def build(name_or_id: str) -> Page:
        path = tmp_path / "report.html"
        assert main([name_or_id, "--tracking-uri", store.uri, "--output", str(path)]) == 0
        return Page(path)

    return build


@pytest.fixture(scope="module")
def good(store, tmp_path_factory) -> tuple[str, Page]:
    """A typical sweep: the id of its run, and its report."""
    parent, path = store.sweep("good", GOOD, images=True, seed=7), tmp_path_factory.mktemp("good") / "report.html"
    assert main(["good", "--tracking-uri", store.uri, "--output", str(path)]) == 0
    return parent, Page(path)


def test_the_table_equals_mlflow(store, good):
    parent, page = good
    runs = store.children(parent)
    assert [int(row["trial"]) for row in page.table] == [1, 5, 0, 3, 2, 4]
    assert [row["rank"] for row in page.table] == ["1.0", "2.0", "3.0", "4.0", "", ""]
    searched = {name for name in page.names if name.startswith("objective.")}
    assert len(searched) == 6
    for row in page.table:
        run = runs[int(row["trial"])]
        metrics, params = run.data.metrics, run.data.params
        for name in ("fid", "fid_2nfe", "time/train_s", "memory/peak_mib"):
            assert float(row[name]) == metrics[name] == metrics.get(f"final/{name}", metrics[name])
        assert float(row["wall_s"]) == (run.info.end_time - run.info.start_time) / 1e3
        assert int(row["step"]) == store.client.get_metric_history(run.info.run_id, "fid")[-1].step
        for name in searched:
            if name == "objective.gap_schedule":
                assert row[name] == params[name]
            elif name == "objective.r_init" and params["objective.gap_schedule"] == "constant":
                assert row[name] == ""  # no effect in this trial
            else:
                assert float(row[name]) == float(params[name])
    assert page.table[-1]["reason"] == "the loss became NaN"
    assert page.table[-2]["reason"] == "by asha"


def test_the_answer_names_best_trial_protocol_default_and_floor(good):
    text = good[1].text
    assert "Best trial: 1 (FID 0.75 at 1 NFE), of 6 started, 4 finished." in text
    assert "digits-cnn features (weights 32fbca5906c8), 1,024 samples at 1, 2 NFE, against 1,797 real images" in text
    assert "40 % below the default configuration (trial 0, FID 1.25); 18.4 times the floor of 0.0407" in text
    assert "Part of this is selection, as the lowest of 4 values of FID is also the luckiest; --resume" in text
    assert "--confirm 3 trains the best three and the default again on new seeds." in text


def test_the_page_contains_every_figure(good):
    page = good[1]
    assert {"history", "steps", "importances", "slices", "parallel", "pareto", "costs", "samples"} <= page.ids
    slices, fronts, bars, others = 6, 2, 2, 4 + ("contour" in page.ids)
    assert len(page.figures) == slices + fronts + bars + others
    assert page.elements.count("img") == 3 * (3 + 2)  # best, median and worst, over three steps and at 1 and 4 NFE
    assert page.text.count("4 NFE") == 3


def test_marked_trials_and_states_have_one_color_in_every_figure(good):
    colors = STATE_COLORS | {
        "best, trial 1": BEST,
        "default, trial 0": DEFAULT,
        "finished trial": STATE_COLORS["finished"],
    }
    colors |= {"best so far": BEST, "stopped here": STATE_COLORS["stopped"]}
    drawn = []
    for figure in good[1].figures:
        drawn.append([trace.get("name") for trace in figure["data"]])
        for trace in figure["data"]:
            if trace.get("name") in colors and "legendgroup" not in trace:  # those of slices have the goal's colors
                assert colors[trace["name"]] in [trace.get(part, {}).get("color") for part in ("line", "marker")]
    marked = ["best, trial 1" in names for names in drawn]
    assert marked == ["default, trial 0" in names for names in drawn]
    assert len(marked) - sum(marked) == 3  # importances, time and memory


def test_real_images_stand_beside_the_best_trial_s_samples(store, report, good):
    store.sweep("beside", GOOD[:3], images=True, real=True)
    text, caption = report("beside").text, "real images, from the training data"
    strips = re.split("Best: trial 1|Worst finished: trial 0", text)
    assert [strip.count(caption) for strip in strips] == [0, 1, 0, 0, 0]  # those by NFE have none
    assert strips[1].index(caption) < strips[1].index("step 100")
    assert caption not in good[1].text  # recorded without any


def test_the_page_contains_the_command_that_repeats_the_sweep(store, good):
    parent, page = good
    assert f"git checkout {'a' * 40}" in page.text
    command = "python experiments/sweep_schedule.py --config sweep.yaml --name good-again"
    assert command in page.text
    configuration = page.text.partition(command)[2].partition("sweep.yaml")[2]
    again = SweepConfig.model_validate(yaml.safe_load(configuration))
    original = SweepConfig.model_validate(yaml.safe_load((store.folder_of(parent) / "sweep.yaml").read_text()))
    assert to_dict(again) == to_dict(original)


def test_fids_of_different_protocols_are_not_ranked(store, report):
    parent = store.sweep("mixed", GOOD)
    other = store.children(parent)[1].info.run_id
    for tag, value in (("fid_num_samples", "50000"), ("fid_feature_network", "inception")):
        store.client.set_tag(other, tag, value)
        page = report("mixed")
        assert "Trials are not ranked: their FIDs were measured by 2 different protocols" in page.text
        assert not any(row["rank"] for row in page.table)
        assert {row["protocol"] for row in page.table} == {"A", "B"}
        assert not {"history", "steps", "slices", "parallel", "contour", "pareto", "importances"} & page.ids
        assert "Best trial" not in page.text
        store.client.set_tag(other, tag, PROTOCOL[tag])
    assert "Best trial: 1 " in report("mixed").text


def test_user_input_is_escaped(store, report):
    choice = HOSTILE.replace("=", "").replace(",", "")
    objective = {"name": "distillation", "teacher": "other"}
    search = [f"objective.teacher={choice},other", "optimizer.learning_rate=0.001:0.01"]
    parent = store.sweep("hostile", GOOD, objective=objective, search=search, known_points=[])
    for tag in ("mlflow.runName", "objective", "dataset", "search", "git_commit"):
        store.client.set_tag(parent, tag, HOSTILE)
    for run in store.children(parent).values():
        for tag in ("device", "fid_feature_network", "version.torch"):
            store.client.set_tag(run.info.run_id, tag, HOSTILE)
    for number, (tag, value) in {4: ("failure", f"Traceback:\n{HOSTILE}"), 2: ("state", HOSTILE)}.items():
        store.client.set_tag(store.children(parent)[number].info.run_id, tag, value)
    page = report(parent)
    assert page.elements.count("script") == 5
    assert "img" not in page.elements
    assert page.text.count("<script>alert(1)</script>") >= 8
    drawn = json.dumps(page.figures)
    assert "<script" not in drawn
    assert "<img" not in drawn
    assert "&lt;script" in drawn


@pytest.mark.slow
def test_missing_values_leave_the_rest_of_the_report(store, report):
    for name, outcomes in (
        ("one", [("finished", [2.0])]),
        ("all failed", [("failed", [30.0]), ("failed", [])]),
        ("nothing reported", [("failed", []), ("failed", [])]),
        ("not a number", [("finished", [3.0, math.nan]), ("finished", [3.0, 1.5]), ("finished", [2.0, math.inf])]),
        ("all stopped", [("stopped", [3.0]), ("stopped", [4.0])]),
    ):
        store.sweep(name, outcomes)
        page = report(name)
        assert len(page.table) == len(outcomes), name
        assert "No sample grids of ranked trials in MLflow." in page.text
        assert ("Best trial" in page.text) == (name in ("one", "not a number")), name
    assert "Best trial: 1 " in report("not a number").text
    assert "No trial finished with a finite FID (2 failed)." in report("all failed").text


@pytest.mark.slow
def test_a_sweep_without_trials_or_with_bare_runs(store, report):
    empty = store.client.create_run(store.experiment, 1, {"soflow.kind": "sweep"}, "empty").info.run_id
    assert "MLflow contains no trial of this sweep" in report("empty").text
    store.client.create_run(store.experiment, 1, {"mlflow.parentRunId": empty}, "bare")
    page = report("empty")
    assert len(page.table) == 1
    assert page.table[0]["state"] == "running"


@pytest.mark.slow
def test_a_deleted_parent(store, report):
    parent = store.sweep("deleted", GOOD)
    store.client.delete_run(parent)
    for key in ("deleted", parent):
        page = report(key)
        assert "marked as deleted" in page.text
        assert "Best trial: 1 " in page.text
    import sqlite3

    with sqlite3.connect(store.folder / "mlflow.db") as database:  # as `mlflow gc` does
        for table in ("params", "tags", "latest_metrics", "metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (parent,))
    page = report(parent)
    assert "run was deleted from MLflow" in page.text
    assert "Best trial: 1 " in page.text


@pytest.mark.slow
def test_very_long_values(store, report):
    long = "x" * 10_000
    objective = {"name": "distillation", "teacher": "y" * 10_000}
    search = [f"objective.teacher={long},{'y' * 10_000}", "optimizer.learning_rate=0.001:0.01"]
    parent = store.sweep("long", GOOD, objective=objective, search=search, known_points=[])
    store.client.set_tag(store.children(parent)[4].info.run_id, "failure", long[:4000])
    page = report("long")
    assert len(page.table) == len(GOOD)
    assert "x" * 100 not in json.dumps(page.figures)


@pytest.mark.slow
def test_the_study_is_read_from_the_run_if_the_folder_is_deleted(store, report, tmp_path):
    parent = store.sweep("moved", GOOD)
    folder = store.folder_of(parent)
    before = report("moved")
    store.client.log_artifact(parent, str(folder / "study.journal"))
    shutil.rmtree(folder)
    after = report("moved")
    assert after.figures == before.figures
    assert after.ids == before.ids
    assert "No Optuna study" not in after.text


@pytest.mark.slow
def test_without_a_study_the_report_uses_mlflow_alone(store, report):
    parent = store.sweep("no study", GOOD)
    shutil.rmtree(store.folder_of(parent))
    page = report("no study")
    assert "No Optuna study" in page.text
    assert {"steps", "pareto", "costs"} <= page.ids
    assert not {"history", "slices"} & page.ids
    assert "Best trial: 1 " in page.text


@pytest.mark.slow
def test_several_goals_and_constraints(store, report):
    goals = {"goals": ["fid", "time/train_s"], "constraints": ["time/train_s<=9.2"]}
    store.sweep("goals", GOOD, **goals)
    page = report("goals")
    assert [int(row["trial"]) for row in page.table][:4] == [0, 1, 5, 3]  # only trial 0 satisfies the constraint
    assert [row["feasible"] for row in page.table][:2] == ["yes", "no"]
    assert "Pareto front of FID and training time [s]: trial 0." in page.text
    assert {"history", "importances", "slices", "parallel", "pareto"} <= page.ids


def test_errors_are_one_line_and_exit_code_2(store, tmp_path, capsys):
    store.sweep("twice", GOOD[:1])
    store.sweep("twice", GOOD[:1])
    run = next(iter(store.children(store.sweep("single", GOOD[:1])).values())).info.run_id
    for arguments, words in (
        (["x", "--tracking-uri", "http://127.0.0.1:9"], "tracking_uri = http://127.0.0.1:9: cannot be reached"),
        (["x", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"], "database not found"),
        (["x", "--tracking-uri", "ftp://somewhere"], "must be http://HOST:PORT"),
        (["nobody", "--tracking-uri", store.uri], "run nobody: no sweep has this name or id; sweeps: "),
        (["twice", "--tracking-uri", store.uri], "2 sweeps have this name; pass an id: "),
        ([run, "--tracking-uri", store.uri], f"run {run}: is not a sweep"),
        (["single", "--tracking-uri", store.uri, "--output", str(tmp_path / "no" / "x.html")], "cannot be written"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_used_again_has_the_report_of_its_present_sweep(store):
    """The folder was deleted, and the database kept the earlier sweep's run."""
    folder = store.folder / "again"
    (folder / "spool").mkdir(parents=True)
    (folder / "spool" / "origin").write_text("second")
    for origin in ("first", "second"):
        run_id = store.sweep("again", GOOD[:1])
        store.client.set_tag(run_id, "folder", str(folder))
        store.client.set_tag(run_id, "soflow.key", f"again@{origin}")
    assert read_sweep(store.uri, str(folder)).run.info.run_id == run_id
    (folder / "spool" / "origin").unlink()
    with pytest.raises(TrackingError, match="2 sweeps have this name; pass an id"):
        read_sweep(store.uri, str(folder))


def test_a_trial_that_was_stopped_at_a_rung_has_its_values_there(store):
    parent = store.sweep("rungs", [("finished", [5.0, 4.0]), ("finished", [6.0])])
    tags = {"soflow.kind": "trial", "sweep": "rungs", "mlflow.parentRunId": parent, "optuna_number": "2"}
    run = store.client.create_run(store.experiment, 9_000, tags | {"state": "stopped"}, "t").info.run_id
    store.client.log_batch(run, metrics=[Metric("rung/fid", 7.5, 1, 50), Metric("rung/kid", 0.3, 1, 50)])
    table = read_sweep(store.uri, parent).trials.set_index("trial")
    assert table.loc[2, ["state", "step", "fid", "kid"]].tolist() == ["stopped", 50, 7.5, 0.3]
    assert table.loc[0, "step"] == 200


def test_the_duration_of_a_resumed_sweep_says_that_it_includes_interruptions(store):
    parent = store.sweep("resumed", GOOD[:2])
    assert "duration 1:29" in subtitle(read_sweep(store.uri, parent))
    assert "interruptions" not in subtitle(read_sweep(store.uri, parent))
    store.client.set_tag(parent, "soflow.started_ms", "80000")
    assert subtitle(read_sweep(store.uri, parent)).endswith("duration 1:29 including interruptions")


def test_a_failed_report_at_the_end_of_a_sweep_is_one_line(store, tmp_path, capsys):
    attached = []
    leave_report("http://127.0.0.1:9", tmp_path, attached.append)
    printed = capsys.readouterr().out
    assert printed.startswith("the report is incomplete (tracking_uri = http://127.0.0.1:9: cannot be reached")
    assert printed.count("\n") == 1
    assert attached == []
    folder = store.folder_of(store.sweep("left", GOOD))
    leave_report(store.uri, folder, attached.append)
    assert (folder / "report.html").stat().st_size > 1e6
    table = folder / "trials-compact.tex"
    assert attached == [folder / "report.html", table]
    assert capsys.readouterr().out == f"report:      {folder / 'report.html'}\nfor papers:  {table}\n"
