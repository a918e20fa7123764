"""Designs that change after a look at the results."""

from __future__ import annotations

from dashboards.claims.designs import changed_designs
from dashboards.claims.ledger import Ledger
from tests.unit.dashboards.claims.test_judge import study_of


def test_a_design_may_change_until_the_first_look_and_is_told_afterwards(tmp_path):
    def changed(looked_at, **fields):
        studies = (study_of("fid(a) < fid(b)", **fields), study_of("fid(a) < fid(b)", experiment="other"))
        return changed_designs(Ledger(studies=studies), looked_at, tmp_path)

    assert changed(()) == []
    assert changed((), looks=(5, 9)) == []  # before the first look
    assert changed(("ran",), looks=(5, 9)) == []
    message = "ran: looks and smallest_effect changed after a look at its results"
    for _ in range(2):  # each time
        (found,) = changed(("ran",), looks=(5, 9, 14), smallest_effect=1.1)
        assert found.startswith(message)
    assert changed(("ran",), looks=(5, 9)) == []  # as it was
    assert changed(("ran",), question="Another wording?", power=0.9, looks=(5, 9)) == []
