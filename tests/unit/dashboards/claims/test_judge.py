"""A ledger from its sweeps to its page: verdicts, designs, pooling with records, and what is trained next."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from sweep_store import SweepStore

from dashboards.claims.budget import Block, chance, next_block
from dashboards.claims.evidence import Evidence, Gathered, gather, to_json
from dashboards.claims.figure import verdicts_png
from dashboards.claims.judge import CONFIRMED, EQUIVALENT, REFUTED, UNDECIDED, Judged, judge, pairing_gain
from dashboards.claims.ledger import Claim, Ledger, Published, Study, read_ledger
from dashboards.claims.page import page
from dashboards.reading.sweep_data import read_sweep
from soflow.config_base import ConfigError
from soflow.sequential import SequentialTest
from soflow.statistics import LEVEL

LOOKS = (4, 8)
PAIRS = [(0.5, 0.7), (0.46, 0.66), (0.58, 0.79), (0.5, 0.69), (0.52, 0.7), (0.47, 0.68), (0.55, 0.77), (0.5, 0.7)]
TESTS = ("fid(plain) < fid(worse)", "fid(worse) < fid(plain)", "fid(plain) < 0.73 * fid(worse)")
PUBLISHED = Published(left=1.5, right=3.0, where="elsewhere")


def study_of(*tests: str, experiment: str = "ran", **fields) -> Study:
    claims = tuple(
        Claim(claim=f"claim | {number}", source="s", test=test, published=(PUBLISHED,), scale="sizes differ")
        for number, test in enumerate(tests)
    )
    return Study(
        **{
            "experiment": experiment,
            "question": "Which is better?",
            "looks": LOOKS,
            "smallest_effect": 1.25,
            "family_error": LEVEL / 2,
            "claims": claims,
        }
        | fields
    )


LEDGER = Ledger(studies=(study_of(*TESTS), study_of("fid(a) < fid(b)", experiment="not_run")))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> SweepStore:
    return SweepStore(tmp_path_factory.mktemp("claims"))


def ran(store: SweepStore, pairs=PAIRS, first: int = 0, lost: int | None = None) -> Gathered:
    """Record a sweep of two cases with a seed per pair, of which one may be lost; read it."""
    outcomes = [
        ("failed" if seed == lost else "finished", [9.0, fid]) for seed, pair in enumerate(pairs) for fid in pair
    ]
    cases = ("plain", "worse:objective.guidance_strength=2")
    fields = {"cases": cases, "case_seeds": len(pairs), "early_stopping": {"kind": "none"}, "seed": first}
    return gather(LEDGER.studies[0], read_sweep(store.uri, store.sweep("ran", outcomes, **fields)))


def test_claims_are_decided_in_both_directions_and_as_equivalent(store):
    judged = judge(LEDGER, {"ran": ran(store)})
    assert [one.outcome for one in judged] == [CONFIRMED, REFUTED, EQUIVALENT, UNDECIDED]
    assert judged[3].sentence == "Not tested: not run yet."
    ratios = np.log([plain / worse for plain, worse in PAIRS])
    statistics = [stats.ttest_1samp(ratios[:n], 0).statistic for n in LOOKS]
    test = SequentialTest(LOOKS, 8)
    p = min(test.p_at(look, value) for look, value in enumerate(statistics))
    assert judged[0].p == pytest.approx(min(1, p * 2 * 3))  # a share of two studies and three claims
    assert judged[0].study.level == LEVEL / 6
    assert judged[0].estimate[0] == pytest.approx(math.exp(ratios.mean()))
    assert "Holds at this scale: × 0.7" in judged[0].sentence
    assert "The opposite holds at this scale: × 1.4" in judged[1].sentence
    assert "No difference of a factor of 1.25 or more: × 0.98" in judged[2].sentence


def test_only_complete_looks_count(store):
    seven = judge(LEDGER, {"ran": ran(store, PAIRS[:7])})[0]
    assert (seven.reached, seven.seeds) == (4, 4)
    lost = judge(LEDGER, {"ran": ran(store, lost=2)})[0]
    assert (lost.reached, [look.n for look in lost.looks]) == (8, [3, 7])
    few = judge(LEDGER, {"ran": ran(store, PAIRS[:2])})[0]
    assert (few.outcome, few.sentence) == (UNDECIDED, "Not tested: fewer than 3 seeds.")


def test_a_study_that_was_interrupted_before_its_first_trial_goes_on(store):
    fields = {"cases": ("plain", "worse:objective.guidance_strength=2"), "case_seeds": 4, "num_trials": 8}
    run_id = store.sweep("ran", [], early_stopping={"kind": "none"}, **fields)
    begun = {"ran": gather(LEDGER.studies[0], read_sweep(store.uri, run_id))}
    judged = judge(LEDGER, begun)
    assert [one.outcome for one in judged] == [UNDECIDED] * 4
    assert next_block(LEDGER, judged, begun) == Block("ran")
    assert "| ran | Which is better? | 4, 8 |" in page(judged, {}, begun, "claims.png")


def test_the_time_until_an_interrupted_trial_resumes_is_none_of_its_hours(store):
    """Of sixteen trials of similar length, one was interrupted for ten hours."""
    outcomes = [("finished", [9.0, fid]) for pair in PAIRS for fid in pair]
    cases = ("plain", "worse:objective.guidance_strength=2")
    run_id = store.sweep("ran", outcomes, cases=cases, case_seeds=len(PAIRS), early_stopping={"kind": "none"})
    usual = gather(LEDGER.studies[0], read_sweep(store.uri, run_id)).hours
    slow = next(run for run in store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{run_id}'"))
    store.client.set_terminated(slow.info.run_id, "FINISHED", slow.info.end_time + 36_000_000)
    hours = gather(LEDGER.studies[0], read_sweep(store.uri, run_id)).hours
    assert 0 < usual < 1
    assert hours == pytest.approx(usual, rel=0.1)


def test_bytes_need_no_test():
    study = study_of("memory/peak_mib(a) < memory/peak_mib(b)", "fid(a) < fid(b)")
    for ratio, outcome in ((0.7, CONFIRMED), (0.9, EQUIVALENT), (1.0, EQUIVALENT), (1.3, REFUTED)):
        evidence = Evidence((0, 1, 2, 3), dict.fromkeys(range(4), (ratio * 500, 500.0)))
        gathered = Gathered(dict.fromkeys((claim.test for claim in study.claims), evidence), {})
        exact, other = judge(Ledger(studies=(study,)), {"ran": gathered})
        assert (exact.outcome, other.outcome) == (outcome, UNDECIDED)
        assert other.reason == "all seeds give the same value"


def test_the_page_and_its_picture_have_every_claim(store):
    gathered = {"ran": ran(store)}
    judged = judge(LEDGER, gathered)
    text = page(judged, {"hardware": "a laptop"}, gathered, "claims.png")
    assert "4 claims: 1 confirmed, 1 refuted, 1 equivalent, 1 undecided." in text
    rows = [line for line in text.splitlines() if line.startswith(r"| claim \| ")]
    assert len(rows) == 2 * len(judged)
    assert "Sizes differ." in rows[0]
    assert "1.5 against 3 (elsewhere)" in rows[0]
    assert "| ran | Which is better? | 4, 8 | 2.5 % | 3 | 3 | 2 | 16 | 0 | 3,200 |" in text
    assert "a laptop" in text
    assert verdicts_png(judged).startswith(b"\x89PNG")
    assert verdicts_png(judge(LEDGER, {})).startswith(b"\x89PNG")


def judged_with(mean: float, deviation: float, n: int = 4) -> Judged:
    values = mean + deviation * stats.norm.ppf((np.arange(n) + 0.5) / n)
    evidence = Evidence(tuple(range(n)), {seed: (math.exp(value), 1.0) for seed, value in enumerate(values)})
    return judge(Ledger(studies=(study_of(TESTS[0]),)), {"ran": Gathered({TESTS[0]: evidence}, {})})[0]


def test_the_chance_of_a_verdict_grows_with_the_effect():
    chances = [chance(judged_with(mean, 0.25), 8) for mean in (0.1, 0.5, 1.5)]
    assert chances == sorted(chances)
    assert chances[0] < 0.2
    assert chances[2] > 0.9


def test_what_decides_most_per_hour_comes_next(store):
    second = study_of("fid(a) < fid(b)", experiment="second")
    ledger = Ledger(studies=(study_of(TESTS[0]), second))
    unsure = judged_with(-0.3, 0.35).looks[0]
    assert next_block(ledger, judge(ledger, {}), {}) == Block("ran")

    def measured(seconds: float, unfinished: bool = False) -> Gathered:
        values = unsure.mean + unsure.deviation * stats.norm.ppf((np.arange(4) + 0.5) / 4)
        evidence = Evidence((0, 1, 2, 3), {seed: (math.exp(value), 1.0) for seed, value in enumerate(values)})
        cases = ("plain", "worse", "a", "b")
        each = dict.fromkeys(cases, seconds)
        return Gathered({TESTS[0]: evidence, "fid(a) < fid(b)": evidence}, each, 2, is_unfinished=unfinished)

    gathered = {"ran": measured(60), "second": measured(600)}
    judged = judge(ledger, gathered)
    assert [one.outcome for one in judged] == [UNDECIDED] * 2
    block = next_block(ledger, judged, gathered)
    assert (block.experiment, block.seeds, block.cases) == ("ran", 8, ("plain", "worse"))
    assert block.hours == pytest.approx(2 * 4 * 60 / 2 / 3600)
    assert block.decided == pytest.approx(chance(judged[0], 8))
    assert next_block(ledger, judged, gathered, hours_left=block.hours / 2) is None
    assert next_block(ledger, judged, gathered, hours_left=0) is None
    unfinished = gathered | {"second": measured(600, unfinished=True)}
    assert next_block(ledger, judged, unfinished) == Block("second")


def test_claims_that_lag_behind_catch_up_first():
    """Seeds that only some cases got, and claims that have no test yet as seeds were lost."""
    study = study_of(TESTS[0], "fid(a) < fid(b)", looks=(4, 8, 12))
    far, lost = judged_with(-0.3, 0.35, n=8), Evidence((0, 1, 2, 3), {0: (1.0, 2.0)})
    values = far.looks[0].mean + far.looks[0].deviation * stats.norm.ppf((np.arange(8) + 0.5) / 8)
    ahead = Evidence(tuple(range(8)), {seed: (math.exp(value), 1.0) for seed, value in enumerate(values)})
    gathered = {"ran": Gathered({TESTS[0]: ahead, "fid(a) < fid(b)": lost}, dict.fromkeys("ab", 60.0))}
    ledger = Ledger(studies=(study,))
    judged = judge(ledger, gathered)
    assert [one.reached for one in judged] == [8, 4]
    block = next_block(ledger, judged, gathered)
    assert (block.seeds, block.cases, block.decided) == (8, ("a", "b"), 0)
    assert block.hours == pytest.approx(2 * 4 * 60 / 3600)


def test_pairing_is_worth_seeds():
    generator = np.random.default_rng(0)
    shared, own = generator.standard_normal((2, 4000))
    other = generator.standard_normal(4000)
    pairs = list(zip(np.exp(2 * shared + own), np.exp(2 * shared + other), strict=True))
    assert pairing_gain(pairs) == pytest.approx(5, rel=0.1)  # (2² + 1) · 2 over 1 · 2
    assert math.isnan(pairing_gain([(1.0, 2.0)] * 5))


CLAIM = "{claim: c, source: s, test: fid(a)<1}"
DESIGN = "experiment: a, question: q, looks: [5], smallest_effect: 1.2, family_error: 0.03"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {experiment: a, question: q, looks: [5, 4], smallest_effect: 1.2, claims: []}", "looks"),
        ("- {experiment: a, question: q, looks: [2], smallest_effect: 1.2, claims: []}", "looks"),
        ("- {experiment: a, question: q, looks: [5], smallest_effect: 0.9, claims: []}", "smallest_effect"),
        ("- {experiment: a, question: q, looks: [5], claims: []}", "smallest_effect"),
        (f"- {{{DESIGN}, claims: []}}", "claims"),
        (f"- {{{DESIGN}, claims: [{{claim: c, source: s, test: fid(a) > 1}}]}}", "fid"),
        (2 * f"- {{{DESIGN}, claims: [{CLAIM}]}}\n", "one study of a"),
        (
            "\n".join(f"- {{{DESIGN.replace('a,', name)}, claims: [{CLAIM}]}}" for name in ("a,", "b,")),
            "family_error of at most 0.05 together, not 0.06",
        ),
        ("- [", "claims.yaml"),
    ],
)
def test_a_ledger_with_a_mistake_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_ledger(tmp_path / "claims.yaml")


def test_an_unknown_experiment_is_refused():
    with pytest.raises(ConfigError, match=r"^experiments = other: must be among ran, not_run"):
        LEDGER.only(("other",))
    assert [study.experiment for study in LEDGER.only(("not_run",)).studies] == ["not_run"]


def test_the_measured_values_are_plain_json(store):
    written = json.loads(to_json({"ran": ran(store)}, {"date": "today"}))
    assert written["studies"]["ran"]["evidence"][TESTS[0]]["values"]["3"] == [0.5, 0.69]
