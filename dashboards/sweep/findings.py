"""What a sweep found: which FIDs may be compared, the ranking, and the answer in two sentences."""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass, field

import pandas as pd

from dashboards.reading.sweep_data import SweepRecord, protocol_of, typed
from orchestration.config import read_constraint
from orchestration.terminal.format import format_value, short_name

STATES = ("finished", "stopped", "running", "interrupted", "failed")
"""In the order of the table."""
LONGEST_TEXT = 60
"""Characters of a value that are shown in tables, sentences and figures."""


@dataclass(frozen=True)
class Protocol:
    """One way in which FIDs were measured, with the trials that were measured so."""

    letter: str
    tags: dict[str, str]
    trials: list[int]

    def __str__(self) -> str:
        tags = {name.removeprefix("fid_"): value for name, value in self.tags.items()}
        network = f"{tags.get('feature_network', 'unnamed')} features"
        if weights := tags.get("feature_weights_sha256"):
            network += f" (weights {weights})"
        samples = f"{thousands(tags.get('num_samples', '?'))} samples"
        against = f"{thousands(tags['num_references'])} real images" if "num_references" in tags else "the reference"
        nfe = f" at {tags['nfe'].replace(',', ', ')} NFE" if "nfe" in tags else ""
        reference = ", ".join(tags[name] for name in ("reference", "reference_fingerprint") if name in tags)
        return f"{network}, {samples}{nfe} against {against}" + (f" ({reference})" if reference else "")


@dataclass(frozen=True)
class Findings:
    """What can be said of a sweep.

    Attributes:
        table: the trials in the order of the ranking, with `rank` (NaN where there is none), `feasible` and, with
            several protocols, its letter as `protocol`.
        protocols: how FIDs were measured, one if they can all be compared.
        best: number of the best trial, None if there is none or must not be named.
        default: number of the trial with the base configuration's values.
    """

    table: pd.DataFrame
    protocols: list[Protocol]
    best: int | None
    default: int | None
    question: str
    answer: list[str] = field(default_factory=list)

    @property
    def comparable(self) -> bool:
        return len(self.protocols) <= 1


def find(record: SweepRecord) -> Findings:
    """Rank what may be ranked and word the answer."""
    protocols = _protocols(record)
    comparable = len(protocols) <= 1 or not any(is_quality(goal) for goal in record.goals)
    table = _ranked(record, comparable)
    if len(protocols) > 1:
        letters = {number: protocol.letter for protocol in protocols for number in protocol.trials}
        table["protocol"] = table["trial"].map(letters)
    best = int(table["trial"].iloc[0]) if len(table) and table["rank"].iloc[0] == 1 else None
    default = _default(record)
    answer = _answer(record, table, protocols, best, default) if comparable else [refusal(protocols)]
    return Findings(table, protocols, best, default, _question(record), answer)


def is_quality(metric: str) -> bool:
    """Whether a metric depends on how samples were measured."""
    return re.match(r"(fid|kid|class_consistency)", metric) is not None


def refusal(protocols: list[Protocol]) -> str:
    """Why trials are not ranked."""
    told = "; ".join(f"{p.letter}: {p}, {len(p.trials)} trials" for p in protocols)
    return (
        f"These trials are not ranked: their FIDs were measured in {len(protocols)} different ways, and such values "
        f"must not be compared ({told}). Measure all of them in one way, or give each way a sweep of its own."
    )


def _protocols(record: SweepRecord) -> list[Protocol]:
    found: dict[tuple, list[int]] = {}
    for number, run in record.runs.items():
        if any(is_quality(metric) for metric in run.data.metrics):
            found.setdefault(protocol_of(run), []).append(number)
    letters = [*string.ascii_uppercase, *(f"A{number}" for number in range(len(found)))]
    return [
        Protocol(letter, dict(tags), trials) for letter, (tags, trials) in zip(letters, found.items(), strict=False)
    ]


def _ranked(record: SweepRecord, comparable: bool) -> pd.DataFrame:
    """Finished trials by the goals, those that break a constraint behind them; then stopped ones, and so on."""
    table = record.trials.copy()
    table["feasible"] = True
    for metric, bound in constraints(record):
        table["feasible"] &= (table[metric] <= bound) if metric in table else False
    goals = [goal for goal in record.goals if goal in table]
    if not comparable:
        table["rank"] = math.nan
        return table.reset_index(drop=True)
    rank_of = {state: position for position, state in enumerate(STATES)}
    table = (
        table.assign(
            _order=table["state"].map(rank_of).fillna(len(STATES)), _breaks=~table["feasible"], _step=-table["step"]
        )
        .sort_values(["_order", "_breaks", "_step", *goals, "trial"])
        .drop(columns=["_order", "_breaks", "_step"])
        .reset_index(drop=True)
    )
    values = table[goals[0]] if goals else pd.Series(math.nan, index=table.index)
    counts = (table["state"] == "finished") & table["feasible"] & values.map(math.isfinite)
    table["rank"] = counts.cumsum().where(counts).astype(float)
    return table


def constraints(record: SweepRecord) -> list[tuple[str, float]]:
    """(metric, highest allowed value) of the sweep's constraints."""
    found = []
    for text in re.findall(r"[\w/.-]+<=[-+.\w]+", record.param("constraints")):
        try:
            found.append(read_constraint(text))
        except ValueError:
            continue
    return found


def _default(record: SweepRecord) -> int | None:
    """The trial whose values are all the base configuration's."""
    base = {path: typed(record.param(path)) for path in record.paths if record.param(path)}
    if len(base) < len(record.paths) or not base:
        return None
    for _, row in record.trials.iterrows():
        if all(row[path] == value or row[path] != row[path] for path, value in base.items()):
            return int(row["trial"])
    return None


