"""Seeds that are added to a comparison: which trials they are, and that nothing before them changes."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from orchestration.resuming import resumed
from orchestration.storage import SWEEP_FILE
from orchestration.sweep import search_space
from orchestration.sweep.cases import Case, planned_trials, value_text
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.resume import saved_config, with_more_seeds
from orchestration.sweep.study import SweepStudy
from orchestration.terminal.command_line import read_command_line
from soflow.config_base import ConfigError
from soflow.config_files import to_yaml

NAMES = ("a", "b, c", "d")
FIELDS = {
    "cases": tuple(Case(name=name) for name in NAMES),
    "case_seeds": 2,
    "early_stopping": {"kind": "none"},
    "seed": 10,
    "name": "s",
}


def test_seeds_are_added_after_what_was_planned_before():
    before = planned_trials(NAMES, 2, ())
    assert before == [("a", 0), ("b, c", 0), ("d", 0), ("a", 1), ("b, c", 1), ("d", 1)]
    for additions, rest in (
        (("3",), [("a", 2), ("b, c", 2), ("d", 2)]),
        (('4:"b, c",d',), [("b, c", 2), ("d", 2), ("b, c", 3), ("d", 3)]),
        (("3:d", "4:a,d"), [("d", 2), ("a", 2), ("a", 3), ("d", 3)]),
    ):
        assert planned_trials(NAMES, 2, additions) == before + rest


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("2", "more_seeds = 2: must be more than the 2 seeds before"),
        ("many", "more_seeds = many: must read SEEDS or SEEDS:CASE,CASE"),
        ("3:e", "more_seeds = 3:e: e must be a case: a, b, c, d"),
    ],
)
def test_what_adds_no_seed_is_refused_by_name(addition, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        planned_trials(NAMES, 2, (addition,))
    with pytest.raises(ValueError, match=message):
        SweepConfig(**FIELDS, more_seeds=(addition,))


@pytest.mark.parametrize("name", ["it's", '5"', "p (a", "b]", "true", "1.0", "😀, x", "w 1.5 m 0.25", " a"])
def test_any_name_can_be_given_seeds(name):
    names = ("plain", name)
    assert planned_trials(names, 1, (f"2:{','.join(map(value_text, names))}",))[2:] == [("plain", 1), (name, 1)]


def test_a_search_has_no_seeds_to_add():
    with pytest.raises(ValueError, match="more_seeds = 3: must be left out of a search"):
        SweepConfig(more_seeds=("3",))


def command(folder, *flags: str) -> SweepConfig:
    """Read `--resume s` with these flags, as on the command line, against the saved sweep."""
    given = read_command_line(SweepConfig, "", ["--resume", "s", "--storage", str(folder), *flags])
    config = resumed(*with_more_seeds(saved_config(folder / "s"), given), folder / "s")
    (folder / "s" / SWEEP_FILE).write_text(to_yaml(config))
    return config


def test_a_resume_adds_seeds_once_and_the_study_goes_on(tmp_path):
    (tmp_path / "s").mkdir()
    config = SweepConfig(**FIELDS, storage=tmp_path)
    (tmp_path / "s" / SWEEP_FILE).write_text(to_yaml(config))

    def run(config: SweepConfig) -> list[tuple[str, int]]:
        study = SweepStudy(config, tmp_path / "s", search_space.build(config))
        started: list[int] = []
        while ticket := study.next_trial(started):
            started.append(ticket.number)
            study.complete(ticket.number, {"step": 1, "metrics": {"fid": 1.0 + ticket.number}})
        assert {trial.state for trial in study.trials()} == {TrialState.COMPLETE}
        return [tuple(study.ticket(trial.number).point.values()) for trial in study.trials()]

    first = run(config)
    assert first == [("a", 10), ("b, c", 10), ("d", 10), ("a", 11), ("b, c", 11), ("d", 11)]
    for _ in range(2):  # the same command adds nothing more
        extended = command(tmp_path, "--more-seeds", "4:d")
        assert (extended.more_seeds, extended.num_trials) == (("4:d",), 8)
        assert run(extended) == [*first, ("d", 12), ("d", 13)]
    assert command(tmp_path).num_trials == 8
    again = command(tmp_path, "--more-seeds", "5")
    assert again.more_seeds == ("4:d", "5")
    assert run(again)[8:] == [
        *[(name, seed) for seed in (12, 13) for name in ("a", "b, c")],
        *[(name, 14) for name in NAMES],
    ]
    with pytest.raises(ConfigError, match="more_seeds = 5: must be more than the 5 seeds before"):
        command(tmp_path, "--more-seeds", "5", "5")
