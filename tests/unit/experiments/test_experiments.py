"""The experiments: both scales are valid, claims test the stated hypotheses, and plans are right."""

from __future__ import annotations

import importlib
import sys

import pytest
from helpers import REPOSITORY

from dashboards.claims.budget import Block
from dashboards.claims.evidence import cases_of
from dashboards.claims.ledger import read_ledger
from dashboards.comparison.exponents import RELATIONS
from experiments import launch, plan
from experiments.claims import CLAIMS, ClaimsOptions, flags_for_all, flags_of
from orchestration.sweep import search_space
from orchestration.sweep.checks import check_study
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.sweep.ticket import trial_config
from orchestration.terminal.command_line import read_command_line
from soflow.config import flatten, parse, to_dict
from soflow.config_files import read_yaml
from soflow.cost.accelerators import ACCELERATORS, Accelerator
from soflow.cost.predict import predict

EXPERIMENTS = REPOSITORY / "experiments"
STUDIES = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "EXPERIMENT = Experiment(" in path.read_text())


def study(name: str):
    return importlib.import_module(f"experiments.{name}").EXPERIMENT


def config_of(name: str, scale: str) -> SweepConfig:
    return read_command_line(SweepConfig, "", [], study(name).layers(scale))


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", STUDIES)
def test_both_scales_are_valid(name, scale, tmp_path):
    config = config_of(name, scale)
    space = search_space.build(config)
    check_study(config, tmp_path / "none", resuming=False, space=space)
    assert space.dimensions
    if study(name).name:
        assert study(name).name == name
        assert config.hypotheses or "exponent" in study(name).question
        assert config.num_trials == len(config.cases) * config.case_seeds
    if scale == "paper":
        assert (config.dataset.name, config.dataset.image_size) == ("latents", 256)
        # error_bound is about distances, which need fewer images than a FID that is held against published ones.
        assert config.evaluation.num_samples == (10_000 if name == "error_bound" else 50_000)


def test_published_baselines_have_their_papers_settings():
    config = config_of("compare_baselines", "paper")
    for case, preset in (("soflow", "soflow-imagenet256-b4"), ("meanflow", "meanflow-imagenet256-b4")):
        published = parse(read_yaml(EXPERIMENTS / "presets" / f"{preset}.yaml")).objective
        assert trial_config(config.run, {"case": case}, config.cases).objective == published


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_asks_and_when_it_ends(name):
    question = study(name).question
    words = " ".join(question.split())
    assert question.splitlines()[0].endswith(("?", "."))
    assert f"$ python experiments/{name}.py" in question
    if study(name).name:
        assert "p < 0.05" in words
        assert "Nothing is stopped early" in words


LEDGER = read_ledger(CLAIMS)


def test_claims_rest_on_hypotheses_that_were_stated_before():
    tests = [(study.experiment, claim.test) for study in LEDGER.studies for claim in study.claims]
    assert len(set(tests)) == len(tests)
    for one in LEDGER.studies:
        assert one.experiment in STUDIES
        config = config_of(one.experiment, "small")
        assert one.looks[0] == config.case_seeds, one.experiment
        assert one.question.endswith("?"), one.experiment
        for claim in one.claims:
            if claim.exponent:
                assert claim.exponent[0] in {relation.name for relation in RELATIONS}, claim
                assert claim.exponent[1] in {case.name for case in config.cases}, claim
            else:
                assert claim.test in config.hypotheses, claim
            assert claim.source


def test_every_block_of_a_ledger_is_a_valid_command():
    """The flags of first looks and of added seeds."""
    for one in LEDGER.studies:
        cases = tuple(dict.fromkeys(case for claim in one.claims for case in cases_of(claim)))
        layers = study(one.experiment).layers("small")
        assert flags_of(Block(one.experiment)) == []
        config = read_command_line(SweepConfig, "", flags_of(Block(one.experiment, 10, cases)), layers)
        assert config.num_trials == len(config.cases) * 5 + len(cases) * 5


