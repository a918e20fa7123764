"""The token of a local Ray cluster."""

from __future__ import annotations

import re

from orchestration import cluster


def test_a_local_cluster_s_token_is_readable_by_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr(cluster, "TOKEN_FILE", tmp_path / ".ray" / "auth_token")
    cluster._create_token()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    token = (tmp_path / ".ray" / "auth_token").read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    (tmp_path / ".ray" / "auth_token").chmod(0o644)  # as Ray creates it
    cluster._create_token()
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / ".ray" / "auth_token").read_text() == token
