"""Experiments as their users run them: killed, started again with the same command, prepared, judged."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pandas as pd
import pytest
from cluster import Cluster
from PIL import Image
from session import ROOT, SMALL, wait_for_line

from dashboards.reading.sweep_data import read_sweep
from dashboards.report import analyze

HYPOTHESES = ("fid(soflow) < 2 * fid(annealed)", "time/step_ms(soflow) < 60000")
OBJECTIVES = {"soflow": "soflow", "annealed": "my_lab:AnnealedSoFlow"}
CASES = [f"{case}:objective.name={objective}" for case, objective in OBJECTIVES.items()]


def workers_on(cluster: Cluster, nodes: set[int]) -> set[int]:
    """Process ids of the workers, once each of these nodes has one."""
    deadline = time.monotonic() + 10
    found = []
    while {node for node, _ in found} != nodes:  # a title cannot be read while Ray is changing it
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
        found = cluster.processes("ray::RayTrainWorker")
    return {pid for _, pid in found}


def test_a_killed_comparison_resumes_with_the_same_command_and_is_judged_seed_by_seed(shared, cluster):
    """With a plug-in data set, network, objective and diagnostic, two workers on two nodes, of which one is lost."""
    shutil.copy(ROOT / "docs" / "examples" / "my_lab.py", shared.storage)
    flags = [*SMALL, "--cases", *CASES, "--case-seeds", "2", "--evaluation.nfe", "1", "2", "--progress", "plain"]
    flags += ["--network", "my_lab:TinyNetwork", "--dataset", "my_lab:Stripes", "--hypotheses", *HYPOTHESES]
    flags += ["--evaluation.diagnostics", "my_lab:contrast", "--max-concurrent", "1"]
    flags += ["--resources.num-workers", "2", "--resources.cpus-per-worker", "2"]  # a node has two
    comparison = shared.start("compare_baselines.py", *flags)
    wait_for_line(comparison, "trial 0 running, step 4/")
    lost = workers_on(cluster, nodes={0, 1})
    cluster.kill("ray::RayTrainWorker")
    wait_for_line(comparison, "trial 1 finished")
    assert not lost & workers_on(cluster, nodes={0, 1}), "the workers were not replaced"
    os.kill(comparison.pid, signal.SIGKILL)
    comparison.wait()

    again = ["--more-seeds", "3:soflow", "--tags", "purpose=again", "--note", "Resumed."]
    output = shared.succeed("compare_baselines.py", *flags, *again)
    assert "resuming" in output
    assert HYPOTHESES[1] in output
    folder = shared.storage / "compare_baselines-small"
    table = pd.read_csv(folder / "trials.csv").sort_values("trial")
    expected = [("soflow", 0), ("annealed", 0), ("soflow", 1), ("annealed", 1), ("soflow", 2)]
    assert list(zip(table["case"], table["seed"], strict=True)) == expected
    assert set(table["state"]) == {"finished"}
    runs = shared.runs()
    whole = runs["compare_baselines-small"].data.tags
    assert whole["more_seeds"] == "['3:soflow']"
    assert whole["purpose"] == "again"  # its trials may all have ended before the kill
    assert whole["mlflow.note.content"].startswith("Resumed.\n")
    for _, row in table.iterrows():
        run = runs[f"compare_baselines-small-{row['trial']:04d}"].data
        assert run.tags["case"] == row["case"]
        assert run.tags["objective"] == run.params["objective.name"] == OBJECTIVES[row["case"]]
        assert ("objective.first_fraction" in run.params) == (row["case"] == "annealed")
        assert run.params["seed"] == str(row["seed"])
        assert run.tags["workers"] == "2"
        assert "diagnostics/contrast/rms" in run.metrics
        assert [step for step, _ in shared.history(run.tags["mlflow.runName"], "fid")] == [4, 8, 12]

    comparison = analyze(read_sweep(shared.tracking_uri, str(folder)))
    assert comparison.quality == ["fid", "fid_2nfe"]
    assert [verdict.hypothesis.text for verdict in comparison.verdicts] == list(HYPOTHESES)
    assert comparison.verdicts[0].ratio.n == 2
    for case in comparison.cases:
        rows = table[table["case"] == case.name]
        fids = dict(zip(rows["seed"], rows["fid"], strict=True))
        assert case.measures["fid"].values == pytest.approx(fids, rel=1e-12)
    assert HYPOTHESES[0].replace("<", "&lt;") in (folder / "report.html").read_text()
    assert {"comparison.md", "comparison.tex"} <= {path.name for path in folder.iterdir()}

    message = shared.fail("compare_baselines.py", *flags, "--training.total-steps", "16")
    assert "name = compare_baselines-small: exists in " in message
    assert "with other training; choose another --name" in message
    cluster.assert_nothing_left()


@pytest.mark.soak  # a killed comparison resumes above
def test_a_distillation_killed_while_its_teacher_trains_resumes_to_all_its_trials(shared):
    flags = [*SMALL, "--case-seeds", "1", "--name", "taught", "--progress", "plain"]
    experiment = shared.start("distillation.py", *flags)
    wait_for_line(experiment, "step 4: ")
    os.kill(experiment.pid, signal.SIGKILL)
    experiment.wait()
    assert not (shared.storage / "taught").exists()

    shared.succeed("distillation.py", *flags)
    assert [step for step, _ in shared.history("taught-teacher", "fid")] == [4, 8, 12]
    table = pd.read_csv(shared.storage / "taught" / "trials.csv").set_index("case")
    assert set(table["state"]) == {"finished"}
    assert table.loc["scratch", "step"] == table.loc["distilled", "step"] == 12
    assert 18 <= table.loc["scratch_longer", "step"] <= 21
    student = next(run for run in shared.runs().values() if run.data.tags.get("case") == "distilled")
    teacher = shared.storage / "taught-teacher" / "checkpoint-00000012.pt"
    assert student.data.params["objective.teacher"] == str(teacher)
    assert (shared.storage / "taught" / "report.html").exists()


@pytest.mark.soak  # its parts: tests/unit/orchestration/cost_study, tests/unit/experiments
def test_equal_time_and_memory_follow_from_the_cost_study(shared):
    settings = "objective.name=meanflow,objective.jvp=with_gradient"
    cases = ["soflow:objective.name=soflow", *(f"meanflow_a_{equal}:{settings}" for equal in ("time", "memory"))]
    shared.succeed("jvp_cost.py", *SMALL, "--case-seeds", "1", "--name", "cost", "--cases", *cases)
    folder = shared.storage / "cost-cost"
    costs = pd.read_csv(folder / "costs.csv").set_index("variant")
    table = pd.read_csv(shared.storage / "cost" / "trials.csv").set_index("case")
    assert set(table["state"]) == {"finished"}
    assert table.loc["soflow", "step"] == 12
    assert table.loc["meanflow_a_time", "step"] == round(12 * costs.loc["meanflow_a", "time/soflow_to_this"])
    runs = {run.data.tags.get("case"): run for run in shared.runs().values()}
    batches = {name: int(runs[name].data.params["training.batch_size"]) for name in table.index}
    assert batches["soflow"] == batches["meanflow_a_time"] == 32
    # The derivative keeps about twice the activations for the backward pass.
    assert 8 <= batches["meanflow_a_memory"] <= 24
    memory = table["memory/peak_mib"]
    assert memory["meanflow_a_memory"] == pytest.approx(memory["soflow"], rel=0.2)

    # The cost study itself: tables, charts, records.
    assert costs.loc["flow_matching", "time/to_flow_matching"] == 1
    assert costs.loc["soflow", "time/soflow_to_this"] == 1
    # What is counted does not depend on how busy the machine is.
    assert 1.2 < costs.loc["soflow", "flops/to_flow_matching"] < 1.6
    assert (costs["memory/peak_mib"] > costs["memory/held_mib"]).all()
    assert (costs["memory/largest_batch"] > 1000).all()  # 4 GiB are a lot for this network
    phases = costs[[name for name in costs if name.startswith("time/") and name.endswith("_ms") and "step" not in name]]
    assert (phases.sum(axis=1) > 0).all()
    for chart in ("time", "memory", "breakdown"):
        with Image.open(folder / f"{chart}.png") as image:
            assert min(image.size) > 300
    runs = {run.data.params.get("variant"): run for run in shared.runs().values()}
    for variant in costs.index:
        for name in ("time/step_ms", "memory/peak_mib", "flops/step"):
            assert runs[variant].data.metrics[name] == pytest.approx(costs.loc[variant, name])


def test_bad_input_of_a_cost_study_is_one_line(session):
    message = (
        "variants = ['ddpm']: must be one of alpha_flow, esc, flow_matching, improved_meanflow, meanflow_a, "
        "meanflow_b, meanflow_c, meanflow_d, meanflow_flash, shortcut, soflow"
    )
    assert session.fail("compare_cost.py", "--variants", "ddpm") == f"error: {message}\n"
