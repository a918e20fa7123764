"""The report of a checkpoint sweep as one HTML page, made from the sweep's folder."""

from __future__ import annotations

from pathlib import Path

from dashboards.checkpoint.figures import panels
from dashboards.html.page import render_panels
from dashboards.html.pictures import Picture, pictures
from dashboards.labels import percent, plural, title, with_interval
from orchestration.checkpoint_sweep import results as points
from orchestration.checkpoint_sweep.agreement import METRICS, agreements
from orchestration.checkpoint_sweep.config import badness
from orchestration.checkpoint_sweep.results import Gain, Result, describe, grid_file
from orchestration.checkpoint_sweep.saved import Saved, load_saved
from soflow.statistics import FEWEST_SEEDS

SAME_ORDER = 0.9
"""Rank correlation below which a metric is called another order."""
Rows = list[list[str]]


def checkpoint_page(folder: Path) -> str:
    """Render the report of a sweep's folder.

    Raises:
        OSError, ConfigError: if its files cannot be read.
    """
    saved = load_saved(folder)
    results = points.searched(saved.results, saved.space)
    best = points.best_by_evaluations(results, saved.goal)
    compared = points.gains(saved.results, saved.space, saved.goal, saved.seeds)
    return render_panels(
        "checkpoint.html.j2",
        panels(results, saved),
        name=folder.name,
        subtitle=f"{plural(len(results), 'point')} of {saved.checkpoint}, step {saved.step:,}",
        answer=_answer(saved, best, compared),
        notes=_notes(saved, results, best),
        gains=_gains_table(saved, best, compared),
        gains_note=_gains_note(saved),
        agreement=_agreement_table(saved, results),
        strips=_strips(folder, saved, best, results),
        measured=_points_table(saved, results),
        facts=_facts(saved, results),
    )


def _answer(saved: Saved, best: dict[float, Result], compared: list[Gain]) -> list[str]:
    """Say what the best points gain."""
    sentences = []
    for gain in compared:
        if gain.ratio is None:
            continue
        change, name = gain.ratio.value, title(saved.goal)
        seeds = plural(gain.ratio.n, "seed")
        interval = f"{name} ratio {with_interval(change, gain.ratio.low, gain.ratio.high)}, {seeds}"
        if not gain.decided:
            verdict = "not distinguishable from" if gain.ratio.n >= FEWEST_SEEDS else "measured on too few seeds beside"
            sentences.append(
                f"At {_evaluations(gain.evaluations)}, {describe(gain.best)} is {verdict} training's defaults "
                f"({interval})."
            )
        else:
            word = "lower" if change < 1 else "higher"
            sentences.append(
                f"At {_evaluations(gain.evaluations)}, {describe(gain.best)} has a {name} "
                f"{percent(abs(1 - change), 1)} {word} than training's defaults ({interval})."
            )
    if not sentences and best:
        found = next(iter(best.values()))
        sentences.append(
            f"Best at {_evaluations(found.evaluations)}: {describe(found.point)}, "
            f"{title(saved.goal)} {found.metrics[saved.goal]:.4g} on the seed on which it was chosen."
        )
    return sentences


def _evaluations(number: float) -> str:
    return f"{number:g} network evaluation{'' if number == 1 else 's'} per image"


def _notes(saved: Saved, results: list[Result], best: dict[float, Result]) -> list[str]:
    """Warn of choices that make a FID look better than the images are."""
    notes = []
    guided = sorted({result.point.guidance for result in best.values()} - {1.0})
    if saved.goal == "fid" and guided:
        shown = ", ".join(f"{strength:g}" for strength in guided)
        notes.append(
            f"Guidance ({shown}) was chosen by the FID that is reported here. FID can prefer guidance that other "
            "metrics and people do not (arXiv 2603.14186): see where the metrics disagree."
        )
    others = [found for found in agreements(results, saved.goal) if found.metric != saved.goal]
    if different := [found for found in others if found.rank_of_chosen > 1 and found.tau < SAME_ORDER]:
        shown = ", ".join(f"{title(found.metric)} (τ = {found.tau:.2f})" for found in different)
        notes.append(f"Other metrics order the points differently than {title(saved.goal)}: {shown}.")
    return notes


