"""Ratios of a cost study: intervals are order statistics, and the table states how often they cover the median."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import CPU
from PIL import Image
from rich.console import Console

from orchestration.cost_study.charts import SETTINGS, _colors, draw_charts, sentences, short_table
from orchestration.cost_study.config import VARIANTS, Cell, CostStudyConfig
from orchestration.cost_study.results import Contender, VariantCost, ratio, table
from orchestration.cost_study.run import CellFailed, _ask, _contenders, _measure_cell
from orchestration.cost_study.worker import CostWorker, Time
from orchestration.terminal.command_line import validate
from soflow.statistics import median_coverage


def test_the_interval_of_seven_rounds_is_their_range():
    times, reference = [3.0, 2.0, 4.0, 6.0, 5.0, 2.2, 3.3], [1.0, 2.0, 2.0, 1.5, 1.0, 2.0, 3.0]
    found = ratio("time/x", times, reference)
    ratios = sorted(np.divide(times, reference))
    assert found == {"time/x": ratios[3], "time/x_low": ratios[0], "time/x_high": ratios[-1]}
    assert ratio("time/x", reference, reference) == {"time/x": 1.0}


def test_the_interval_covers_the_median_as_often_as_the_table_states():
    """The ratio of independent log-normal times with equal medians has the median 1. Of 2,000 studies, binomial; the
    bound is four standard deviations."""
    random, studies = np.random.default_rng(0), 2000
    found = [ratio("x", *np.exp(random.normal(0, 0.1, (2, 7))).tolist()) for _ in range(studies)]
    covered = sum(each["x_low"] <= 1 <= each["x_high"] for each in found) / studies
    stated = median_coverage(7)
    assert covered == pytest.approx(stated, abs=4 * (stated * (1 - stated) / studies) ** 0.5)
    row = dict.fromkeys(SETTINGS, False) | {
        "compiled": False,
        "network": "DiT",
        "batch": 8,
        "precision": "fp32",
        "variant": "soflow",
    }
    row |= {"rounds": 7, "time/step_ms": 9.0, "memory/peak_mib": 9.0, "memory/to_flow_matching": 1.0}
    shown = io.StringIO()
    Console(file=shown, width=200).print(short_table(pd.DataFrame([row])))
    assert f"({100 * stated:.0f} %)" in shown.getvalue()


CELL = Cell("DiT-XS/2", 8, True, "fused", "fp32")
FIGURES = {"parameters": 1, "flops": None, "saved_bytes": None, "held_bytes": 1, "peak_bytes": 2, "largest_batch": 3}


def measured(times: dict[tuple[str, bool], list[float]]) -> list[VariantCost]:
    """Costs by variant and compilation, with these milliseconds of a step by round."""
    return [
        VariantCost(
            CELL,
            Contender(variant, variant != "flow_matching", compiled),
            FIGURES | {"process_peak_mib": 1.0, "compile_s": 9.0 * compiled},
            [[{"step": ms}] for ms in rounds],
        )
        for (variant, compiled), rounds in times.items()
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_soflow_is_compared_with_the_fastest_meanflow_of_its_kind_and_of_all(order):
    times = {
        ("flow_matching", False): [2.0, 2.0, 2.0],
        ("soflow", False): [4.0, 3.0, 5.0],
        ("meanflow_c", False): [8.0, 8.0, 8.0],
        ("meanflow_d", False): [5.0, 5.0, 5.0],
        ("flow_matching", True): [1.0, 1.0, 1.0],
        ("soflow", True): [2.0, 2.0, 2.0],
        ("meanflow_c", True): [2.5, 2.5, 2.0],
        ("meanflow_d", True): [3.0, 3.0, 3.0],
    }
    costs = table(measured(dict(list(times.items())[::order])))
    rows = {(row["variant"], row["compiled"]): row for row in costs.to_dict("records")}
    eager, compiled = rows["soflow", False], rows["soflow", True]
    assert (eager["time/to_best_meanflow"], eager["best_meanflow"]) == (4 / 5, "meanflow_d")
    assert (compiled["time/to_best_meanflow"], compiled["best_meanflow"]) == (2 / 2.5, "meanflow_c compiled")
    assert compiled["time/to_best_meanflow_of_all"] == 2 / 2.5
    assert np.isnan(eager["time/to_best_meanflow_of_all"])
    assert (compiled["time/eager_to_this"], rows["meanflow_c", True]["time/eager_to_this"]) == (2, 8 / 2.5)
    assert all(np.isnan(row["time/eager_to_this"]) for (_, compiled), row in rows.items() if not compiled)
    assert (eager["time/to_flow_matching"], compiled["time/to_flow_matching"]) == (2, 2)
    start = "DiT-XS/2, batch 8, guided, fp32, {}: SoFlow's step takes {} of that of the fastest MeanFlow{}, {}"
    assert set(sentences(costs)) == {
        start.format("eager", "0.80 (0.60–1.00)", "", "meanflow_d"),
        start.format("compiled", "0.80 (0.80–1.00)", "", "meanflow_c compiled"),
        start.format("compiled", "0.80 (0.80–1.00)", " of all", "meanflow_c compiled"),
    }


def test_without_a_second_kind_nothing_is_compared_with_itself():
    costs = table(measured({("flow_matching", True): [1.0, 2.0], ("soflow", True): [2.0, 3.0]}))
    assert not {"time/eager_to_this", "time/to_best_meanflow"} & set(costs)
    assert sentences(costs) == []


def test_guided_and_unguided_flow_matching_are_kept_apart():
    config = validate(CostStudyConfig, {"variants": ["flow_matching", "soflow"], "compiled": [False, True]})
    labels = [(contender.label, contender.name) for contender in _contenders(config, CELL)]
    assert labels == [
        ("flow_matching", "flow_matching"),
        ("flow_matching", "flow_matching compiled"),
        ("soflow", "soflow"),
        ("soflow", "soflow compiled"),
        ("flow_matching guided", "flow_matching guided"),
        ("flow_matching guided", "flow_matching guided compiled"),
    ]
    # Where nothing is guided, flow matching is measured once.
    unguided = _contenders(config, replace(CELL, guidance=False))
    assert [contender.label for contender in unguided] == [label for label, _ in labels[:4]]


def test_every_variant_has_a_bar_of_its_own_color(tmp_path):
    contenders = _contenders(validate(CostStudyConfig, {"variants": list(VARIANTS)}), CELL)
    results = [
        VariantCost(CELL, contender, FIGURES | {"process_peak_mib": 1.0, "compile_s": 0.0}, [[{"step": 2.0}]] * 2)
        for contender in contenders
    ]
    costs = table(results)
    assert len(set(_colors(costs))) == len(contenders) == len(VARIANTS) + 1
    for chart in draw_charts(costs, tmp_path):
        assert Image.open(chart).size > (100, 100)


class InThisProcess:
    """Group of one worker without Ray."""

    def __init__(self):
        self.worker = CostWorker(CPU, 0, 1)

    def ask(self, request):
        try:
            return self.worker.serve(request)
        except Exception as error:
            return self.worker.failure(request, error)


def test_a_setting_that_fails_is_named_and_the_next_one_is_measured():
    config = validate(CostStudyConfig, {"variants": ["soflow"], "rounds": 2, "turn_s": 0})
    cell = replace(CELL, network="DiT-XXS/4", batch=2)
    contenders = _contenders(config, cell)
    groups = {contender: InThisProcess() for contender in contenders}
    advanced = []

    def measure(cell):
        return _measure_cell(config, cell, contenders, groups, lambda: advanced.append(1))

    with pytest.raises(CellFailed, match=r"^flow_matching: MemoryError: Unable to allocate"):
        measure(replace(cell, batch=10**16))  # more than there are addresses
    results = measure(cell)
    assert len(advanced) == 2 + 2
    costs = table(results).set_index("variant")
    assert (costs["rounds"] == 2).all()
    assert costs.loc["soflow", "flops/to_flow_matching"] > 1
    groups[contenders[0]] = InThisProcess()  # as after the loss of a worker between two requests
    with pytest.raises(CellFailed, match="flow_matching: RuntimeError: the worker was lost and replaced"):
        _ask(groups, contenders[0], Time(0))
