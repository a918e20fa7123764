"""The journal of what is to be delivered: a full disk, damage, its owner, its index."""

from __future__ import annotations

import json
import resource

import pytest

from orchestration.tracking.recorded_runs import RecordedRuns
from orchestration.tracking.spool import Spool
from orchestration.tracking.tracker import Tracker
from orchestration.tracking.uri import TrackingError


def test_spool_on_a_full_disk(tmp_path, caplog):
    spool = Spool(tmp_path)
    spool.append({"number": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "journal.jsonl").stat().st_size + 5, hard))
    try:
        spool.append({"number": 1})
        spool.append({"number": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    spool.append({"number": 3})
    assert [event["number"] for event in spool.peek(10)] == [0, 1, 2, 3]
    assert len(caplog.records) == 1
    spool.drop(2)
    spool.close()
    assert [event["number"] for event in Spool(tmp_path).peek(10)] == [3]  # 1 and 2 were never on disk


def test_spool_survives_damage(tmp_path):
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append({"number": number})
    spool.drop(1)
    spool.close()
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(lines[0] + b"\0" * 5 + b"\n" + lines[2] + b'{"numb')
    spool = Spool(tmp_path)
    spool.append({"number": 4})
    spool.close()
    (tmp_path / "delivered").write_text("not a number")
    assert Spool(tmp_path).peek(10) == [{"number": 0}, None, {"number": 2}, {"number": 4}]


def test_spool_has_one_owner(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(TrackingError, match="another process is delivering"):
        Tracker("sqlite:///unused.db", "e", tmp_path)
    spool.close()
    Spool(tmp_path)


def test_opening_a_long_journal_reads_only_what_its_index_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestration.tracking.spool.BYTES_PER_INDEX", 2000)
    recorded = RecordedRuns()
    spool = Spool(tmp_path, recorded)
    for run in range(30):
        event = {"kind": "start", "key": str(run)}
        spool.append(event)
        for step in range(5):
            spool.append({"kind": "metrics", "key": str(run), "step": step, "metrics": {"a": 1, "b": 2}})
        if run % 2:
            spool.append({"kind": "end", "key": str(run)})
    size = (tmp_path / "journal.jsonl").stat().st_size
    position = json.loads((tmp_path / "index.json").read_text())["position"]
    assert size - 2200 < position < size  # as a killed process leaves it
    spool._journal.close()

    for index_is_lost in (False, True):
        if index_is_lost:
            (tmp_path / "index.json").write_text("{")
        again = RecordedRuns()
        Spool(tmp_path, again)._journal.close()
        assert again.state() == recorded.state()
        assert again.new_names("metrics", "29", ["a", "b", "c"], 4) == {"c"}
        assert again.new_names("metrics", "29", ["a"], 5) == {"a"}
        assert list(again.open) == [str(run) for run in range(0, 30, 2)]
