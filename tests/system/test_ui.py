"""The live view and the MLflow UI in a real Chromium, as `make ui` starts them."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

import pytest
import requests
from mlflow import MlflowClient
from session import ROOT, Session, wait_for_line
from sweep_store import SweepStore

from dashboards.ui import main as ui_main
from orchestration.tracking import schema

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> $x$ :red[y]"
SOON_MS = 120_000


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    return Session(tmp_path_factory.mktemp("ui"))


@pytest.fixture(scope="module")
def pages(session, chromium):
    """Addresses of `python -m dashboards.ui`, started once for all tests; at the end it must leave nothing behind."""
    # In the repository, as make does; the session's own folder is its storage.
    command = ["env", "-C", str(ROOT), sys.executable, "-m", "dashboards.ui", "--storage", str(session.storage)]
    process = session.launch(command)
    addresses = {}
    for line in process.stdout:
        if match := re.match(r"(live view|MLflow UI): +(http://\S+)", line):
            addresses[match[1]] = match[2]
        if "Ctrl-C" in line:
            break
    else:
        raise AssertionError(f"ended without its addresses, exit code {process.wait()}")
    yield addresses
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(120) == 0
    session.assert_nothing_left()


@pytest.fixture
def page(chromium):
    page = chromium.new_page(viewport={"width": 1600, "height": 1000})
    yield page
    page.close()


def number(page, label: str) -> str:
    """The figure under this label at the top of the live view."""
    box = page.locator("[data-testid=stMetric]").filter(has_text=re.compile(rf"^{label}"))
    return box.locator("[data-testid=stMetricValue]").inner_text()


@pytest.mark.parametrize("view", ["live view", "MLflow UI"])
def test_only_requests_for_this_machine_are_answered(pages, view):
    """A foreign page that points its name here (DNS rebinding) gets nothing, neither pages nor the live view's data."""
    address = pages[view]
    port = address.rpartition(":")[2].strip("/")
    websocket = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
    }
    for headers in ({}, websocket):
        path = "/_stcore/stream" if headers else "/"
        foreign = {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"}
        assert requests.get(address + path, headers=headers | foreign, timeout=30).status_code in (400, 403)
    assert requests.get(address, timeout=30).status_code == 200
    assert requests.get(f"http://localhost:{port}", timeout=30).status_code == 200


# In this order: the storage is empty at first.


def test_an_empty_store_and_foreign_text_are_shown_as_text(session, pages, page):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages["live view"])
    page.get_by_text("No sweeps yet").wait_for(timeout=SOON_MS)
    client = MlflowClient(session.tracking_uri)
    experiment = client.create_experiment("soflow", artifact_location=(session.storage / "artifacts").as_uri())
    tags = {schema.KIND: schema.SWEEP_KIND, "num_trials": "1"}
    sweep = client.create_run(experiment, int(time.time() * 1000), tags, EVIL).info.run_id
    tags = {schema.KIND: schema.TRIAL_KIND, schema.PARENT: sweep, schema.STATE: "failed", schema.FAILURE: EVIL}
    trial = client.create_run(experiment, int(time.time() * 1000), tags, f"{EVIL}-0000").info.run_id
    client.log_param(trial, "objective.name", EVIL)
    client.log_text(trial, f"Traceback\n{EVIL}", "failure.txt")
    client.log_metric(trial, "fid", 2.0, step=10)
    client.set_terminated(trial, "FAILED")
    # The page finds the first sweep by itself.
    page.get_by_role("heading", name=EVIL).wait_for(timeout=SOON_MS)
    page.locator("code", has_text="Traceback").wait_for(timeout=SOON_MS)
    assert page.locator("code").filter(has_text=EVIL).count() >= 2
    assert "owned" not in page.title()
    assert page.locator("img[src=x]").count() == 0
    hosts = {re.match(r"\w+:/*([^/:]*)", url)[1] for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def test_mlflows_own_pages_list_and_compare_the_runs(session, pages, page):
    store = SweepStore(session.storage)
    parent = store.sweep("schedule", [("finished", [5.0, 2.0]), ("stopped", [6.0]), ("finished", [4.0, 1.5])])
    runs = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{parent}'")
    url = pages["MLflow UI"]
    page.goto(f"{url}/#/experiments/{store.experiment}/runs/{parent}")
    page.get_by_text("Child runs", exact=True).wait_for(timeout=SOON_MS)
    for run in runs:
        page.get_by_role("link", name=run.info.run_name).first.wait_for(timeout=SOON_MS)
    ids = "%2C".join(f"%22{run.info.run_id}%22" for run in runs)
    page.goto(f"{url}/#/compare-runs?runs=%5B{ids}%5D&experiments=%5B%22{store.experiment}%22%5D")
    page.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for(timeout=SOON_MS)
    page.locator(".parcoords, .js-plotly-plot").first.wait_for(timeout=SOON_MS)


@pytest.mark.soak  # the pages that refresh themselves: above; the numbers: tests/unit/dashboards/live
def test_a_running_sweep_is_shown_and_its_numbers_change(session, pages, page):
    flags = ["--name", "live", "--num-trials", "2", "--training.total-steps", "40000", "--training.report-every", "20"]
    flags += ["--training.batch-size", "32", "--evaluation.num-samples", "64", "--max-concurrent", "1"]
    sweep = session.start("sweep_schedule.py", *flags, "--progress", "plain")
    wait_for_line(sweep, "trial 0 running")
    page.goto(pages["live view"])
    page.get_by_role("heading", name="live", exact=True).wait_for(timeout=SOON_MS)
    page.locator("[data-testid=stPlotlyChart] .scatterlayer path.js-line").first.wait_for(timeout=SOON_MS)
    page.locator("[data-testid=stImage] img").wait_for(timeout=SOON_MS)
    assert number(page, "running") == "1"
    assert number(page, "best trial") == "0"
    page.get_by_label("Metric").click()
    page.get_by_role("option", name="kid", exact=True).click()
    before = number(page, "elapsed"), number(page, "time left, at most")
    caption = page.get_by_text("samples at step").inner_text()
    page.wait_for_function("before => !document.body.innerText.includes(before)", arg=caption, timeout=SOON_MS)
    assert (number(page, "elapsed"), number(page, "time left, at most")) != before
    steps = [
        int(re.search(r"step ([\d,]+)", text)[1].replace(",", ""))
        for text in (caption, page.get_by_text("samples at step").inner_text())
    ]
    assert steps[1] > steps[0]
    # The user's choice is kept when the page has refreshed itself.
    assert page.get_by_label("Metric").input_value() == "kid"
    best = float(number(page, "best FID"))
    history = MlflowClient(session.tracking_uri).get_metric_history(session.runs()["live-0000"].info.run_id, "fid")
    assert any(f"{row.value:.4g}" == f"{best:.4g}" for row in history)
    os.killpg(sweep.pid, signal.SIGKILL)


def test_a_wrong_address_is_refused_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dashboards.ui", "--tracking-uri", "http://127.0.0.1:9"])
    with pytest.raises(SystemExit) as caught:
        ui_main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: tracking_uri = http://127.0.0.1:9: cannot be reached")
    assert message.count("\n") == 1