def _gains_note(saved: Saved) -> str:
    if not saved.seeds:
        return "Values on the seed on which the points were chosen, where they look better than on others."
    return (
        f"Points are chosen on seed {saved.space.seed}. They and training's defaults are measured again on "
        f"{plural(len(saved.seeds), 'other seed')}, {saved.run.evaluation.num_samples:,} images each: mean, and paired "
        "ratio with its 95 % interval (Student's t on log ratios)."
    )


def _gains_table(saved: Saved, best: dict[float, Result], compared: list[Gain]) -> Rows:
    by_evaluations = {gain.evaluations: gain for gain in compared}
    rows = [["evaluations per image", "best point", title(saved.goal), "on other seeds", "default", "best / default"]]
    for evaluations, result in best.items():
        gain = by_evaluations.get(evaluations)
        row = [f"{evaluations:g}", describe(result.point), f"{result.metrics[saved.goal]:.4g}"]
        row.append(_mean(gain.values) if gain else "–")
        row.append(_mean(gain.default_values) if gain and gain.default_values else "–")
        ratio = gain.ratio if gain else None
        row.append(with_interval(ratio.value, ratio.low, ratio.high) if ratio else "–")
        rows.append(row)
    return rows


def _mean(values: tuple[float, ...]) -> str:
    return f"{sum(values) / len(values):.4g}"


def _agreement_table(saved: Saved, results: list[Result]) -> Rows:
    rows = [
        ["metric", "best point by it", title(saved.goal), f"τ with {title(saved.goal)}", "rank of the chosen point"]
    ]
    for found in agreements(results, saved.goal):
        value = found.best.metrics[saved.goal]
        row = [title(found.metric), describe(found.best.point), f"{value:.4g}", f"{found.tau:.2f}"]
        rows.append([*row, f"{found.rank_of_chosen} of {len(results)}"])
    return rows if len(rows) > 1 else []


def _points_table(saved: Saved, results: list[Result]) -> Rows:
    metrics = [metric for metric in METRICS if any(metric in result.metrics for result in results)]
    rows = [["point", "evaluations", *map(title, metrics)]]
    for result in sorted(results, key=lambda result: badness(result.metrics, saved.goal)):
        values = [f"{result.metrics[metric]:.4g}" if metric in result.metrics else "–" for metric in metrics]
        rows.append([describe(result.point), f"{result.evaluations:g}", *values])
    return rows


def _strips(
    folder: Path, saved: Saved, best: dict[float, Result], results: list[Result]
) -> list[tuple[str, list[Picture]]]:
    """Pair the grids of the best points with those of the defaults, from the same noise."""
    defaults, strips = points.defaults_by_evaluations(results, saved.space), []
    for evaluations, result in best.items():
        shown = {"training's defaults": defaults.get(evaluations), describe(result.point): result}
        pngs = {
            f"{caption}: {title(saved.goal)} {found.metrics[saved.goal]:.4g}": grid_file(
                folder, found.point
            ).read_bytes()
            for caption, found in shown.items()
            if found is not None and grid_file(folder, found.point).exists()
        }
        if pngs:
            strips.append((_evaluations(evaluations), pictures(pngs)))
    return strips


def _facts(saved: Saved, results: list[Result]) -> dict[str, str]:
    protocols = list(dict.fromkeys(tuple(sorted(result.protocol.items())) for result in results))
    facts = {"checkpoint": f"{saved.checkpoint}, step {saved.step:,}, SHA-256 {saved.weights}…"}
    facts["FID protocol"] = "; ".join(", ".join(f"{name} {value}" for name, value in items) for items in protocols)
    facts["seed of the search"] = str(saved.space.seed)
    facts["average of training"] = f"EMA with decay {saved.run.training.ema_decay:g}"
    if saved.run.training.snapshot_every:
        lengths = ", ".join(f"{length:g}" for length in saved.run.training.snapshot_lengths)
        facts["snapshots"] = f"every {saved.run.training.snapshot_every} steps, relative lengths {lengths}"
    return facts