def _question(record: SweepRecord) -> str:
    names = [short_name(shortened(path)) for path in record.paths]
    searched = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names) or "configuration"
    goals = " and ".join("lowest " + title(goal) for goal in record.goals)
    what, on = record.param("objective", "this model"), record.param("dataset", "its data")
    steps = record.param("training.total_steps")
    within = f" within {thousands(steps)} steps" if steps else ""
    give = "give" if len(names) > 1 else "gives"
    return f"Which {searched} {give} {shortened(what)} the {goals} on {shortened(on)}{within}?"


def _answer(
    record: SweepRecord, table: pd.DataFrame, protocols: list[Protocol], best: int | None, default: int | None
) -> list[str]:
    if best is None:
        return [_nothing_found(record, table)]
    rows, goal = table.set_index("trial"), record.goals[0]
    row, value = rows.loc[best], rows.loc[best, goal]
    chosen = ", ".join(f"{short_name(path)} = {shown(row[path])}" for path in record.paths if row[path] == row[path])
    measured = ""
    if protocols and is_quality(goal):
        nfe = protocols[0].tags.get("nfe", "").partition(",")[0]
        measured = f"{f' at {nfe} NFE' if nfe else ''}, measured with {protocols[0]}"
    finished = int((table["state"] == "finished").sum())
    changed = ", which changed while it trained" if record.param("early_stopping.kind") == "pbt" else ""
    first = (
        f"Trial {best} is the best of {finished} finished and {len(table)} begun: {title(goal)} {value:.4g}"
        f"{_interval(row)}{measured}{f', at {chosen}{changed}' if chosen else ''}."
    )
    return [first, f"{_against_default(rows, goal, best, default)}{_against_floor(row, goal)}.", *_front(record, table)]


def _interval(row: pd.Series) -> str:
    if not {"fid/low", "fid/high"} <= set(row.index) or row["fid/low"] != row["fid/low"]:
        return ""
    return f" (mean over seeds, 95 % interval {row['fid/low']:.4g} to {row['fid/high']:.4g})"


def _against_default(rows: pd.DataFrame, goal: str, best: int, default: int | None) -> str:
    if default is None:
        return "The default configuration was not tried"
    if default == best:
        return "It is the default configuration itself"
    row, value = rows.loc[default], rows.loc[default, goal]
    if row["state"] == "finished" and math.isfinite(value) and value > 0:
        change = rows.loc[best, goal] / value - 1
        side = "below" if change <= 0 else "above"
        amount = f"{abs(change):.0%}" if abs(change) >= 0.01 else f"{abs(change):.1%}"
        level = f"{amount} {side}" if amount != "0.0%" else "within 0.1% of"
        return f"That is {level} the default configuration, trial {default}, with {value:.4g}"
    reached = f" with {title(goal)} {value:.4g}" if math.isfinite(value) else ""
    ended = "failed" if row["state"] == "failed" else f"was {row['state']}"
    return f"The default configuration, trial {default}, {ended} at step {row['step']}{reached}"


def _against_floor(row: pd.Series, goal: str) -> str:
    floor = row.get("fid_floor", math.nan)
    if goal != "fid" or not math.isfinite(floor) or floor <= 0:
        return ""
    ratio = row[goal] / floor
    told = f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"
    return f"; the best is {told} times the floor of {floor:.3g}, the FID between two halves of the real data"


def _front(record: SweepRecord, table: pd.DataFrame) -> list[str]:
    """For several goals, the trials that no other beats in one without being worse in another."""
    if len(record.goals) < 2 or not set(record.goals) <= set(table):
        return []
    ranked = table[table["rank"].notna()].dropna(subset=record.goals)
    values = ranked[record.goals].to_numpy()
    on_front = [
        str(trial)
        for trial, own in zip(ranked["trial"], values, strict=True)
        if not ((values <= own).all(axis=1) & (values < own).any(axis=1)).any()
    ]
    goals = ", ".join(title(goal) for goal in record.goals)
    return [f"Of the goals {goals} the first ranks; on the Pareto front of all: trial {', '.join(on_front)}."]


def _nothing_found(record: SweepRecord, table: pd.DataFrame) -> str:
    if table.empty:
        return "MLflow holds no trial of this sweep."
    states = table["state"].value_counts()
    told = ", ".join(f"{count} {shortened(str(state))}" for state, count in states.items())
    goal = record.goals[0]
    if (table["state"] == "finished").any() and not table[table["state"] == "finished"]["feasible"].any():
        return f"No finished trial keeps to the constraints {shortened(record.param('constraints'))} ({told})."
    return f"No trial reached its last step with a finite {title(goal)}, so there is no answer ({told})."


def title(metric: str) -> str:
    """A metric as sentences and axes call it."""
    titles = {
        "fid": "FID",
        "kid": "KID",
        "class_consistency": "class consistency",
        "time/train_s": "training time [s]",
        "time/step_ms": "time per step [ms]",
        "memory/peak_mib": "peak memory [MiB]",
        "wall_s": "wall-clock [s]",
    }
    if match := re.fullmatch(r"(fid|kid|class_consistency)_(\d+)nfe", metric):
        return f"{titles[match[1]]} at {match[2]} NFE"
    return titles.get(metric, shortened(metric))


def shown(value: object) -> str:
    """A value in short; "–" if there is none."""
    if value is None or value != value:
        return "–"
    return shortened(format_value(value))


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def thousands(number: str) -> str:
    return f"{int(number):,}" if number.isdecimal() else shortened(number)
