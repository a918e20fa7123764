"""Make the pictures of README.md and docs/ again, from a sweep and a comparison that this program runs.

$ python benchmarks/pictures.py --storage results/pictures

The sweep takes about 8 minutes on two cores, the comparison about 20. The same command resumes an interrupted sweep and
uses finished ones again. Needs Chromium on the PATH and playwright.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from concepts import draw as draw_concepts
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, sync_playwright

from dashboards.reading.mlflow_runs import find_sweep
from orchestration.config import LaunchConfig
from orchestration.sweep.notes import view_name
from orchestration.sweep.results import load_sweep
from orchestration.tracking.schema import EXPERIMENT

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SWEEP, COMPARISON = "sweep", "comparison"
REPORT_SIZE, COMPARISON_SIZE = (930, 1832), (1280, 1075)
PAGE_SIZE, MLFLOW_SIZE = (1300, 950), (2000, 800)
LOADS_WITHIN_MS = 60_000
DRAWS_WITHIN_MS = 8_000


def run(program: str, name: str, storage: Path) -> None:
    """Run an experiment to its end, or do nothing if it is finished."""
    finished = (storage / name / "report.html").exists()
    if not finished:
        command = [sys.executable, ROOT / "experiments" / program, "--name", name, "--storage", storage]
        subprocess.run(command, check=True)


def picture(browser: Browser, url: str, path: Path, size: tuple[int, int], ready: str) -> None:
    """Write a picture of the top of a page.

    Args:
        size: width and height in pixels.
        ready: CSS selector of what must be visible before.
    """
    page: Page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme="light")
    page.goto(url)
    page.wait_for_selector(ready, timeout=LOADS_WITHIN_MS)
    page.wait_for_timeout(DRAWS_WITHIN_MS)  # until figures are drawn; pages have no common sign of it
    page.screenshot(path=path)
    page.close()
    print(f"written to {path}", flush=True)


@contextmanager
def dashboards(storage: Path) -> Iterator[dict[str, str]]:
    """Start the live view and the MLflow UI; yield their addresses by name."""
    command = [sys.executable, "-m", "dashboards.ui", "--storage", storage]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        addresses: dict[str, str] = {}
        for line in process.stdout:
            name, separator, address = line.strip().partition(":")
            if separator and address.strip().startswith("http"):
                addresses[name] = address.strip()
            if len(addresses) == 2:
                break
        yield addresses
    finally:
        process.terminate()
        process.wait()


def ranking_address(server: str, client: MlflowClient, storage: Path) -> str:
    """Return the address of the sweep's trials in MLflow's UI, the best first."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return f"{server}/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey={view_name(storage / SWEEP)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, default=Path("results/pictures"))
    storage = parser.parse_args().storage.absolute()
    draw_concepts(DOCS / "concepts.png")
    run("sweep_schedule.py", SWEEP, storage)
    best = load_sweep(SWEEP, storage).best()
    shutil.copy(best.reports[-1].grids["samples"], DOCS / "samples.png")
    run("compare_baselines.py", COMPARISON, storage)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, path, size in ((SWEEP, "report.png", REPORT_SIZE), (COMPARISON, "comparison.png", COMPARISON_SIZE)):
            picture(browser, (storage / name / "report.html").as_uri(), DOCS / path, size, "h1")
        with dashboards(storage) as addresses:
            client = MlflowClient(LaunchConfig(storage=storage).resolved_tracking_uri)
            sweep, _ = find_sweep(client, SWEEP)
            assert sweep is not None
            live = f"{addresses['live view']}/?sweep={sweep.info.run_id}"
            picture(browser, live, DOCS / "live.png", PAGE_SIZE, ".js-plotly-plot")
            address = ranking_address(addresses["MLflow UI"], client, storage)
            picture(browser, address, DOCS / "mlflow.png", MLFLOW_SIZE, f"text={SWEEP}-0000")
        browser.close()


if __name__ == "__main__":
    main()
