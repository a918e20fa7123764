"""The experiments: both scales are valid, claims test the stated hypotheses, and plans are right."""

from __future__ import annotations

import importlib
import math
import sys

import pytest
from helpers import REPOSITORY
from sweep_store import SweepStore

from dashboards.comparison.claims import EXPONENT, judge_claims, page, read_claims
from dashboards.comparison.exponents import RELATIONS
from dashboards.comparison.results import CONFIRMED, UNDECIDED
from dashboards.reading.sweep_data import read_sweep
from experiments import launch, plan
from orchestration.sweep import search_space
from orchestration.sweep.checks import check_study
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.hypotheses import read_hypothesis
from orchestration.sweep.ticket import trial_config
from orchestration.terminal.command_line import read_command_line
from orchestration.tracking.uri import TrackingError
from soflow.config import RunConfig, flatten, parse, to_dict
from soflow.config_files import read_yaml
from soflow.cost.accelerators import ACCELERATORS, Accelerator
from soflow.cost.predict import predict
from soflow.statistics import LEVEL, detectable_effect

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


def test_claims_rest_on_hypotheses_that_were_stated_before():
    claims = read_claims(EXPERIMENTS / "claims.yaml")
    assert len({claim.test for claim in claims}) == len(claims)
    for claim in claims:
        assert claim.experiment in STUDIES
        config = config_of(claim.experiment, "small")
        if match := EXPONENT.fullmatch(claim.test):
            assert match[1] in {relation.name for relation in RELATIONS}, claim
            assert match[2] in {case.name for case in config.cases}, claim
        else:
            assert claim.test in config.hypotheses, claim
        assert claim.source


def test_claims_against_meanflow_name_its_form_or_test_the_best_one():
    """MeanFlow's form (c) takes least time and memory, so whoever beats it there beats (a) and (b) too."""
    forms = {"with_gradient": "(a)", "separate": "(b)", "subset": "(c)"}
    compared = set()
    for claim in read_claims(EXPERIMENTS / "claims.yaml"):
        if EXPONENT.fullmatch(claim.test):
            continue
        hypothesis, config = read_hypothesis(claim.test), config_of(claim.experiment, "small")
        if hypothesis.right is None or "soflow" not in hypothesis.left.case:
            continue
        objective = trial_config(config.run, {"case": hypothesis.right.case}, config.cases).objective
        if objective.name != "meanflow":
            continue
        form = forms[objective.jvp]
        equal_steps = hypothesis.left.metric == "fid" and claim.experiment == "compare_baselines"
        assert form in claim.claim or equal_steps, claim  # all forms compute the same loss
        compared.add((hypothesis.left.metric, form))
    assert compared >= {(metric, "(c)") for metric in ("time/step_ms", "memory/peak_mib", "fid")}


def test_cases_of_ones_own_leave_the_studys_hypotheses_out(monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "_run", lambda study, config: seen.append(config) or 0)
    monkeypatch.setattr(sys, "argv", ["compare_baselines.py", "--cases", "plain", "--name", "own"])
    assert launch.launch(study("compare_baselines")) == 0
    assert (seen[0].hypotheses, [case.name for case in seen[0].cases], seen[0].num_trials) == ((), ["plain"], 5)


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


def test_a_plan_takes_as_many_workers_as_a_step_needs_memory_of():
    run = RunConfig()
    one, two, four = (plan.cost_per_worker(run, workers) for workers in (1, 2, 4))
    for peak, wanted in ((one.peak_bytes, 1), (two.peak_bytes, 2), (four.peak_bytes, 4), (1, 64)):
        assert plan.workers_that_fit(run, 1, one, Accelerator(peak, 1.0, {})) == wanted  # two of 128 samples at least
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


CASES = ("plain", "worse:objective.guidance_strength=2")


@pytest.fixture
def judged(tmp_path):
    """Two claims about a study that was run, one about a study that was not; and the studies that were."""
    store = SweepStore(tmp_path)
    outcomes = [
        ("finished", [9.0, fid]) for pair in ((0.5, 0.7), (0.46, 0.66), (0.58, 0.79), (0.5, 0.69)) for fid in pair
    ]
    ran = store.sweep("ran", outcomes, cases=CASES, case_seeds=4, early_stopping={"kind": "none"})
    texts = [
        ("ran", "fid(plain) < fid(worse)"),
        ("ran", "fid(plain) < 0.7 * fid(worse)"),
        ("not_run", "fid(a) < fid(b)"),
    ]
    line = "- {{claim: c{} | x, source: s, experiment: {}, test: '{}'}}\n"
    listed = "".join(line.format(number, *text) for number, text in enumerate(texts))
    (tmp_path / "claims.yaml").write_text(listed)

    sweeps = {}

    def read(name: str):
        sweeps[name] = read_sweep(store.uri, ran if name == "ran" else "nowhere")
        return sweeps[name]

    return judge_claims(read_claims(tmp_path / "claims.yaml"), read), sweeps


def test_claims_are_judged_together_and_what_was_not_run_is_not_decided(judged):
    claims, _ = judged
    assert [each.result.outcome for each in claims] == [CONFIRMED, UNDECIDED, UNDECIDED]
    result = claims[0].result
    assert result.p == pytest.approx(2 * result.ratio.p)  # two tests, not three
    assert result.detectable_ratio == pytest.approx(
        math.exp(detectable_effect(4, LEVEL / 2) * math.log(result.ratio.value) / result.ratio.effect_size)
    )
    assert "nowhere: no sweep has this name or id" in claims[2].result.reason


def test_the_page_tells_every_claim_with_its_numbers(judged):
    claims, sweeps = judged
    text = page(claims, {"date": "2026-01-02", "hardware": "a laptop"}, sweeps)
    rows = [line for line in text.splitlines() if line.startswith(("| c0", "| c1", "| c2"))]
    assert len(rows) == 3
    assert "3 claims: 1 confirmed, 0 refuted, 2 not decided." in text
    assert r"c0 \| x" in rows[0]
    assert f"× {claims[0].result.ratio.value:.3g} [" in rows[0]
    assert "a laptop" in text
    assert "| ran | 2 | 4 | 8 | 0 | 1,600 | 1.5 | aaaaaaaaaaaa |" in text


def test_a_server_that_is_gone_is_one_line(tmp_path):
    (tmp_path / "claims.yaml").write_text("- {claim: c, source: s, experiment: ran, test: 'fid(a) < 1'}\n")

    def read(name: str):
        raise TrackingError("tracking_uri = http://127.0.0.1:9: cannot be reached")

    (each,) = judge_claims(read_claims(tmp_path / "claims.yaml"), read)
    assert each.result.reason == "tracking_uri = http://127.0.0.1:9: cannot be reached"
