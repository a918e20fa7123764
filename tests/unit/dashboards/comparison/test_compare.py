"""Comparison of cases: numbers equal MLflow's, tests are paired, and FIDs of different protocols are not compared."""

from __future__ import annotations

import html
import math
import re
import statistics
from dataclasses import replace

import pytest
from scipy import stats
from sweep_store import SweepStore

from dashboards import report
from dashboards.comparison.compare import compare, interval
from dashboards.comparison.page import comparison_page, write_tables
from dashboards.comparison.results import CONFIRMED, UNDECIDED
from dashboards.comparison.tables import _escape_markdown, measured_table, stacked
from dashboards.comparison.terminal import show_comparison
from dashboards.labels import title
from dashboards.latex import escape
from dashboards.reading.sweep_data import read_sweep
from dashboards.report import leave_report, read_attachments
from soflow.statistics import detectable_effect, paired_ratio

CASES = ("plain", "worse:objective.guidance_strength=2", "odd_<i>_&_$x$:objective.guidance_strength=3")
SETTINGS = {"cases": CASES, "case_seeds": 4, "early_stopping": {"kind": "none"}}
LAST = ([0.50, 0.70, 0.52], [0.46, 0.66, 0.44], [0.58, 0.75, 0.60], [0.49, 0.69, 0.51])
"""Final FID by seed, then by case."""

WITHIN_COST = "memory/peak_mib(plain) < 2 * memory/peak_mib(worse)"


def write_sweep(store: SweepStore, lost: tuple[int, ...] = (), **settings) -> str:
    outcomes = [("finished", [9.0, 3.0, fid]) for of_seed in LAST for fid in of_seed]
    for number in lost:
        outcomes[number] = ("failed", [9.0])
    return store.sweep("cmp", outcomes, images=True, **SETTINGS | settings)


