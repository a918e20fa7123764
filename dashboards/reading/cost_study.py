"""The newest finished cost study in MLflow: what a training step of each variant costs."""

from __future__ import annotations

from dataclasses import dataclass

from dashboards.reading.mlflow_runs import all_experiments, connect, one_line
from orchestration.tracking.schema import COST_KIND, CPU, KIND, PARENT


@dataclass(frozen=True)
class CostStudy:
    """A cost study with the parameters and metrics of each measured step."""

    name: str
    cpu: str
    steps: list[dict[str, str | float]]


def read_cost_study(tracking_uri: str) -> CostStudy | None:
    """Read the newest finished cost study; None if MLflow contains none."""
    client = connect(tracking_uri)
    with one_line(tracking_uri):
        experiments = all_experiments(client)
        condition = f"tags.`{KIND}` = '{COST_KIND}' and status = 'FINISHED'"
        studies = client.search_runs(experiments, condition, order_by=["start_time DESC"], max_results=1)
        if not studies:
            return None
        info = studies[0].info
        runs = client.search_runs(experiments, f"tags.`{PARENT}` = '{info.run_id}'", max_results=1000)
        steps = [run.data.metrics | run.data.params for run in sorted(runs, key=lambda run: run.info.start_time)]
        return CostStudy(info.run_name or info.run_id, studies[0].data.tags.get(CPU, ""), steps)