def test_claims_can_be_repeated_with_other_seeds(tmp_path):
    options = ClaimsOptions(seed=1000, storage=tmp_path, tracking_uri="http://server:5000")
    flags = flags_for_all(options)
    config = read_command_line(SweepConfig, "", flags, study("cfg_ablation").layers("small"))
    assert (config.seed, config.storage, config.tracking_uri) == (1000, tmp_path, "http://server:5000")
    assert "--seed" not in flags_for_all(ClaimsOptions())


def test_claims_against_meanflow_name_its_form_or_test_the_best_one():
    """MeanFlow's form (c) takes least time and memory, so whoever beats it there beats (a) and (b) too."""
    forms = {"with_gradient": "(a)", "separate": "(b)", "subset": "(c)"}
    compared = set()
    for experiment, claim in ((one.experiment, claim) for one in LEDGER.studies for claim in one.claims):
        if claim.exponent:
            continue
        hypothesis, config = read_hypothesis(claim.test), config_of(experiment, "small")
        if hypothesis.right is None or "soflow" not in hypothesis.left.case:
            continue
        objective = trial_config(config.run, {"case": hypothesis.right.case}, config.cases).objective
        if objective.name != "meanflow":
            continue
        form = forms[objective.jvp]
        equal_steps = hypothesis.left.metric == "fid" and experiment == "compare_baselines"
        assert form in claim.claim or equal_steps, claim  # all forms compute the same loss
        compared.add((hypothesis.left.metric, form))
    assert compared >= {(metric, "(c)") for metric in ("time/step_ms", "memory/peak_mib", "fid")}


def test_cases_of_ones_own_leave_the_studys_hypotheses_out(monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "_run", lambda study, config: seen.append(config) or 0)
    monkeypatch.setattr(sys, "argv", ["compare_baselines.py", "--cases", "plain", "--name", "own"])
    assert launch.launch(study("compare_baselines")) == 0
    assert (seen[0].hypotheses, [case.name for case in seen[0].cases], seen[0].num_trials) == ((), ["plain"], 5)


@pytest.mark.slow
def test_a_plan_counts_runs_hours_and_memory(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sanity_check.py", "--scale", "paper", "--dry-run"])
    assert launch.launch(study("sanity_check")) == 0
    told = capsys.readouterr().out
    config = config_of("sanity_check", "paper")
    name, changes = config.cases[0].name, config.cases[0].changes
    run = trial_config(config.run, {"case": name}, config.cases)
    assert flatten(to_dict(run)).items() >= changes.items()
    cost = predict(run)
    hours = [3 * 100_000 * bound / 3600 for bound in cost.range_s(ACCELERATORS["H100"])]
    assert f"3 training runs, {hours[0]:.3g}–{hours[1]:.3g} H100 hours" in told
    assert f"{cost.peak_bytes / 2**30:.2f} GiB" in told
    assert "launch: python experiments/sanity_check.py --scale paper --address HEAD:6379" in told


@pytest.mark.slow
def test_a_plan_takes_as_many_workers_as_a_step_needs_memory_of():
    run = parse({"network": {"name": "tests.networks:one_block"}})  # 128 samples
    one, two, four = (plan.cost_per_worker(run, workers) for workers in (1, 2, 4))
    for peak, wanted in ((one.peak_bytes, 1), (two.peak_bytes, 2), (four.peak_bytes, 4), (1, 64)):
        found = plan.workers_that_fit(run, 1, one, Accelerator(peak, 1.0, {}))
        assert found == (wanted, peak > 1)  # two of 128 samples at least
    config = config_of("scale_test", "paper")
    assert "--resources.num-workers 4" in plan.cluster_command(config, [], 4)
    assert "--resources.num-workers" not in plan.cluster_command(config, [], config.resources.num_workers)


def test_the_command_for_a_cluster_keeps_a_given_storage(tmp_path):
    config = config_of("sanity_check", "paper")
    assert "--storage /SHARED/FOLDER" in plan.cluster_command(config, [], 1)
    given = f"--storage={tmp_path}"
    command = plan.cluster_command(config.model_copy(update={"storage": tmp_path}), [given], 1)
    assert given in command
    assert "/SHARED/FOLDER" not in command