def page_of(store: SweepStore, parent: str) -> str:
    comparison = compare(read_sweep(store.uri, parent))
    return comparison_page(comparison, *read_attachments(comparison))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> SweepStore:
    return SweepStore(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def parent(store) -> str:
    return write_sweep(store)


def test_measurements_and_ratios_equal_those_in_mlflow(store, parent):
    comparison = compare(read_sweep(store.uri, parent))
    runs = store.children(parent)
    assert [case.name for case in comparison.cases] == ["plain", "worse", "odd_<i>_&_$x$"]
    for position, case in enumerate(comparison.cases):
        assert case.trials == {seed: 3 * seed + position for seed in range(4)}
        for metric, measure in case.measures.items():
            values = [runs[number].data.metrics[metric] for number in case.trials.values()]
            assert list(measure.values.values()) == values
            mean = statistics.fmean(values)
            half = stats.t.ppf(0.975, 3) * statistics.stdev(values) / 2
            assert measure.mean == pytest.approx(mean, rel=1e-12)
            assert measure.high == pytest.approx(mean + half, rel=1e-9)
    for position in (1, 2):
        case = comparison.cases[position]
        expected = paired_ratio([fids[position] for fids in LAST], [fids[0] for fids in LAST])
        assert case.against["fid"] == expected
        assert 0 < case.against["time/train_s"].n == 4
    ps = sorted(case.against["fid"].p for case in comparison.cases[1:])
    corrected = sorted(case.p for case in comparison.cases[1:])
    assert corrected == [pytest.approx(2 * ps[0]), pytest.approx(max(ps[1], 2 * ps[0]))]
    assert math.isnan(comparison.cases[0].p)


def test_the_answer_names_significant_differences_only(store, parent):
    comparison = compare(read_sweep(store.uri, parent))
    first, second = comparison.answer
    best = comparison.cases[0]
    assert first.startswith(f"Lowest mean FID: plain, {interval(best.measures['fid'])} (4 seeds, 3 cases); ")
    worse, odd = comparison.cases[1:]
    assert worse.p < 0.05 < odd.p
    assert "worse × 1.38 [" in second
    assert "odd" not in second
    effect = detectable_effect(4, 0.05 / 2)  # of two tests, as p is corrected
    assert f"With 4 seeds, the test detects effects of {effect:.2g} standard deviations with 80 % power" in second
    assert "Holm-corrected for 2 tests" in second


def test_fractions_of_images_are_compared_with_their_resolution(store):
    texts = ("class_consistency(plain) < class_consistency(worse)", "recall(plain) < recall(worse)")
    parent = write_sweep(store, hypotheses=texts)
    for number, run in store.children(parent).items():
        store.client.log_metric(run.info.run_id, "class_consistency", (1000 + number % 3) / 1024)
        store.client.log_metric(run.info.run_id, "recall", (1000 + number % 3) / 1797)
    comparison = compare(read_sweep(store.uri, parent))
    for verdict, images in zip(comparison.verdicts, (1024, 1797), strict=True):  # samples, references
        metric = verdict.hypothesis.left.metric
        expected = paired_ratio([1000 / images] * 4, [1001 / images] * 4, resolutions=(1 / images, 1 / images))
        assert verdict.ratio == expected
        inverse = paired_ratio([1001 / images] * 4, [1000 / images] * 4, resolutions=(1 / images, 1 / images))
        assert comparison.cases[1].against[metric] == inverse


def test_two_seeds_are_not_tested(store):
    outcomes = [("finished", [9.0, fid]) for of_seed in LAST[:2] for fid in of_seed]
    parent = store.sweep("pair", outcomes, **SETTINGS | {"case_seeds": 2, "hypotheses": ("fid(plain) < fid(worse)",)})
    comparison = compare(read_sweep(store.uri, parent))
    assert comparison.verdicts[0].row()[1] == f"{UNDECIDED}: two seeds"
    assert all(math.isnan(case.p) for case in comparison.cases)
    assert "No case differs significantly from plain. Fewer than 3 seeds are not tested." in comparison.answer


def test_lost_trials_are_excluded_and_pairs_share_their_seed(store):
    parent = write_sweep(store, lost=(0, 4))  # the first seed of the first case, the second of the second
    comparison = compare(read_sweep(store.uri, parent))
    plain, worse, odd = comparison.cases
    assert (sorted(plain.trials), sorted(worse.trials)) == ([1, 2, 3], [0, 2, 3])
    assert worse.against["fid"] == paired_ratio([LAST[2][1], LAST[3][1]], [LAST[2][0], LAST[3][0]])
    assert odd.against["fid"].n == 3
    page = page_of(store, parent)
    assert "plain, seed 0 (trial 0): failed, the loss became NaN" in page


def test_fids_of_different_protocols_are_not_compared(store):
    parent = write_sweep(store)
    run = store.children(parent)[5].info.run_id
    store.client.set_tag(run, "nfe", "50")
    comparison = compare(read_sweep(store.uri, parent))
    assert comparison.quality == []
    assert "must not be compared" in " ".join(comparison.answer)
    assert all(math.isnan(case.p) and "fid" not in case.measures for case in comparison.cases)
    page = page_of(store, parent)
    assert "must not be compared" in page
    assert "time per step" in page or "peak memory" in page  # costs are compared


@pytest.mark.parametrize("goal", ["kid", "memory/peak_mib", "time/train_s", "fid_2nfe"])
def test_the_first_goal_is_drawn_and_tested_whatever_it_is(store, goal):
    parent = write_sweep(store, goals=(goal, "fid"))
    comparison = compare(read_sweep(store.uri, parent))
    assert comparison.quality[0] == goal
    assert "fid" in comparison.quality
    worse, runs = comparison.cases[1], store.children(parent)
    pairs = [[runs[3 * seed + case].data.metrics[goal] for seed in range(4)] for case in (1, 0)]
    assert worse.against[goal] == paired_ratio(*pairs)
    headings = measured_table(comparison)[0]
    assert headings[headings.index("p") - 2] == title(goal)  # then its ratio
    page = page_of(store, parent)
    assert (f"{title(goal)} against training time" in page) == (goal != "time/train_s")
    assert "Not drawn" not in page
    assert ('id="memory"' in page) == (goal != "memory/peak_mib")


def test_a_goal_that_no_protocol_concerns_is_compared_all_the_same(store):
    parent = write_sweep(store, goals=("memory/peak_mib", "fid"))
    store.client.set_tag(store.children(parent)[5].info.run_id, "nfe", "50")
    comparison = compare(read_sweep(store.uri, parent))
    assert comparison.quality == ["memory/peak_mib"]
    assert "memory/peak_mib" in comparison.cases[1].against
    assert "must not be compared" in page_of(store, parent)


def test_hypotheses_within_one_protocol_are_tested_and_others_are_not(store):
    texts = ("fid(plain) < 20", "fid(worse) < 20 * fid_floor(worse)", "fid(plain) < fid(worse)", WITHIN_COST)
    parent = write_sweep(store, hypotheses=texts)
    for number, run in store.children(parent).items():
        if number % 3 == 1:  # all of "worse"
            store.client.set_tag(run.info.run_id, "fid_feature_network", "fashion-cnn")
    comparison = compare(read_sweep(store.uri, parent))
    worse = comparison.cases[1]
    verdicts = dict(zip(texts, comparison.verdicts, strict=True))
    assert verdicts[texts[0]].ratio == paired_ratio([fids[0] for fids in LAST], [20.0] * 4)
    assert verdicts[texts[1]].ratio == paired_ratio([fids[1] for fids in LAST], [20 * 0.0407] * 4)
    assert (verdicts[texts[2]].ratio, verdicts[texts[2]].outcome) == (None, UNDECIDED)
    assert "measured by different protocols" in verdicts[texts[2]].reason
    assert verdicts[WITHIN_COST].ratio.n == 4
    assert worse.measures["fid"].mean == pytest.approx(statistics.fmean(fids[1] for fids in LAST))
    assert "fid" not in worse.against
    assert "must not be compared" in " ".join(comparison.answer)


@pytest.mark.parametrize(("lost", "seeds"), [(tuple(range(12)), 4), ((), 1)])
def test_failed_trials_and_single_seeds_give_a_report(store, lost, seeds):
    if seeds == 4:
        parent = write_sweep(store, lost=lost)
    else:
        outcomes = [("finished", [9.0, fid]) for fid in LAST[0]]
        parent = store.sweep("single", outcomes, **SETTINGS | {"case_seeds": 1})
    page = page_of(store, parent)
    assert ("No case has a finished trial." in page) == (seeds == 4)


def test_seeds_that_were_added_are_mentioned_and_counted(store):
    outcomes = [("finished", [9.0, fid]) for fids in LAST[:3] for fid in fids] + [("finished", [9.0, 0.49])]
    fields = SETTINGS | {"case_seeds": 3, "more_seeds": ("4:plain",)}
    parent = store.sweep("more", outcomes, **fields | {"hypotheses": ("fid(plain) < 1",)})
    comparison = compare(read_sweep(store.uri, parent))
    assert "Seeds were added after looks at the results (4:plain)." in " ".join(comparison.answer)
    assert [len(case.trials) for case in comparison.cases] == [4, 3, 3]
    assert comparison.verdicts[0].ratio.n == 4


def test_the_page_shows_the_table_and_escapes_names(store, parent):
    comparison, page = compare(read_sweep(store.uri, parent)), page_of(store, parent)
    assert "<i>" not in page
    table = re.search(r'<table id="measured">.*?</table>', page, re.DOTALL)[0]
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", table, re.DOTALL)]
    rows = measured_table(comparison)
    assert cells == [cell for row in stacked(rows)[1:] for cell in row]
    assert sorted(line for cell in cells for line in cell.split("\n")) == sorted(
        cell for row in rows[1:] for cell in row
    )
    published = re.search(r'<table id="published-figures">.*?</table>', page, re.DOTALL)[0]
    assert "58.56" in published
    assert "58.56" not in table
    assert page.count('<img src="data:image/webp') == 3


@pytest.mark.parametrize(("shared", "pictures"), [(True, 4), (False, 3)])
def test_real_images_that_all_cases_learned_are_shown_once(store, shared, pictures):
    comparison = compare(read_sweep(store.uri, write_sweep(store)))
    images, costs = read_attachments(comparison)
    images = {
        number: replace(found, real=images[0 if shared else number].over_steps[300]) for number, found in images.items()
    }
    page = comparison_page(comparison, images, costs)
    assert page.count('<img src="data:image/webp') == pictures
    assert page.count("real images, from the training data</figcaption>") == shared


def test_markdown_and_latex_tables_equal_the_page(store, parent, tmp_path):
    comparison = compare(read_sweep(store.uri, parent))
    markdown, latex, _ = (path.read_text() for path in write_tables(comparison, tmp_path))
    rows = measured_table(comparison)
    for row in rows:
        assert "| " + " | ".join(map(_escape_markdown, row)) + " |" in markdown
        assert " & ".join(map(escape, row)) + r" \\" in latex
    assert r"odd\_\<i\>\_\&\_$x$" in markdown
    assert r"odd\_\textless{}i\textgreater{}\_\&\_\$x\$" in latex
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 2
    assert "Published, not measured here" in markdown


def test_the_compact_table_has_the_means_and_half_widths_of_the_page(store, parent, tmp_path):
    comparison = compare(read_sweep(store.uri, parent))
    table = write_tables(comparison, tmp_path)[2].read_text()
    body = table.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    rows = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines()]
    assert [row[:2] for row in rows] == [[escape(case.name), "4"] for case in comparison.cases]
    for metric, column in (("fid", 2), ("fid_2nfe", 3), ("memory/peak_mib", 5)):
        measures = [case.measures[metric] for case in comparison.cases]
        lowest = min(measures, key=lambda measure: measure.mean)
        for measure, row in zip(measures, rows, strict=True):
            mean, half = map(float, re.fullmatch(r"(?:\\textbf\{)?([\d.]+) \$\\pm\$ ([\d.]+)\}?", row[column]).groups())
            assert (mean, half) == (
                pytest.approx(measure.mean, abs=half / 10),
                pytest.approx(measure.high - measure.mean, rel=0.05),
            )
            assert row[column].startswith(r"\textbf") == (measure is lowest)


