"""The live view and the MLflow UI in a real Chromium, as `make ui` starts them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from session import ROOT

sys.path.insert(0, str(Path(__file__).parents[1]))
from sweep_store import SweepStore

pytestmark = pytest.mark.slow

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> $x$ :red[y]"
SOON_MS = 120_000


@pytest.fixture
def ui(session):
    """Starts `python -m dashboards.ui` and gives its addresses; at the end it must leave nothing behind."""

    def start(*flags: str) -> dict[str, str]:
        # In the repository, as make does; the session's own folder is its storage.
        command = ["env", "-C", str(ROOT), sys.executable, "-m", "dashboards.ui", "--storage", str(session.storage)]
        process = session.launch([*command, *flags])
        started.append(process)
        pages = {}
        for line in process.stdout:
            if match := re.match(r"(live view|MLflow UI): +(http://\S+)", line):
                pages[match[1]] = match[2]
            if "Ctrl-C" in line:
                return pages
        raise AssertionError(f"ended without its addresses, exit code {process.wait()}")

    started: list[subprocess.Popen] = []
    yield start
    for process in started:
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
    session.assert_nothing_left()


def number(page, label: str) -> str:
    """The figure under this label at the top of the live view."""
    box = page.locator("[data-testid=stMetric]").filter(has_text=re.compile(rf"^{label}"))
    return box.locator("[data-testid=stMetricValue]").inner_text()


def test_a_sweep_that_runs_is_shown_and_its_numbers_change(session, ui, chromium):
    flags = ["--name", "live", "--num-trials", "2", "--training.total-steps", "40000", "--training.report-every", "20"]
    flags += ["--training.batch-size", "32", "--evaluation.num-samples", "64", "--max-concurrent", "1"]
    sweep = session.start("sweep_schedule.py", *flags, "--progress", "plain")
    page = chromium.new_page()
    page.goto(ui()["live view"])
    page.get_by_role("heading", name="live", exact=True).wait_for(timeout=SOON_MS)
    page.locator("[data-testid=stPlotlyChart] .scatterlayer path.js-line").first.wait_for(timeout=SOON_MS)
    page.locator("[data-testid=stImage] img").wait_for(timeout=SOON_MS)
    assert number(page, "running") == "1"
    assert number(page, "by trial") == "0"
    page.get_by_label("Metric").click()
    page.get_by_role("option", name="kid", exact=True).click()
    before = number(page, "elapsed"), number(page, "left, at most")
    caption = page.get_by_text("samples at step").inner_text()
    page.wait_for_function("before => !document.body.innerText.includes(before)", arg=caption, timeout=SOON_MS)
    assert (number(page, "elapsed"), number(page, "left, at most")) != before
    assert int(page.get_by_text("samples at step").inner_text().split()[3].strip(",")) > int(
        caption.split()[3].strip(",")
    )
    # What the user chose is still chosen after the page has refreshed itself.
    assert page.get_by_label("Metric").input_value() == "kid"
    best = float(number(page, "best FID"))
    history = MlflowClient(session.tracking_uri).get_metric_history(session.runs()["live-0000"].info.run_id, "fid")
    assert any(f"{row.value:.4g}" == f"{best:.4g}" for row in history)
    os.killpg(sweep.pid, signal.SIGKILL)
    page.close()


def test_foreign_text_shows_as_text_and_an_empty_store_is_told_kindly(session, ui, chromium):
    pages = ui()
    page = chromium.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages["live view"])
    page.get_by_text("There is no sweep yet").wait_for(timeout=SOON_MS)
    client = MlflowClient(session.tracking_uri)
    experiment = client.create_experiment("soflow", artifact_location=(session.storage / "artifacts").as_uri())
    tags = {"soflow.kind": "sweep", "num_trials": "1"}
    sweep = client.create_run(experiment, int(time.time() * 1000), tags, EVIL).info.run_id
    tags = {"soflow.kind": "trial", "mlflow.parentRunId": sweep, "state": "failed", "failure": EVIL}
    trial = client.create_run(experiment, int(time.time() * 1000), tags, EVIL).info.run_id
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
    page.close()


def test_mlflows_own_pages_list_and_compare_the_runs(session, ui, chromium):
    store = SweepStore(session.storage)
    parent = store.sweep("schedule", [("finished", [5.0, 2.0]), ("stopped", [6.0]), ("finished", [4.0, 1.5])])
    runs = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{parent}'")
    url = ui()["MLflow UI"]
    page = chromium.new_page(viewport={"width": 1600, "height": 1000})
    page.goto(f"{url}/#/experiments/{store.experiment}/runs/{parent}")
    page.get_by_text("Child runs", exact=True).wait_for(timeout=SOON_MS)
    for run in runs:
        page.get_by_role("link", name=run.info.run_name).first.wait_for(timeout=SOON_MS)
    ids = "%2C".join(f"%22{run.info.run_id}%22" for run in runs)
    page.goto(f"{url}/#/compare-runs?runs=%5B{ids}%5D&experiments=%5B%22{store.experiment}%22%5D")
    page.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for(timeout=SOON_MS)
    page.locator(".parcoords, .js-plotly-plot").first.wait_for(timeout=SOON_MS)
    page.close()


def test_a_wrong_address_is_refused_in_one_line(session):
    command = ["env", "-C", str(ROOT), sys.executable, "-m", "dashboards.ui", "--tracking-uri", "http://127.0.0.1:9"]
    process = session.launch(command)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.startswith("error: tracking_uri = http://127.0.0.1:9: cannot be reached")
    assert len(output.splitlines()) == 1
