"""Passwords in URLs: refused before anything is written, and never shown."""

from __future__ import annotations

import pytest

from orchestration.config import TrainConfig
from orchestration.sweep.config import SweepConfig
from orchestration.terminal.command_line import read_command_line
from orchestration.tracking.uri import TrackingError, check_tracking
from soflow.config_base import has_password, without_password

URLS = [
    "http://ann:secret@host:5000",
    "https://:secret@host/mlflow",
    "postgresql+psycopg2://ann:secret@host/db",
    "postgresql://ann:a/secret@host/db",
    "postgresql://ann:a@secret@host/db",
    "postgresql://ann:secret?x#y@host/db",
    "postgresql://ann:2024123456/secret@host/db",
    "postgresql://host/db?user=ann&password=secret",
    "https://host/?token=secret",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(("model", "flag"), [(TrainConfig, "--tracking-uri"), (SweepConfig, "--study-storage")])
def test_a_password_is_refused_and_not_repeated(model, flag, url, capsys):
    with pytest.raises(SystemExit) as caught:
        read_command_line(model, "", [flag, url])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "must not contain a password, which would be stored and shown; for an MLflow server set MLFLOW_TRAC" in said
    assert "secret" not in said


def test_one_from_the_environment_is_refused_as_well(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URLS[0])
    uri = TrainConfig().resolved_tracking_uri
    with pytest.raises(TrackingError, match="must not contain a password") as caught:
        check_tracking(uri)
    assert "secret" not in str(caught.value)


def test_the_environment_s_server_is_the_default(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert TrainConfig().resolved_tracking_uri == "http://host:5000"
    assert TrainConfig(tracking_uri="http://other:5000").resolved_tracking_uri == "http://other:5000"


def test_other_urls_are_left_alone():
    for url in (
        "http://host:5000",
        "sqlite:////a:b/c.db",
        "postgresql://ann@host/db",
        "file:///a@b:c",
        "http://host:5000/a@b",
        "http://[::1]:5000/a@b",
        "file://C:/a@b",
        "s3://a/b:c@d",
    ):
        assert not has_password(url)
    assert without_password("see http://host:5000/a") == "see http://host:5000/a"
    for url in URLS:
        assert has_password(url)
        assert "secret" not in without_password(f"cannot open {url}, sorry")