def test_the_terminal_shows_verdicts_and_names_as_they_are(store, capsys):
    cases = ("plain", "[red]worse[/red]:objective.guidance_strength=2", "other:objective.guidance_strength=3")
    parent = write_sweep(
        store, cases=cases, hypotheses=("fid(plain) < fid([red]worse[/red])", "fid(plain) < fid(other)")
    )
    comparison = compare(read_sweep(store.uri, parent))
    show_comparison(comparison)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.endswith(" ".join(comparison.answer))
    for verdict, outcome in zip(comparison.verdicts, (CONFIRMED, UNDECIDED), strict=True):
        cells = verdict.row()
        assert cells[1] == outcome
        assert " │ ".join(cells) in shown
    assert f"[red]worse[/red] │ 4 │ {interval(comparison.cases[1].measures['fid'])}" in shown


def test_a_comparison_leaves_its_report_and_tables(store, parent, capsys):
    folder, attached = store.folder_of(parent), []
    leave_report(store.uri, folder, attached.append)
    names = ("report.html", "comparison.md", "comparison.tex", "comparison-compact.tex")
    assert attached == [folder / name for name in names], capsys.readouterr().out
    assert all(path.exists() for path in attached)


def test_analysis_and_rendering_do_not_access_mlflow(store, parent, tmp_path, monkeypatch):
    data = read_sweep(store.uri, parent)
    comparison = compare(data)
    attachments = read_attachments(comparison)
    for name in ("get_metric_history", "search_runs", "list_artifacts", "download_artifacts", "get_run"):
        monkeypatch.setattr(f"mlflow.MlflowClient.{name}", None)
    assert compare(data).answer == comparison.answer
    assert comparison.answer[0] in html.unescape(comparison_page(comparison, *attachments))
    assert len(write_tables(comparison, tmp_path)) == 3


def test_a_sweep_is_read_and_analyzed_once(store, parent, tmp_path, monkeypatch):
    calls = []
    for name in ("read_sweep", "compare"):
        function = getattr(report, name)
        monkeypatch.setattr(report, name, lambda *a, f=function, n=name: calls.append(n) or f(*a))
    leave_report(store.uri, store.folder_of(parent), lambda path: None)
    assert calls == ["read_sweep", "compare"]
